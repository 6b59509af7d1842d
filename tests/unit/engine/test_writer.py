"""Batches: what goes together, and what becomes of one that the database fails at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import count
from queue import SimpleQueue
from threading import Event as Flag
from typing import Any, TypeAlias

import pytest

from progressor.engine import lifecycle
from progressor.engine.directory import Directory, Role
from progressor.engine.messages import Accept, Committed, Complete
from progressor.engine.ports import Batch, BatchResult, Completed, Completion, Refused, Request
from progressor.engine.writer import MAX_BYTES, TRIALS, Writer
from progressor.errors import RequestTimeout, StorageRejected, StorageUnavailable
from progressor.metrics import Metrics
from progressor.model import Answered, Event, Intent, Op, now
from progressor.otp import Ref, start_root
from tests.unit.engine.shop import DATABASE, NS, PATIENCE, POLICY, Watched, claimed, listening

POISON = b"poison"
Fail: TypeAlias = "Callable[[Fragile], Exception | None]"
NUMBERS = count(1)


class Fragile:
    """A committer of a database that fails at what holds the poison, and takes the rest."""

    def __init__(self, fail: Fail) -> None:
        self.in_doubt = self.is_suspect = False
        self.stored: list[str] = []
        self.details: dict[str, str] = {}
        self.batches: list[int] = []
        self.again: list[bool] = []
        self.begins = Flag()
        self._fail = fail

    def commit(self, epoch: int, batches: Mapping[str, Batch], *, again: bool) -> Mapping[str, BatchResult]:
        assert self.begins.wait(PATIENCE)
        self.in_doubt = self.is_suspect = False
        batch = batches.get(NS, Batch())
        error = self._fail(self) if _is_poisoned(batch) else None
        if error is not None:
            raise error
        self.batches.append(_size(batch))
        self.again += [again] * len(batch.requests)
        self.stored += [r.process_id for r in batch.requests] + [c.task.process_id for c in batch.completions]
        self.details |= {c.task.process_id: c.process.detail for c in batch.completions if c.process.detail}
        return {
            NS: BatchResult([Answered(None) for _ in batch.requests], [Completed() for _ in batch.completions], [], [])
        }

    def close(self) -> None: ...


def _is_poisoned(batch: Batch) -> bool:
    payloads = [event.payload for completion in batch.completions for event in completion.events]
    return POISON in payloads or POISON in [request.args for request in batch.requests]


def _size(batch: Batch) -> int:
    payloads = sum(len(event.payload) for completion in batch.completions for event in completion.events)
    return payloads + sum(len(request.args) for request in batch.requests)


def _breaks(committer: Fragile) -> Exception:
    """The connection breaks over it, each time."""
    committer.in_doubt = committer.is_suspect = True
    return StorageUnavailable("broken")


def _is_unreadable(committer: Fragile) -> Exception:
    """It is committed, and what comes back cannot be read."""
    committer.in_doubt = True
    return StorageRejected("unreadable")


def _rejects(committer: Fragile) -> Exception:
    return StorageRejected("rejected")


class Station:
    """A writer, and all that it tells the scheduler."""

    def __init__(self, committer: Fragile, writer: Ref, heard: SimpleQueue[Any]) -> None:
        self.committer = committer
        self._writer = writer
        self._heard = heard

    def send(self, items: Sequence[Accept | Complete]) -> None:
        """As far as possible in one batch, begun when all wait."""
        for item in items:
            self._writer.cast(item)
        self.committer.begins.set()

    def fates(self, number: int) -> dict[str, Any]:
        """What became of so many items, by their processes."""
        found: dict[str, Any] = {}
        while len(found) < number:
            committed = self._heard.get(timeout=PATIENCE)
            assert isinstance(committed, Committed)
            found |= {accept.request.process_id: answer for accept, answer in committed.accepted}
            found |= {complete.completion.task.process_id: fate for complete, fate in committed.completed}
        return found


@contextmanager
def _station(fail: Fail) -> Iterator[Station]:
    committer, directory = Fragile(fail), Directory()
    with listening(directory, Role.SCHEDULER, NS) as heard:
        writer = start_root(
            lambda: Writer(DATABASE, lambda: committer, Watched(), directory, Metrics()), on_exit=lambda _: None
        )
        yield Station(committer, writer, heard)
        writer.stop(PATIENCE)


def _accept(process_id: str, args: bytes = b"") -> Accept:
    request = Request(Op.CALL, process_id, args, b"", None, None, next(NUMBERS))
    return Accept(NS, request, Future(), deadline=float("inf"))


def _completion(process_id: str, payload: bytes = b"") -> Completion:
    return lifecycle.decide(claimed(process_id), Intent([Event(payload)]), POLICY, now(), next(NUMBERS))


def _others(number: int) -> list[Accept | Complete]:
    names = [f"p{n}" for n in range(number)]
    return [_accept(name) if n % 2 else Complete(NS, _completion(name)) for n, name in enumerate(names)]


@pytest.mark.parametrize("place", [0, 13, 40])
@pytest.mark.parametrize(("fail", "error"), [(_breaks, RequestTimeout), (_rejects, StorageRejected)])
def test_a_request_that_the_database_fails_at_is_refused_alone(place: int, fail: Fail, error: type[Exception]) -> None:
    others = _others(40)
    with _station(fail) as station:
        station.send([*others[:place], _accept("culprit", POISON), *others[place:]])
        fates = station.fates(41)
    culprit = fates.pop("culprit")
    assert isinstance(culprit, Refused)
    assert type(culprit.error) is error
    assert sorted(station.committer.stored) == sorted(fates)
    assert not any(isinstance(fate, Refused) for fate in fates.values())


def test_a_step_that_the_database_fails_at_is_a_defect() -> None:
    with _station(_breaks) as station:
        station.send([*_others(10), Complete(NS, _completion("culprit", POISON))])
        fates = station.fates(11)
    assert fates["culprit"] == Completed()
    assert sorted(station.committer.stored) == sorted(fates)
    assert station.committer.details == {"culprit": "storage refuses the data: broken"}


def test_what_may_have_been_stored_is_sent_again() -> None:
    """Else a request without a key would be done twice."""
    with _station(_is_unreadable) as station:
        station.send([_accept("p"), _accept("q"), Complete(NS, _completion("culprit", POISON))])
        station.fates(3)
    assert all(station.committer.again)
    assert len(station.committer.again) == 2


def test_a_batch_that_is_not_to_blame_is_held() -> None:
    """While the disk is full, say: nothing is refused, and all is stored when there is room."""
    failures = iter(range(TRIALS + 2))

    def is_full(committer: Fragile) -> Exception | None:
        committer.in_doubt = next(failures, None) is not None
        return StorageUnavailable("full") if committer.in_doubt else None

    with _station(is_full) as station:
        station.send([_accept("p", POISON)])
        assert station.fates(1) == {"p": Answered(None)}


def test_a_batch_is_bounded_by_bytes() -> None:
    large = [Complete(NS, _completion(f"p{n}", b"x" * (MAX_BYTES // 3))) for n in range(7)]
    with _station(_rejects) as station:
        station.send([_accept("giant", b"x" * 2 * MAX_BYTES), *large, _accept("p"), _accept("q")])
        station.fates(10)
    sizes = station.committer.batches
    assert [size for size in sizes if size > MAX_BYTES] == [2 * MAX_BYTES]
    assert sum(sizes) == 2 * MAX_BYTES + 7 * (MAX_BYTES // 3)
    assert len(station.committer.stored) == 10


def test_requests_keep_their_order_when_a_batch_is_full() -> None:
    requests = [_accept(f"p{n}", b"x" * (MAX_BYTES // 3)) for n in range(7)]
    with _station(_rejects) as station:
        station.send(requests)
        station.fates(7)
    assert station.committer.stored == [f"p{n}" for n in range(7)]
