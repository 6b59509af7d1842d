"""The right of a node to run tasks: a row in the database that it keeps alive (docs/adr/0004-leases.md).

Each start of a node gets an epoch of its own. The row is renewed every `heartbeat_interval` for `lease_timeout`
seconds, by the database's clock. A node whose row has expired is declared dead by another one, which deletes the
row; from then on nothing that the dead node sends is committed. Only who has itself renewed without a break for
`lease_timeout` may do so: after an outage of the database everybody's row has expired, and nobody is dead.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import monotonic

from progressor.engine.directory import Directory, Role
from progressor.engine.messages import CollectZombies, LeaseReplaced, WakeUp
from progressor.engine.ports import LeaseStore, Peer
from progressor.errors import StorageError
from progressor.otp import Actor, Timer

logger = logging.getLogger(__name__)


class Lease:
    """What the other actors see of it. Written by the keeper only, but for `writing_since`."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.epoch = 0
        self.renewed = float("-inf")
        self.broken = float("-inf")
        """When a renewal failed or came late last."""
        self.writing_since: float | None = None
        """Since when the writer has a batch in its hands: tasks begun by it are not known to the scheduler yet."""

        self.peers: Sequence[Peer] = ()
        """All nodes, as they were when the lease was renewed."""

    @property
    def is_valid(self) -> bool:
        """Whether no other node can have been allowed to take over, as far as this one knows."""
        return monotonic() < self.renewed + self.timeout

    @property
    def age(self) -> float:
        """Seconds since it was renewed last."""
        return monotonic() - self.renewed


@dataclass(frozen=True, slots=True)
class Beat:
    """Renew the lease."""


@dataclass(frozen=True, slots=True)
class LeaseIsLost:
    """The database no longer trusts this epoch."""

    epoch: int


class LeaseKeeper(Actor):
    """Keeps the lease of this node in one database."""

    def __init__(
        self,
        *,
        database: str,
        node_name: str,
        namespaces: Iterable[str],
        lease: Lease,
        store: LeaseStore,
        interval: float,
        directory: Directory,
        timer: Timer,
    ) -> None:
        super().__init__()
        self._database = database
        self._node_name = node_name
        self._namespaces = tuple(namespaces)
        self._lease = lease
        self._store = store
        self._interval = interval
        self._directory = directory
        self._timer = timer
        self._unbroken_since = monotonic()

    def init(self) -> None:
        self._directory.enter(Role.LEASE, self._database, self.ref)
        if not self._lease.epoch:
            self._acquire()
        self._beats = self._timer.every(self._interval, self.ref, Beat())

    def handle(self, message: object) -> object:
        match message:
            case Beat():
                self._beat()
            case LeaseIsLost(epoch):
                if epoch == self._lease.epoch:
                    self._beat()
            case _:
                return super().handle(message)
        return None

    def terminate(self, reason: Exception) -> None:
        self._beats.cancel()
        try:
            self._store.give_up(self._lease.epoch)
        except StorageError as error:
            logger.warning("the lease ends by itself: %s", error)
        self._lease.renewed = float("-inf")
        self._lease.epoch = 0
        self._store.close()

    def _acquire(self) -> None:
        started = monotonic()
        self._lease.epoch = self._store.acquire(self._node_name, self._lease.timeout)
        self._lease.renewed = self._unbroken_since = started
        logger.info("epoch %d on database %s", self._lease.epoch, self._database)
        self._tell(Role.SCHEDULER, LeaseReplaced())
        self._tell(Role.ZOMBIE_COLLECTOR, CollectZombies())

    def _beat(self) -> None:
        try:
            self._renew()
        except StorageError as error:
            self._unbroken_since = self._lease.broken = monotonic()
            logger.warning("the lease was not renewed: %s", error)

    def _renew(self) -> None:
        """A renewal that comes late breaks the row of renewals as a failed one does: what held it up (a database
        that stalled, a machine that slept) has held up the others too, and they are not dead. Late by which clock does
        not matter: that of this machine stands still while it sleeps, that of the database may be set."""
        before, started = self._lease.renewed, monotonic()
        left = self._store.renew(self._lease.epoch, self._lease.timeout)
        if left is None:
            logger.warning("epoch %d was declared dead by another node", self._lease.epoch)
            self._acquire()
            return
        self._lease.renewed = started
        if min(left, before + self._lease.timeout - monotonic()) <= self._interval:
            self._unbroken_since = self._lease.broken = monotonic()
            self._tell(Role.SCHEDULER, WakeUp())
        elif started - self._unbroken_since >= self._lease.timeout:
            self._bury()
        self._lease.peers = self._store.peers()

    def _bury(self) -> None:
        dead = self._store.bury(self._lease.epoch)
        if dead:
            logger.warning("declared dead: epochs %s", ", ".join(map(str, dead)))
            self._tell(Role.ZOMBIE_COLLECTOR, CollectZombies())

    def _tell(self, role: Role, message: object) -> None:
        for ns in self._namespaces:
            self._directory.cast(role, ns, message)
