"""Looks into the database for what this node cannot know by itself.

Timers that are due, or will be before the next look, whoever set them; calls that wait although their process
runs nothing; answers to callers of this node that another node has stored.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from threading import Event as Flag
from time import monotonic

from progressor.engine.directory import Directory, Role
from progressor.engine.lease import Lease
from progressor.engine.messages import Announced, Expect, HandBack, OpenTasks, Results, ScanCalls, ScanTimers, Settle
from progressor.engine.ports import Hint, Storage, Task
from progressor.errors import StorageError
from progressor.metrics import NamespaceMetrics
from progressor.otp import Actor, ActorDead, CallTimeout, Timer

logger = logging.getLogger(__name__)

PAGE = 5000
JITTER = 0.2
PATIENCE = 10.0
"""Seconds to wait for the scheduler."""


class Scanner(Actor):
    """`stop` is set before the node closes the storage."""

    def __init__(
        self,
        *,
        ns: str,
        storage: Storage,
        task_interval: float,
        call_interval: float,
        lease: Lease,
        stop: Flag,
        directory: Directory,
        timer: Timer,
        metrics: NamespaceMetrics,
    ) -> None:
        super().__init__()
        self._ns = ns
        self._storage = storage
        self._task_interval = task_interval
        self._call_interval = call_interval
        self._lease = lease
        self._halt = stop
        self._directory = directory
        self._timer = timer
        self._metrics = metrics

    def init(self) -> None:
        self._directory.enter(Role.SCANNER, self._ns, self.ref)
        self._scans = (
            self._timer.every(self._task_interval, self.ref, ScanTimers(), JITTER),
            self._timer.every(self._call_interval, self.ref, ScanCalls(), JITTER),
        )
        self.ref.cast(ScanTimers())
        self.ref.cast(ScanCalls())

    def terminate(self, reason: Exception) -> None:
        for scan in self._scans:
            scan.cancel()

    def handle(self, message: object) -> object:
        look: Callable[[], None]
        match message:
            case ScanTimers():
                look = self._scan_timers
            case ScanCalls():
                look = self._scan_calls
            case Announced(tasks):
                look = lambda: self._fetch(tasks)  # noqa: E731
            case HandBack(tasks=released):
                look = lambda: self._hand_back(released)  # noqa: E731
            case Settle():
                return None
            case _:
                return super().handle(message)
        try:
            look()
        except (StorageError, ActorDead, CallTimeout) as error:
            if not self._halt.is_set():
                logger.warning("%s: %s failed: %s", self._ns, type(message).__name__, error)
        return None

    def _scan_timers(self) -> None:
        started = monotonic()
        last: Hint | None = None
        while True:
            page = self._storage.upcoming(self._ns, 2 * self._task_interval, last, PAGE)
            if not (page and self._expect(page) and len(page) == PAGE):
                break
            last = page[-1]
        self._metrics.timers_scanned(monotonic() - started)

    def _scan_calls(self) -> None:
        started = monotonic()
        calls = self._storage.waiting_calls(self._ns, PAGE)
        if calls:
            self._expect(calls)
        self._metrics.calls_scanned(monotonic() - started)
        scheduler = self._directory.find(Role.SCHEDULER, self._ns)
        if scheduler is not None:
            self._fetch(scheduler.call(OpenTasks(), PATIENCE))

    def _expect(self, hints: Sequence[Hint]) -> bool:
        scheduler = self._directory.find(Role.SCHEDULER, self._ns)
        return scheduler is not None and scheduler.call(Expect(hints), PATIENCE)

    def _fetch(self, tasks: Sequence[int]) -> None:
        if tasks:
            results = self._storage.results(self._ns, tasks)
            self._directory.cast(Role.SCHEDULER, self._ns, Results(results, tasks))

    def _hand_back(self, tasks: Sequence[Task]) -> None:
        self._storage.release(self._ns, self._lease.epoch, tasks)
