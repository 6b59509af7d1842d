"""Takes over what others left: tasks of dead nodes, and tasks that nobody looks after any more."""

from __future__ import annotations

import logging
from collections.abc import Collection
from threading import Event as Flag
from time import monotonic

from progressor.config import RetryPolicy
from progressor.engine import lifecycle
from progressor.engine.directory import Directory, Role
from progressor.engine.lease import Lease
from progressor.engine.messages import CollectZombies, KnownTokens, TakenOver
from progressor.engine.ports import Claimed, Completion, Storage
from progressor.engine.tokens import Tokens
from progressor.errors import StorageError
from progressor.metrics import NamespaceMetrics
from progressor.model import TaskType, now
from progressor.otp import Actor, ActorDead, CallTimeout, Timer

logger = logging.getLogger(__name__)

PAGE = 200
JITTER = 0.2
PATIENCE = 10.0
NEVER = 1e9
"""Seconds."""
ROUNDS = 4
"""In the time after which a task is stale. A round refreshes what has reached half of that time, so the next one must
come in the other half, jitter and all."""


def pause(scan_timeout: float, stale: float) -> float:
    """Seconds from one round to the next, without the jitter."""
    return min(scan_timeout, stale / ROUNDS)


class ZombieCollector(Actor):
    """`stale`: seconds after which a running task is a zombie whoever owns it. `stop`: as of `Scanner`."""

    def __init__(
        self,
        *,
        ns: str,
        storage: Storage,
        policy: RetryPolicy,
        interrupted: Collection[TaskType],
        stale: float,
        scan_timeout: float,
        lease: Lease,
        stop: Flag,
        directory: Directory,
        tokens: Tokens,
        timer: Timer,
        metrics: NamespaceMetrics,
    ) -> None:
        super().__init__()
        self._ns = ns
        self._storage = storage
        self._policy = policy
        self._interrupted = interrupted
        self._stale = stale
        self._pause = pause(scan_timeout, stale)
        self._lease = lease
        self._halt = stop
        self._directory = directory
        self._tokens = tokens
        self._timer = timer
        self._metrics = metrics

    def init(self) -> None:
        self._directory.enter(Role.ZOMBIE_COLLECTOR, self._ns, self.ref)
        self._rounds = self._timer.every(self._pause, self.ref, CollectZombies(), JITTER)
        self.ref.cast(CollectZombies())

    def terminate(self, reason: Exception) -> None:
        self._rounds.cancel()

    def handle(self, message: object) -> object:
        match message:
            case CollectZombies():
                self._collect()
            case _:
                return super().handle(message)
        return None

    def _unheard_since(self) -> float:
        """Since when the writer may have begun tasks of which the scheduler knows nothing. To be asked before the
        scheduler is."""
        since = self._lease.writing_since
        return monotonic() if since is None else since

    def _collect(self) -> None:
        started = monotonic()
        try:
            while self._take_page() == PAGE:
                pass
        except (StorageError, ActorDead, CallTimeout) as error:
            if not self._halt.is_set():
                logger.warning("%s: zombies were not collected: %s", self._ns, error)
        self._metrics.zombies_collected(monotonic() - started)

    def _take_page(self) -> int:
        scheduler = self._directory.find(Role.SCHEDULER, self._ns)
        if scheduler is None:
            return 0
        unheard, stale, epoch = self._unheard_since(), self._stale, self._lease.epoch
        known = scheduler.call(KnownTokens(), PATIENCE)
        grace = self._lease.timeout + monotonic() - unheard  # its answer may have come long after it was made
        tokens = [self._tokens.next() for _ in range(PAGE)]
        if monotonic() - self._lease.broken < stale:
            # The database was away: the others need time to say what they look after, and this node says it here.
            self._storage.take_over(self._ns, epoch, stale, grace, known, [])
            stale = NEVER
        taken = self._storage.take_over(self._ns, epoch, stale, grace, known, tokens)
        again: list[Claimed] = []
        ended: list[Completion] = []
        for claimed in taken:
            fate = lifecycle.recover(claimed, self._policy, self._interrupted, now(), self._tokens.next())
            (again if isinstance(fate, Claimed) else ended).append(fate)  # type: ignore[arg-type]
            logger.warning(
                "task %d (%s) of %s was left by its node: %s",
                claimed.task.task_id,
                claimed.task.task_type,
                claimed.task.process_id,
                "runs again" if isinstance(fate, Claimed) else "failed",
            )
        if taken:
            self._metrics.zombies(len(taken))
            scheduler.cast(TakenOver(again, ended))
        return len(taken)
