"""A workshop without a database: what a worker and its pool need, and the actors that they tell of their work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from math import inf
from queue import SimpleQueue
from threading import Event as Flag
from typing import Any, cast

from progressor.config import RetryPolicy
from progressor.engine.directory import Directory, Role
from progressor.engine.history import Histories
from progressor.engine.lease import Lease
from progressor.engine.ports import Claimed, Storage, Task
from progressor.engine.ready import ReadyQueue
from progressor.engine.tokens import Tokens
from progressor.engine.worker import Workshop
from progressor.metrics import Metrics
from progressor.model import Event, Process, Range, TaskType
from progressor.otp import Actor, Exit, start_root
from progressor.processor import Processor

NS = "a/b"
DATABASE = "db"
EPOCH = 5
PATIENCE = 10
"""Seconds."""
POLICY = RetryPolicy(3600, 1, 3600, 3, frozenset())
AT = datetime(2026, 1, 1, tzinfo=UTC)


class Listener(Actor):
    """Keeps what it is told, in `heard`."""

    def __init__(self, heard: SimpleQueue[Any]) -> None:
        super().__init__()
        self._heard = heard

    def handle(self, message: object) -> object:
        self._heard.put(message)
        return None


@contextmanager
def listening(directory: Directory, role: Role, owner: str) -> Iterator[SimpleQueue[Any]]:
    """Somebody plays the role; what that is told."""
    heard: SimpleQueue[Any] = SimpleQueue()
    ref = start_root(lambda: Listener(heard), on_exit=_ignore)
    directory.enter(role, owner, ref)
    try:
        yield heard
    finally:
        ref.stop(PATIENCE)


def _ignore(_: Exit) -> None: ...


class NoEvents:
    """As much of a storage as a step needs, of a database in which no process has any event."""

    def events(self, ns: str, process_id: str, range: Range) -> Sequence[Event]:
        return []


class Watched(Lease):
    """A lease that does not run out by itself, and knows how often it was asked whether it is valid."""

    def __init__(self) -> None:
        super().__init__(timeout=3600)
        self.epoch, self.renewed, self.looks = EPOCH, inf, 0

    @property
    def is_valid(self) -> bool:
        self.looks += 1
        return super().is_valid


def workshop(processor: Processor, storage: NoEvents | None = None, step_timeout: float = 3600) -> Workshop:
    lease = Watched()
    return Workshop(
        ns=NS,
        database=DATABASE,
        processor=processor,
        policy=POLICY,
        step_timeout=step_timeout,
        storage=cast("Storage", storage or NoEvents()),
        lease=lease,
        stop=Flag(),
        directory=Directory(),
        histories=Histories(1_000_000),
        ready=ReadyQueue(lambda: lease.is_valid),
        tokens=Tokens(),
        metrics=Metrics().namespace(NS),
    )


def claimed(
    process_id: str = "p", task_type: TaskType = TaskType.CALL, *, last_event_id: int = 0, **process: Any
) -> Claimed:
    task = Task(process_id, 7, task_type, b"", b"", None, AT, 0, EPOCH, 1)
    return Claimed(task, Process(process_id, last_event_id=last_event_id, created_at=AT, **process))
