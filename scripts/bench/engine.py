"""The side of the engine: one run of one workload in a process of its own. A job on standard input, JSON on standard output."""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import asdict
from typing import Any

import psycopg

from bench.job import Bench, Job, NotAvailable
from bench.meter import Meter
from bench.workloads import WORKLOADS


def main() -> int:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    job = Job(**json.load(sys.stdin))
    print(json.dumps(run(job)))
    return 0


def run(job: Job) -> dict[str, Any]:
    """`figures`, `series` and `profile`; or `unavailable` and why."""
    workload = WORKLOADS[job.workload]
    with (
        Meter(job.admin, job.conninfo["dbname"], job.postgres_pid) as meter,
        psycopg.connect(**job.conninfo, autocommit=True) as database,
    ):
        bench = Bench(job, meter, os.getpid(), database)
        try:
            figures = workload.run(bench)
        except NotAvailable as reason:
            return {"unavailable": str(reason)}
    return {"figures": figures, "series": bench.series, "profile": bench.profile}


def job_json(job: Job) -> str:
    return json.dumps(asdict(job))


if __name__ == "__main__":
    sys.exit(main())
