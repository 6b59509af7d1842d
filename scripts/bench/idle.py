"""What a node costs that has nothing to do: a million timers wait, none is due for weeks."""

from __future__ import annotations

from time import sleep

from bench.job import NS, Bench
from bench.meter import Figures
from progressor.storage.migrate import migrate

_FILL = (
    """insert into {processes} (process_id, status, previous_status)
    select 'p' || n, 'running', 'running' from generate_series(1, %s::int) n""",
    """insert into {tasks} (process_id, task_type, status, scheduled_time, last_retry_interval, attempts_count, context)
    select 'p' || n, 'timeout', 'waiting', now() + interval '30 days' + n * interval '1 s', 0, 0, ''
    from generate_series(1, %s::int) n""",
    """insert into {schedule} (task_id, process_id, task_type, status, scheduled_time, last_retry_interval,
                               attempts_count, context)
    select task_id, process_id, task_type, status, scheduled_time, last_retry_interval, attempts_count, context
    from {tasks} limit %s""",
)


def idle(bench: Bench) -> Figures:
    """Transactions stand for queries: a node that has nothing to do sends one in each."""
    migrate(bench.job.conninfo, [NS])
    if not bench.rows("select 1 from {processes} limit 1"):
        _fill(bench, bench.size(1_000_000, 10_000))
    with bench.node("Plain"):
        sleep(2 * bench.warm_up)
        with bench.measuring() as measured:
            sleep(bench.seconds)
    period = measured()
    return {
        "engine % of a core": 100 * period.engine_cpu / period.seconds,
        "PostgreSQL % of a core": 100 * period.postgres_cpu / period.seconds,
        "queries/s": period.transactions / period.seconds,
        "memory": period.memory,
    }


def _fill(bench: Bench, timers: int) -> None:
    for statement in _FILL:
        bench.rows(statement, timers)
    for table in ("processes", "tasks", "schedule"):  # else autovacuum does it, while we measure
        bench.rows(f"vacuum analyze {{{table}}}")
    bench.rows("checkpoint")
