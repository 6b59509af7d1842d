"""One step at a time: read the process, run the processor, decide, hand the result to the writer, be free.

A worker does not wait for the commit. When its step outlives the deadline the pool abandons it: the step goes on
in its thread, which nothing can stop, but its result is fenced, and the worker ends with it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from threading import Event as Flag
from threading import Lock
from time import monotonic
from typing import TypeVar

from progressor.config import RetryPolicy
from progressor.engine import lifecycle
from progressor.engine.directory import Directory, Role
from progressor.engine.history import Given, Histories, History, Unread
from progressor.engine.lease import Lease
from progressor.engine.messages import Complete
from progressor.engine.ports import Claimed, Completion, Storage, Task
from progressor.engine.ready import ReadyQueue, Work
from progressor.engine.tokens import Tokens
from progressor.errors import LeaseLost, ProcessorError, StorageError, TransientError
from progressor.metadata import own
from progressor.metrics import NamespaceMetrics
from progressor.model import Direction, Event, Intent, Process, Range, StepRequest, TaskType, now
from progressor.otp import Actor
from progressor.processor import Processor

logger = logging.getLogger(__name__)
T = TypeVar("T")

EVERYTHING = Range()
PAUSE = 0.2
"""Seconds between attempts to read a process, and between looks at the lease, while the database is away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """What all workers of a namespace share."""

    ns: str
    database: str
    processor: Processor
    policy: RetryPolicy
    step_timeout: float
    storage: Storage
    lease: Lease
    stop: Flag
    """Set before the node closes the storage."""
    directory: Directory
    histories: Histories
    ready: ReadyQueue
    tokens: Tokens
    metrics: NamespaceMetrics


@dataclass(slots=True)
class Bench:
    """What a worker is doing, for the pool to see. `lock` decides who ends a step at its deadline."""

    lock: Lock = field(default_factory=Lock)
    claimed: Claimed | None = None
    started: float = 0.0
    abandoned: bool = False


class Worker(Actor):
    def __init__(self, shop: Workshop, bench: Bench) -> None:
        super().__init__()
        self._shop = shop
        self._bench = bench

    def init(self) -> None:
        self.ref.cast(Work())

    def handle(self, message: object) -> object:
        match message:
            case Work():
                self._work()
            case _:
                return super().handle(message)
        return None

    def _work(self) -> None:
        claimed = self._shop.ready.take(self.ref, woken=True)
        while claimed is not None:
            self._run(claimed)
            if self._bench.abandoned or self.ref.stop_reason is not None:
                self.exit()
                return
            claimed = self._shop.ready.take(self.ref, woken=False)

    def _run(self, claimed: Claimed) -> None:
        self._bench.started = math.inf  # first: what is seen with the time of another task would be given up for it
        self._bench.claimed = claimed
        loaded = self._load(claimed)
        if loaded is not None and self._may_begin(claimed):
            completion = self._step(*loaded)
            self._shop.directory.cast(Role.WRITER, self._shop.database, Complete(self._shop.ns, completion))
        with self._bench.lock:
            self._bench.claimed = None

    def _step(self, claimed: Claimed, process: Process) -> Completion:
        shop, bench = self._shop, self._bench
        with bench.lock:
            bench.claimed, bench.started = claimed, monotonic()
        result = self._process(claimed.task, process)
        shop.metrics.processed(claimed.task.task_type, monotonic() - bench.started)
        return lifecycle.decide(_remembering(claimed, process), result, shop.policy, now(), shop.tokens.next())

    def _process(self, task: Task, process: Process) -> Intent | lifecycle.Failure:
        if task.task_type is TaskType.REMOVE:
            return lifecycle.REMOVED
        deadline = now() + timedelta(seconds=self._shop.step_timeout)
        attempt = task.attempts + 1
        request = StepRequest(task.task_type, task.args, process, self._shop.ns, task.task_id, attempt, deadline)
        try:
            result: object = self._shop.processor(request, task.context)
        except BaseException as error:  # whatever a processor does, its worker lives
            return failure(error)
        return lifecycle.checked(result)

    def _load(self, claimed: Claimed) -> tuple[Claimed, Process] | None:
        """What `load` does; None when the lease was lost before the database answered."""
        shop = self._shop
        try:
            return self._patiently(
                claimed, lambda: load(claimed, shop.storage, shop.ns, shop.histories, partial(self._read, claimed))
            )
        except LeaseLost:
            return None

    def _may_begin(self, claimed: Claimed) -> bool:
        """Waits for the lease, which may have run out since the task was taken; False when it was replaced: another
        node runs the task."""
        lease = self._shop.lease
        while claimed.task.owner == lease.epoch:
            if lease.is_valid:
                return claimed.task.owner == lease.epoch
            Flag().wait(PAUSE)
        return False

    def _read(self, claimed: Claimed, range_: Range) -> Sequence[Event]:
        """Events that the step looks at. The time that this takes is not the processor's: its deadline stands still."""
        bench, storage, process_id = self._bench, self._shop.storage, claimed.task.process_id
        with bench.lock:
            spent = monotonic() - bench.started
            is_mine = bench.claimed is not None and bench.claimed.task is claimed.task
            if is_mine:
                bench.started = math.inf
        try:
            return self._patiently(claimed, lambda: storage.events(self._shop.ns, process_id, range_))
        finally:
            with bench.lock:
                if is_mine and bench.claimed is not None and bench.claimed.task is claimed.task:
                    bench.started = monotonic() - spent

    def _patiently(self, claimed: Claimed, read: Callable[[], T]) -> T:
        """Reads, and while the database is away tries again. Raises LeaseLost when the result would be in vain."""
        while claimed.task.owner == self._shop.lease.epoch:
            try:
                return read()
            except StorageError as error:
                if not self._shop.stop.is_set():
                    logger.warning("process %s: %s", claimed.task.process_id, error)
                Flag().wait(PAUSE)
        raise LeaseLost


