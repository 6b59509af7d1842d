"""When a step begins, and when it is given up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from math import inf
from queue import SimpleQueue
from threading import Event as Flag
from threading import Thread
from time import monotonic
from typing import Any

from progressor.engine.directory import Role
from progressor.engine.history import History
from progressor.engine.messages import CheckDeadlines, Complete
from progressor.engine.ports import Claimed
from progressor.engine.worker import Bench, Worker, Workshop
from progressor.engine.worker_pool import WorkerPool
from progressor.model import Event, Intent, Range, StepRequest
from progressor.otp import Timer
from tests.eventually import eventually
from tests.unit.engine.shop import AT, DATABASE, PATIENCE, NoEvents, Watched, claimed, listening, workshop


class Slow(NoEvents):
    """Holds a read, as an outage does."""

    def __init__(self) -> None:
        self.asked = Flag()
        self.answers = Flag()

    def events(self, ns: str, process_id: str, range: Range) -> Sequence[Event]:
        self.asked.set()
        assert self.answers.wait(PATIENCE)
        return [Event(b"e", event_id=1)]


class Counting:
    """A processor that counts its steps."""

    def __init__(self) -> None:
        self.steps = 0

    def __call__(self, request: StepRequest, context: bytes) -> Intent:
        self.steps += 1
        return Intent()


# The lease


@contextmanager
def _read_without_lease(processor: Counting) -> Iterator[tuple[Watched, SimpleQueue[Any], Thread]]:
    """A worker that has just read what its step needs, when the lease has run out meanwhile."""
    storage = Slow()
    shop = workshop(processor, storage)
    lease = shop.lease
    assert isinstance(lease, Watched)
    shop.histories.put("p", History(created_at=AT))
    with listening(shop.directory, Role.WRITER, DATABASE) as heard:
        worker = Thread(target=lambda: Worker(shop, Bench())._run(claimed(last_event_id=1)))
        worker.start()
        assert storage.asked.wait(PATIENCE)
        lease.renewed = -inf
        storage.answers.set()
        eventually(lambda: lease.looks or processor.steps)
        yield lease, heard, worker
        worker.join(PATIENCE)


def test_a_step_that_was_read_for_too_long_waits_for_the_lease() -> None:
    processor = Counting()
    with _read_without_lease(processor) as (lease, heard, _):
        assert processor.steps == 0
        lease.renewed = inf
        assert isinstance(heard.get(timeout=PATIENCE), Complete)
    assert processor.steps == 1


def test_a_step_does_not_begin_when_the_lease_was_replaced_while_it_was_read_for() -> None:
    processor = Counting()
    with _read_without_lease(processor) as (lease, heard, worker):
        lease.epoch += 1
        lease.renewed = inf
        worker.join(PATIENCE)
        assert heard.empty()
    assert processor.steps == 0


# The deadline


class LateLock:
    """The lock of a bench, had only when the worker has ended its step, and begun another one."""

    def __init__(self, bench: Bench, next_task: Claimed) -> None:
        self._bench = bench
        self._next = next_task

    def __enter__(self) -> None:
        self._bench.started, self._bench.claimed = inf, self._next

    def __exit__(self, *_: object) -> None: ...


def _given_up(shop: Workshop, bench: Bench) -> bool:
    """Whether a pool gives up what is on the bench."""
    with closing(Timer()) as timer, listening(shop.directory, Role.WRITER, DATABASE) as heard:
        pool = WorkerPool(shop, 1, timer)
        worker = Worker(shop, bench)
        pool._workers[worker.ref] = bench
        pool.handle(CheckDeadlines())
        for hired in pool._workers.keys() - {worker.ref}:
            hired.stop(PATIENCE)
        if bench.abandoned:
            assert isinstance(heard.get(timeout=PATIENCE), Complete)
        return bench.abandoned


def test_a_step_beyond_its_deadline_is_given_up() -> None:
    shop = workshop(Counting(), step_timeout=1)
    assert _given_up(shop, Bench(claimed=claimed(), started=monotonic() - 2))


def test_a_task_that_follows_one_beyond_its_deadline_is_not_given_up_for_it() -> None:
    shop = workshop(Counting(), step_timeout=1)
    bench = Bench(claimed=claimed("late"), started=monotonic() - 2)
    bench.lock = LateLock(bench, claimed("fresh"))  # type: ignore[assignment]
    assert not _given_up(shop, bench)
