"""One step at a time: read the process, run the processor, decide, hand the result to the writer, be free.

A worker does not wait for the commit. When its step outlives the deadline the pool abandons it: the step goes on
in its thread, which nothing can stop, but its result is fenced, and the worker ends with it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from threading import Event, Lock
from time import monotonic

from progressor.config import RetryPolicy
from progressor.engine import lifecycle
from progressor.engine.directory import Directory, Role
from progressor.engine.history import Histories, History
from progressor.engine.lease import Lease
from progressor.engine.messages import Complete, Run, WorkerIdle
from progressor.engine.ports import Claimed, Completion, Storage
from progressor.engine.tokens import Tokens
from progressor.errors import ProcessorError, StorageError, TransientError
from progressor.metrics import NamespaceMetrics
from progressor.model import Intent, Range, StepRequest, TaskType, now
from progressor.otp import Actor
from progressor.processor import Processor

logger = logging.getLogger(__name__)

LOAD_PAUSE = 0.2
"""Seconds between attempts to read a process while the database is away."""


@dataclass(frozen=True, slots=True)
class Workshop:
    """What all workers of a namespace share."""

    ns: str
    database: str
    processor: Processor
    policy: RetryPolicy
    storage: Storage
    lease: Lease
    directory: Directory
    histories: Histories
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
        self._report()

    def handle(self, message: object) -> object:
        match message:
            case Run(claimed):
                self._run(claimed)
            case _:
                return super().handle(message)
        return None

    def _run(self, claimed: Claimed) -> None:
        loaded = self._load(claimed)
        if loaded is not None:
            completion = self._step(loaded)
            self._shop.directory.cast(Role.WRITER, self._shop.database, Complete(self._shop.ns, completion))
            with self._bench.lock:
                self._bench.claimed = None
        if self._bench.abandoned:
            self.exit()
        else:
            self._report()

    def _report(self) -> None:
        self._shop.directory.cast(Role.SCHEDULER, self._shop.ns, WorkerIdle(self.ref))

    def _step(self, claimed: Claimed) -> Completion:
        shop, bench = self._shop, self._bench
        with bench.lock:
            bench.claimed, bench.started = claimed, monotonic()
        result = self._process(claimed)
        shop.metrics.processed(claimed.task.task_type, monotonic() - bench.started)
        return lifecycle.decide(claimed, result, shop.policy, now(), shop.tokens.next())

    def _process(self, claimed: Claimed) -> Intent | lifecycle.Failure:
        task = claimed.task
        if task.task_type is TaskType.REMOVE:
            return lifecycle.REMOVED
        request = StepRequest(
            task.task_type, task.args, claimed.process, self._shop.ns, task.task_id, task.attempts + 1
        )
        try:
            result: object = self._shop.processor(request, task.context)
        except BaseException as error:  # whatever a processor does, its worker lives
            return failure(error)
        return lifecycle.checked(result)

    def _load(self, claimed: Claimed) -> Claimed | None:
        """The task with its process and history; None when the lease was lost before the database answered."""
        shop = self._shop
        while claimed.task.owner == shop.lease.epoch:
            try:
                return load(claimed, shop.storage, shop.ns, shop.histories)
            except StorageError as error:
                logger.warning("process %s: %s", claimed.task.process_id, error)
                Event().wait(LOAD_PAUSE)
        return None


def load(claimed: Claimed, storage: Storage, ns: str, histories: Histories) -> Claimed:
    """Reads what the memory does not have: the events that are missing there, or just the range of the task."""
    task, process = claimed.task, claimed.process
    range_ = task_range(claimed)
    history = claimed.history or histories.take(task.process_id)
    if history is not None and history.last_event_id > process.last_event_id:
        history = None  # of a process that was removed, and made again
    if history is None and range_ == Range():
        history = History()
    if history is None:
        events = storage.events(ns, task.process_id, range_)
    else:
        if history.last_event_id < process.last_event_id:
            history.extend(storage.events(ns, task.process_id, Range(offset=history.last_event_id)))
        events = history.slice(range_)
    broken = None
    if task.task_type is TaskType.REPAIR and process.corrupted_by is not None:
        broken = storage.broken_task(ns, process.corrupted_by)
    return replace(claimed, process=replace(process, history=events, range=range_), history=history, broken=broken)


def task_range(claimed: Claimed) -> Range:
    """The range that the caller gave; everything when there is none."""
    given = (claimed.task.metadata or {}).get("range")
    return Range(**given) if given else Range()


def failure(error: BaseException) -> lifecycle.Failure:
    """What an exception of a processor means (docs/design.md, "Failures")."""
    name = type(error).__name__
    match error:
        case TransientError():
            return lifecycle.Failure(lifecycle.Kind.TRANSIENT, error.reason, name)
        case ProcessorError():
            return lifecycle.Failure(lifecycle.Kind.BUSINESS, error.reason, name)
        case ConnectionError() | TimeoutError():
            return lifecycle.Failure(lifecycle.Kind.TRANSIENT, str(error) or name, name)
    logger.error("a processor failed", exc_info=error)
    return lifecycle.Failure(lifecycle.Kind.DEFECT, f"{name}: {error}" if str(error) else name, name)