def load(
    claimed: Claimed, storage: Storage, ns: str, histories: Histories, read: Callable[[Range], Sequence[Event]]
) -> tuple[Claimed, Process]:
    """The task with its history, and the process as its processor will see it: what that changes in it is not kept.

    Reads the events that the memory lacks at its end; those that it lacks at its beginning are read when looked at.
    """
    task, process = claimed.task, claimed.process
    range_ = task_range(claimed)
    history = _continued(histories.take(task.process_id), claimed, storage, ns)
    broken = None
    if task.task_type is TaskType.REPAIR and process.corrupted_by is not None:
        broken = storage.broken_task(ns, process.corrupted_by)
    seen = Process(
        process.process_id,
        process.status,
        process.detail,
        process.aux_state,
        None if process.metadata is None else own(process.metadata),
        Given(history.slice(range_, read)),
        process.last_event_id,
        range_,
        process.created_at,
        process.previous_status,
        process.status_changed_at,
        process.corrupted_by,
    )
    return Claimed(task, process, history, broken), seen


def _continued(history: History | None, claimed: Claimed, storage: Storage, ns: str) -> History:
    """The history up to the last event of its process; a new one when what is in memory is that of another process."""
    process = claimed.process
    if history is not None and history.created_at == process.created_at and _catches_up(history, claimed, storage, ns):
        return history
    return History(created_at=process.created_at, first=process.last_event_id)


def _catches_up(history: History, claimed: Claimed, storage: Storage, ns: str) -> bool:
    """False when it is of a process that was removed, and put again as of the same time: the events of that one were
    written by other tasks."""
    process = claimed.process
    missing = process.last_event_id - history.last_event_id
    if missing == 0:
        return not history.events or claimed.last_writer in (None, history.last_writer)
    if missing < 0:
        return False
    known = 1 if history.events else 0  # read once more, to see whether it is the same
    found = storage.events(ns, process.process_id, Range(offset=history.last_event_id - known))
    if known and (not found or found[0].task_id != history.last_writer):
        return False
    history.extend(found[known:])
    return True


def _remembering(claimed: Claimed, process: Process) -> Claimed:
    """The task with the whole history, if the step has read it."""
    seen = process.history.events if isinstance(process.history, Given) else None
    if process.range is EVERYTHING and isinstance(seen, Unread) and seen.events is not None:
        history = History(seen.events, claimed.process.created_at)
        return Claimed(claimed.task, claimed.process, history, claimed.broken)
    return claimed


def task_range(claimed: Claimed) -> Range:
    """The range that the caller gave; everything when there is none."""
    given = (claimed.task.metadata or {}).get("range")
    if not given:
        return EVERYTHING
    found = Range(given.get("offset"), given.get("limit"), given.get("direction", Direction.FORWARD))
    return EVERYTHING if found == EVERYTHING else found


def failure(error: BaseException) -> lifecycle.Failure:
    """What an exception of a processor means (docs/design.md, "Failures")."""
    name = type(error).__name__
    match error:
        case TransientError():
            return lifecycle.Failure(lifecycle.Kind.TRANSIENT, _reason(error), name)
        case ProcessorError():
            return lifecycle.Failure(lifecycle.Kind.BUSINESS, _reason(error), name)
        case ConnectionError() | TimeoutError():
            return lifecycle.Failure(lifecycle.Kind.TRANSIENT, _reason(error), name)
        case LeaseLost():
            pass  # it was reading its history: nobody will commit the result
        case _:
            logger.error("a processor failed", exc_info=error)
    reason = _reason(error)
    return lifecycle.Failure(lifecycle.Kind.DEFECT, name if reason == name else f"{name}: {reason}", name)


def _reason(error: BaseException) -> str:
    """The reason as text that the database can hold; the name of the class when there is none."""
    text = str(getattr(error, "reason", error)) or type(error).__name__
    return text.replace("\0", "").encode(errors="replace").decode()
