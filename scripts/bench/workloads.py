"""The workloads of one engine, and the list of all.

A workload is a function of a Bench that answers figures. Its name is its group and its size: `--only` knows both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import count, islice
from random import Random
from time import monotonic, sleep
from typing import TypeAlias

from kafka.broker import Broker, KafkaNotFound

from bench import cached, idle, nodes, remote, soak
from bench.job import NS, TOPICS, Bench, NotAvailable
from bench.load import Load, Verbs, latency_figures
from bench.meter import Figures
from bench.processors import GO, STOP, event
from bench.stepping import init_all, steps_between
from progressor import Event, LocalClient, Process, SetTimer, now

Run: TypeAlias = Callable[[Bench], Figures]
PUTS = 200
"""Puts that are under way together."""
LATEST = 60.0
"""Seconds that a timer may be late before it is given up."""


@dataclass(frozen=True, slots=True)
class Workload:
    name: str
    run: Run
    keeps_database: bool = False
    """Its runs use the same database, since they only read."""
    is_long: bool = False
    """It is run once, and only when asked for."""

    @property
    def group(self) -> str:
        return self.name.rpartition("-")[0] if self.name.rpartition("-")[2].isdigit() else self.name


# Steps


def steps(bench: Bench, processes: int, kafka: str | None = None) -> Figures:
    """So many processes whose every step is followed by the next."""
    with bench.node("Loop", kafka) as client:
        init_all(client, processes, GO)
        sleep(bench.warm_up)
        before = bench.progress()
        with bench.measuring() as measured:
            sleep(bench.seconds)
            after = bench.progress()
    figures, made = steps_between(before, after)
    return {**figures, **measured().costs(made)}


def published(bench: Bench, processes: int) -> Figures:
    """The same with every event published to a Kafka on this machine, beside steps that tell nobody."""
    with broker() as kafka:
        silent = steps(bench, processes)
        bench.rows("truncate {processes}, {tasks}, {schedule}, {running}, {events}")
        figures = steps(bench, processes, kafka.endpoint)
    ((left,),) = bench.rows("select count(*) from {outbox}")
    return {
        **figures,
        "steps/s without Kafka": silent["per_second"],
        "with / without": figures["per_second"] / silent["per_second"],
        "messages left by the stop": float(left),
    }


def backlog(bench: Bench) -> Figures:
    """What an outage has left in the outbox, messages a second."""
    messages = bench.size(200_000, 20_000)
    with broker() as kafka, bench.node("Plain", kafka.endpoint), bench.measuring() as measured:
        began = monotonic()
        bench.rows(_MESSAGES, messages)
        while bench.rows("select 1 from {outbox} limit 1"):
            sleep(0.02)
        took = monotonic() - began
    return {"per_second": messages / took, **measured().costs(messages)}


_MESSAGES = """
insert into {outbox} (process_id, notice, event_id, timestamp, metadata, payload)
select 'p' || n %% 1000, 'event', n / 1000 + 1, now(), '{"format_version": 1}', repeat('x', 100)::bytea
from generate_series(0, %s::int - 1) n"""


@contextmanager
def broker() -> Iterator[Broker]:
    try:
        found = Broker()
    except KafkaNotFound as missing:
        raise NotAvailable(str(missing)) from None
    with found:
        for topic in TOPICS.values():
            found.create(topic, 10)
        yield found


def long_history(bench: Bench) -> Figures:
    """One process at a time, at three places of its life; briefly, since a history grows."""
    lengths = (100, 10_000, bench.size(100_000, 20_000))
    rates: list[float] = []
    made = 0.0
    with bench.node("Loop") as client, bench.measuring() as measured:
        for length in lengths:
            name = f"p{length}"
            client.put(ns=NS, id=name, process=Process(name, history=_history(length)))
            client.call(ns=NS, id=name, args=GO)
            sleep(0.5)
            before = bench.progress()
            sleep(min(bench.seconds, 3.0))
            figures, done = steps_between(before, bench.progress())
            client.call(ns=NS, id=name, args=STOP)
            made += done
            rates.append(figures["per_second"])
    return {
        "per_second": rates[-1],
        **{f"steps/s at event {length:,}": rate for length, rate in zip(lengths, rates, strict=True)},
        "slowest / at event 100": min(rates[1:]) / rates[0],
        **measured().costs(made),
    }


# Clients


def init(bench: Bench, clients: int) -> Figures:
    with bench.node("Plain") as client:
        return bench.measure(client, clients, _inits())


def call(bench: Bench, clients: int, processes: int) -> Figures:
    """Calls of processes at random."""
    if processes > 1:
        processes = bench.size(processes, 100)
    with bench.node("Plain") as client:
        init_all(client, processes)
        return bench.measure(
            client, clients, lambda verbs, random: verbs.call(ns=NS, id=f"p{random.randrange(processes)}")
        )


def get(bench: Bench, clients: int, events: int) -> Figures:
    """Reads of processes at random, from the database."""
    processes = bench.size(1000, 50)
    with bench.node("Plain") as client:
        if not bench.rows("select 1 from {processes} limit 1"):
            history = _history(events)
            _all(_put(client, Process(f"p{n}", history=history)) for n in range(processes))
        return bench.measure(
            client, clients, lambda verbs, random: verbs.get(ns=NS, id=f"p{random.randrange(processes)}", cache=False)
        )


# Timers


def timers(bench: Bench, due: int) -> Figures:
    """So many timers in one second, while 50 clients do something else. The latencies are how late they were."""
    due = bench.size(due, due // 10)
    with bench.node("Plain") as client:
        wait_until = _set_timers(client, due)
        with Load(client, 50, _inits()) as load:
            sleep(max(0.0, wait_until - monotonic()))
            with bench.measuring() as measured, load.recording():
                _wait_for_timers(bench)
    late = [float(seconds) for (seconds,) in bench.rows(_LATE)]
    not_run = {"timers that did not run": float(due - len(late))} if len(late) < due else {}
    costs = measured().costs(load.operations + len(late))
    return {**latency_figures(late), "inits/s meanwhile": load.per_second, **not_run, **costs}


_LATE = """select extract(epoch from running_time - scheduled_time) from {tasks}
where task_type = 'timeout' and status = 'finished'"""
_PENDING = """select 1 from {schedule} where task_type = 'timeout' union all
select 1 from {running} where task_type = 'timeout' limit 1"""


def _set_timers(client: LocalClient, due: int) -> float:
    """Makes the processes; the timers come due within a second that begins soon after. Answers a moment before."""
    started = monotonic()
    trial = min(PUTS, due)
    later = now() + timedelta(days=1)
    _all(_put(client, Process(f"trial{n}"), SetTimer(later)) for n in range(trial))
    ahead = 2.0 + 2 * due * (monotonic() - started) / trial
    begin, at = monotonic() + ahead, now() + timedelta(seconds=ahead)
    _all(_put(client, Process(f"t{n}"), SetTimer(at + timedelta(seconds=n / due))) for n in range(due))
    _all(client.future.remove(ns=NS, id=f"trial{n}") for n in range(trial))
    if monotonic() > begin - 0.5:
        raise RuntimeError("the machine is too busy: the timers were due before all of them were set")
    return begin - 0.5


def _put(client: LocalClient, process: Process, timer: SetTimer | None = None) -> Future[None]:
    return client.future.put(ns=NS, id=process.process_id, process=process, action=timer)


def _wait_for_timers(bench: Bench) -> None:
    deadline = monotonic() + LATEST
    sleep(1.5)
    while bench.rows(_PENDING) and monotonic() < deadline:
        sleep(0.1)


# Parts


def _inits() -> Callable[[Verbs, Random], object]:
    numbers = count()  # next() of it is atomic
    return lambda verbs, _: verbs.init(ns=NS, id=f"i{next(numbers)}")


def _history(events: int) -> Sequence[Event]:
    return [event() for _ in range(events)]


def _all(futures: Iterator[Future[None]]) -> None:
    """Waits for all, a portion at a time."""
    while portion := list(islice(futures, PUTS)):
        for future in portion:
            future.result()


def _workloads() -> Iterator[Workload]:
    for n in (10, 50, 200, 500):
        yield Workload(f"steps-{n}", partial(steps, processes=n))
    yield Workload("published-200", partial(published, processes=200))
    yield Workload("backlog", backlog)
    for clients in (200, 50):
        yield Workload(f"init-{clients}", partial(init, clients=clients))
    for clients in (50, 1):
        yield Workload(f"call-{clients}", partial(call, clients=clients, processes=1000))
    yield Workload("call-tcp-50", partial(remote.call, clients=50, processes=1000, transport="thrift"))
    yield Workload("call-woody-50", partial(remote.call, clients=50, processes=1000, transport="woody"))
    yield Workload("call-hot", partial(call, clients=50, processes=1))
    for events in (10, 1000):
        yield Workload(f"get-{events}", partial(get, clients=50, events=events), keeps_database=True)
    yield Workload("cached-get-50", partial(cached.get, clients=50), keeps_database=True)
    yield Workload("cached-lag", cached.lag)
    yield Workload("cached-steps-50", partial(cached.steps, processes=50))
    for due in (2000, 20_000):
        yield Workload(f"timers-{due}", partial(timers, due=due))
    yield Workload("long-history", long_history)
    yield Workload("idle", idle.idle, keeps_database=True)
    yield Workload("processes", nodes.processes)
    yield Workload("soak", soak.soak, is_long=True)


WORKLOADS: Mapping[str, Workload] = {workload.name: workload for workload in _workloads()}


def chosen(only: Sequence[str]) -> Sequence[Workload]:
    """Those of the names and groups, or the ones that are run by default. Raises LookupError for one that is none."""
    if not only:
        return [workload for workload in WORKLOADS.values() if not workload.is_long]
    groups = {workload.group for workload in WORKLOADS.values()}
    unknown = [name for name in only if name not in WORKLOADS and name not in groups]
    if unknown:
        raise LookupError(f"no workload {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")
    return [workload for workload in WORKLOADS.values() if {workload.name, workload.group} & set(only)]
