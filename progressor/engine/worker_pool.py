"""The workers of a namespace: always as many as configured that can work.

A step that outlives `process_step_timeout` is given up: its task fails with reason `timeout`, its worker is
abandoned and another one takes its place. A worker that dies is replaced too, and its step fails.
"""

from __future__ import annotations

import logging
from time import monotonic

from progressor.engine import lifecycle
from progressor.engine.directory import Directory, Role
from progressor.engine.messages import CheckDeadlines, Complete
from progressor.engine.ports import Claimed
from progressor.engine.worker import Bench, Worker, Workshop
from progressor.model import now
from progressor.otp import Actor, Exit, Ref, Timer

logger = logging.getLogger(__name__)

LONGEST_CHECK_INTERVAL = 0.25


class WorkerPool(Actor):
    def __init__(self, shop: Workshop, size: int, timer: Timer) -> None:
        super().__init__()
        self._shop = shop
        self._size = size
        self._timer = timer
        self._workers: dict[Ref, Bench] = {}

    def init(self) -> None:
        self._shop.ready.forget_workers()
        self._directory.enter(Role.WORKER_POOL, self._shop.ns, self.ref)
        for _ in range(self._size):
            self._hire()
        interval = min(LONGEST_CHECK_INTERVAL, self._shop.step_timeout / 5)
        self._checks = self._timer.every(interval, self.ref, CheckDeadlines())

    @property
    def _directory(self) -> Directory:
        return self._shop.directory

    def handle(self, message: object) -> object:
        match message:
            case CheckDeadlines():
                self._check_deadlines()
            case Exit(ref):
                self._replace(ref)
            case _:
                return super().handle(message)
        return None

    def terminate(self, reason: Exception) -> None:
        """The workers are asked to stop, but not waited for: a step may hang."""
        self._checks.cancel()

    def _hire(self) -> None:
        bench = Bench()
        ref = self.start_link(lambda: Worker(self._shop, bench), f"{self._shop.ns} worker")
        self._workers[ref] = bench

    def _check_deadlines(self) -> None:
        overdue = monotonic() - self._shop.step_timeout
        busy = 0
        for ref, bench in list(self._workers.items()):
            busy += bench.claimed is not None
            if bench.claimed is not None and bench.started < overdue:
                self._abandon(ref, bench, overdue)
        self._shop.ready.nudge()
        self._shop.metrics.workers(busy, len(self._workers) - busy)

    def _abandon(self, ref: Ref, bench: Bench, overdue: float) -> None:
        with bench.lock:
            claimed = bench.claimed
            if claimed is None or bench.started >= overdue:
                return  # it has just ended, and the worker may be at the next one
            bench.abandoned = True
        task = claimed.task
        logger.error("task %d of %s hangs, its worker is replaced", task.task_id, task.process_id)
        self._shop.metrics.hung()
        del self._workers[ref]
        self._fail(claimed, lifecycle.Failure(lifecycle.Kind.STEP_TIMEOUT, "timeout"))
        self._hire()

    def _replace(self, ref: Ref) -> None:
        bench = self._workers.pop(ref, None)
        if bench is None:
            return  # abandoned before
        if bench.claimed is not None:
            self._fail(bench.claimed, lifecycle.Failure(lifecycle.Kind.DEFECT, "worker died"))
        self._hire()

    def _fail(self, claimed: Claimed, failure: lifecycle.Failure) -> None:
        completion = lifecycle.decide(claimed, failure, self._shop.policy, now(), self._shop.tokens.next())
        self._directory.cast(Role.WRITER, self._shop.database, Complete(self._shop.ns, completion))
