"""The cache: reads with and without it, how far it lags behind, and what following the WAL costs the steps.

What is compared is measured in one run, one after the other: a machine drifts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from random import Random
from statistics import fmean
from threading import Event as Flag
from time import monotonic, sleep

from bench.job import NS, Bench
from bench.load import Load, Operation, Verbs, latency_figures
from bench.meter import Figures
from bench.processors import GO, event
from bench.stepping import init_all, steps_between
from progressor import Node, Process

STORAGE = {"cache": "bench"}
ROUNDS = 3
RATE = 3000
"""Steps a second while the lag is measured."""
SAMPLE = 0.02
"""Seconds between looks at the lag of the last transaction."""


@contextmanager
def _cached_node(bench: Bench, processor: str) -> Iterator[Node]:
    with Node.from_config(bench.config(processor, storage=STORAGE)) as node:
        while not node.health()[1][NS]["cache"]["connected"]:
            sleep(0.01)
        yield node


def get(bench: Bench, clients: int) -> Figures:
    """Reads of 1,000 processes with 10 events at random, from memory; then the same from the database."""
    processes = bench.size(1000, 50)

    def read(verbs: Verbs, random: Random) -> object:
        return verbs.get(ns=NS, id=f"p{random.randrange(processes)}")

    def read_database(verbs: Verbs, random: Random) -> object:
        return verbs.get(ns=NS, id=f"p{random.randrange(processes)}", cache=False)

    with _cached_node(bench, "Plain") as node:
        if not bench.rows("select 1 from {processes} limit 1"):
            for n in range(processes):
                history = [event() for _ in range(10)]
                node.client.put(ns=NS, id=f"p{n}", process=Process(f"p{n}", history=history))
        for n in range(processes):
            node.client.get(ns=NS, id=f"p{n}")
        cached = _reads(bench, node, clients, read)
        uncached = _reads(bench, node, clients, read_database)["per_second"]
    return {**cached, "uncached/s": uncached, "cached / uncached": cached["per_second"] / uncached}


def _reads(bench: Bench, node: Node, clients: int, operation: Operation) -> Figures:
    """Without the costs: threads that never wait leave the meter no time to read them."""
    with Load(node.client, clients, operation) as load:
        sleep(bench.warm_up)
        with load.recording():
            sleep(bench.seconds)
    return {"per_second": load.per_second, **load.figures()}


def lag(bench: Bench) -> Figures:
    """From a commit to the cache, at so many steps a second of processes that are in it. The latencies are the lag."""
    processes = bench.size(RATE, 100)
    seconds: list[float] = []
    with _cached_node(bench, "Pace") as node:
        init_all(node.client, processes)
        for n in range(processes):
            node.client.get(ns=NS, id=f"p{n}")
        sleep(bench.warm_up)
        before, until = bench.progress(), monotonic() + bench.seconds
        while monotonic() < until:
            seconds.append(_lag(node))
            Flag().wait(SAMPLE)
        figures, _ = steps_between(before, bench.progress())
    return {"steps/s": figures["per_second"], **latency_figures(seconds)}


def _lag(node: Node) -> float:
    value = node.metrics.registry.get_sample_value("progressor_cache_lag_seconds", {"database": "bench"})
    assert value is not None
    return value


def steps(bench: Bench, processes: int) -> Figures:
    """Processes whose every step is followed by the next: without a cache and with one that follows them, in turns,
    because a machine drifts by more than what is to be measured."""
    with bench.node("Loop") as client:
        init_all(client, processes, GO)
        plain, cached = [_steps(bench)], []
    for _ in range(ROUNDS):
        with _cached_node(bench, "Loop") as node:
            for n in range(processes):
                node.client.get(ns=NS, id=f"p{n}")
            cached.append(_steps(bench))
        with bench.node("Loop"):
            plain.append(_steps(bench))
    following, without = _mean(cached), _mean(plain)
    return {
        **following,
        "without/s": without["per_second"],
        "cached / without": following["per_second"] / without["per_second"],
        "engine CPU of a step, cached / without": following["engine_cpu"] / without["engine_cpu"],
        "PostgreSQL CPU of a step, cached / without": following["postgres_cpu"] / without["postgres_cpu"],
    }


def _steps(bench: Bench) -> Figures:
    sleep(bench.warm_up)
    before = bench.progress()
    with bench.measuring() as measured:
        sleep(bench.seconds / 2)
        after = bench.progress()
    figures, made = steps_between(before, after)
    return {"per_second": figures["per_second"], **measured().costs(made)}


def _mean(rounds: Sequence[Figures]) -> dict[str, float]:
    return {name: fmean(figures[name] for figures in rounds) for name in rounds[0]}
