"""Steps for minutes, with everything that PostgreSQL does in the background, and a caller once a second."""

from __future__ import annotations

import logging
from time import monotonic, perf_counter, sleep

from bench import proc
from bench.job import NS, Bench, Progress
from bench.load import latency_figures
from bench.meter import Figures
from bench.processors import GO, REST
from bench.stepping import init_all, steps_between
from progressor import LocalClient, ProgressorError

logger = logging.getLogger(__name__)

PROCESSES = 200
PROBE = "probe"
_SIZES = """
select sum(pg_table_size(c)), sum(pg_indexes_size(c)), sum(pg_total_relation_size(c)) filter (where not grows)
from (values ('{processes}'::regclass, false), ('{schedule}', false), ('{running}', false), ('{tasks}', true),
  ('{events}', true)) t(c, grows)"""
"""Tasks and events grow with the work; what the other three grow by is bloat."""


def soak(bench: Bench) -> Figures:
    minutes = max(1, round(bench.job.soak_minutes))
    with bench.node("Loop") as client:
        client.init(ns=NS, id=PROBE, args=REST)
        init_all(client, PROCESSES, GO)
        sleep(bench.warm_up)
        probes: list[float] = []
        before = first = _progress(bench)
        with bench.measuring() as measured:
            for minute in range(1, minutes + 1):
                seconds = _probe(client, bench.size(60, 2))
                after = _progress(bench)
                _report(bench, minute, before, after, seconds)
                before = after
                probes += seconds
        figures, made = steps_between(first, before)
    return {**figures, **latency_figures(probes), **_trend(bench), **measured().costs(made)}


def _progress(bench: Bench) -> Progress:
    """Without the process that is called."""
    found = bench.progress()
    return Progress(found.at, {name: events for name, events in found.events.items() if name != PROBE})


def _probe(client: LocalClient, seconds: float) -> list[float]:
    """Calls once a second; how long each took. One that fails counts with the time until it did."""
    found: list[float] = []
    end = monotonic() + seconds
    while monotonic() < end:
        started = perf_counter()
        try:
            client.call(ns=NS, id=PROBE, args=REST)
        except ProgressorError as error:
            logger.warning("probe: %s", error)
        found.append(perf_counter() - started)
        sleep(max(0.0, 1 - found[-1]))
    return found


def _report(bench: Bench, minute: int, before: Progress, after: Progress, probes: list[float]) -> None:
    (sizes,) = bench.rows(_SIZES)
    tables, indexes, small = (float(size) / 2**20 for size in sizes)
    row = {
        "minute": float(minute),
        "steps/s": steps_between(before, after)[0]["per_second"],
        "tables MB": tables,
        "indexes MB": indexes,
        "processes, schedule, running MB": small,
        "memory MB": proc.family_memory(bench.engine_pid, "VmRSS"),
        "probe p99 ms": latency_figures(probes)["p99"],
    }
    bench.series.append(row)
    logger.warning("soak: %s", ", ".join(f"{name} {value:,.1f}" for name, value in row.items()))


def _trend(bench: Bench) -> Figures:
    first, last = bench.series[0], bench.series[-1]
    names = ("processes, schedule, running MB", "memory MB")
    return {
        "last minute / first": last["steps/s"] / first["steps/s"],
        **{f"{name}, last / first": last[name] / first[name] for name in names},
    }
