"""How fast Progressor is on this machine: `make bench`, or `python scripts/bench --help`.

The parent (cli) owns a PostgreSQL server and measures the machine with pgbench. Each run of a workload is a process of
its own (engine) with a node in it and, unless the workload says otherwise, the clients as threads: what it reports is
what one engine process does. Everything else is arithmetic (report).
"""
