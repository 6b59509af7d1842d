"""The side of the engine: one run of one workload, in a process of its own.

A job on standard input, the answer on standard output, both JSON.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any

import psycopg

from bench.job import Bench, Job, NotAvailable
from bench.meter import Meter
from bench.workloads import WORKLOADS
from progressor.serving import tame_collector


def main() -> int:
    tame_collector()  # as progressor-node does
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    job = Job(**json.load(sys.stdin))
    print(json.dumps(run(job)))
    return 0


def run(job: Job) -> dict[str, Any]:
    """`figures`, `series` and `profile`; or a `note` that says why there are none."""
    workload = WORKLOADS[job.workload]
    with (
        Meter(job.admin, job.conninfo["dbname"], job.postgres_pid) as meter,
        psycopg.connect(**job.conninfo, autocommit=True) as database,
    ):
        bench = Bench(job, meter, os.getpid(), database)
        try:
            figures = workload.run(bench)
        except NotAvailable as reason:
            return {"figures": {}, "note": f"not available: {reason}"}
    return {"figures": figures, "series": bench.series, "profile": bench.profile}


if __name__ == "__main__":
    sys.exit(main())
