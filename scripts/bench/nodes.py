"""Several engine processes of one `progressor-node` on one database: the steps of N=200, with one and with two.

The processes are put into the database in portions: a process that goes on at once stays where it began, and whichever
engine looks next takes what it finds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from bench import proc
from bench.job import Bench, NotAvailable
from bench.meter import Figures
from bench.stepping import steps_between

PROCESSES, PORTIONS, PAUSE = 200, 40, 0.2
SCAN = 1.0
PATIENCE = 30.0
_ALIVE = "select 1 from progressor_nodes where expires_at > now()"
_PUT = """
with process as (
  insert into {processes} (process_id, status, previous_status)
  select %s || '-' || n, 'running', 'running' from generate_series(1, %s::int) n returning process_id),
task as (
  insert into {tasks} (process_id, task_type, status, scheduled_time, last_retry_interval, attempts_count, context)
  select process_id, 'timeout', 'waiting', now(), 0, 0, '' from process returning *)
insert into {schedule} (task_id, process_id, task_type, status, scheduled_time, last_retry_interval, attempts_count,
                        context)
select task_id, process_id, task_type, status, scheduled_time, last_retry_interval, attempts_count, context from task"""
_BY_ENGINE = "select count(*) from {running} group by owner"


def processes(bench: Bench) -> Figures:
    one, _, _ = _steps(bench, 1)
    two, shares, costs = _steps(bench, 2)
    smaller = min(shares) / sum(shares) if len(shares) == 2 else 0.0
    return {
        **two,
        "steps/s of one process": one["per_second"],
        "two / one": two["per_second"] / one["per_second"],
        "share of the smaller one": smaller,
        **costs,
    }


def _steps(bench: Bench, engines: int) -> tuple[Figures, list[int], Figures]:
    """The steps of so many engines, how many processes each has, and what it costs."""
    with running(bench, bench.config("Loop", task_scan_timeout=SCAN), engines):
        for portion in range(PORTIONS):
            bench.rows(_PUT, str(portion), PROCESSES // PORTIONS)
            sleep(PAUSE)
        sleep(SCAN + bench.warm_up)
        before = bench.progress()
        with bench.measuring() as measured:
            sleep(bench.seconds)
            after = bench.progress()
        shares = [count for (count,) in bench.rows(_BY_ENGINE)]
    bench.rows("truncate {processes}, {tasks}, {schedule}, {running}, {events}")
    figures, made = steps_between(before, after)
    return figures, shares, measured().costs(made)


@contextmanager
def running(bench: Bench, settings: Mapping[str, Any], engines: int = 1) -> Iterator[None]:
    """A `progressor-node` in a process of its own, which is the engine that is measured."""
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory, "sys.toml")
        config.touch(mode=0o600)
        config.write_text(toml(settings))
        command = [sys.executable, "-m", "progressor.node", "--config", str(config), "--log-level", "warning"]
        if engines > 1:
            command += ["--processes", str(engines)]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as node:
            try:
                _wait_ready(bench, node, engines)
                bench.engine_pid = node.pid
                yield
            finally:
                node.terminate()
                _end(node)


def _wait_ready(bench: Bench, node: subprocess.Popen[bytes], engines: int) -> None:
    deadline = monotonic() + PATIENCE
    while not _is_ready(bench, engines):
        if node.poll() == 2 and engines > 1:
            raise NotAvailable("progressor-node knows no --processes")
        if node.poll() is not None or monotonic() > deadline:
            raise RuntimeError("the node does not run")
        sleep(0.1)


def _is_ready(bench: Bench, engines: int) -> bool:
    (there,) = bench.rows("select to_regclass('progressor_nodes') is not null")
    return there == (True,) and len(bench.rows(_ALIVE)) == engines


def _end(node: subprocess.Popen[bytes]) -> None:
    try:
        node.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        members = proc.family(node.pid)
        node.kill()
        for pid in members[1:]:
            proc.kill(pid)


def toml(config: Mapping[str, Any]) -> str:
    """A configuration as a file: JSON's texts and numbers are TOML's, and a table may stand on one line."""
    return "\n".join(f"{json.dumps(name)} = {_inline(value)}" for name, value in config.items()) + "\n"


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {_inline(each)}" for name, each in value.items()) + "}"
    return json.dumps(value)
