"""Publishes the outbox of a namespace: one node in the cluster does, the others stand ready.

It reads a portion, gives it to the publisher, waits for the broker's word, deletes what was acknowledged, and begins
anew as long as there is something. The writer of its node wakes it after a commit, for the commits of others it looks
now and then. While the broker is away it tries again, ever more rarely, and everything stays where it is: no step
waits for it, and it keeps nothing in memory but the portion at hand (docs/adr/0008-outbox.md).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from threading import Event as Flag
from time import monotonic

from progressor.engine.directory import Directory, Role
from progressor.engine.lease import Lease
from progressor.engine.messages import Publish, Settle
from progressor.engine.ports import Backlog, Notice, Outbox, Published, Publisher, Unpublished
from progressor.errors import StorageError
from progressor.metrics import NamespaceMetrics
from progressor.otp import Actor, Timer

logger = logging.getLogger(__name__)

POLL = 0.5
STAND_BY = 1.0
"""Seconds between attempts to become the publisher."""
JITTER = 0.2
LOOK = 1.0
"""Seconds between looks at how much there is."""
HANGS = 15.0
"""Seconds without a look: longer than a publication takes that ends in an outage."""
PAUSES = (0.5, 1.0, 2.0, 5.0)
"""Seconds between attempts to publish; the last one repeats."""


NOTHING = Backlog(0, 0.0, 0, 0)


class Standing:
    """What the rest of the node sees of a notifier, which alone writes it."""

    def __init__(self) -> None:
        self.leads = False
        """Whether this node is the one that publishes."""
        self.backlog = NOTHING
        """As long as it leads; else nothing."""
        self.looked = float("-inf")
        self.trouble: str | None = None
        """Why nothing is published."""

    def retire(self) -> None:
        self.leads, self.backlog = False, NOTHING

    @property
    def age(self) -> float:
        """Seconds that the oldest message has been waiting; of a notifier that hangs, as long as it may have been."""
        since = monotonic() - self.looked
        return self.backlog.age + since if self.leads and (self.backlog.depth or since > HANGS) else 0.0


class Notifier(Actor):
    """`stop` ends a publication under way: it is set when the node stops."""

    def __init__(
        self,
        ns: str,
        outbox: Outbox,
        publisher: Publisher,
        lease: Lease,
        standing: Standing,
        stop: Flag,
        directory: Directory,
        timer: Timer,
        metrics: NamespaceMetrics,
    ) -> None:
        super().__init__()
        self._ns = ns
        self._outbox = outbox
        self._publisher = publisher
        self._lease = lease
        self._standing = standing
        self._halt = stop
        self._directory = directory
        self._timer = timer
        self._metrics = metrics
        self._lead_again = 0.0
        self._publish_again = 0.0
        self._failures = 0

    def init(self) -> None:
        self._directory.enter(Role.NOTIFIER, self._ns, self.ref)
        self._polls = self._timer.every(POLL, self.ref, Publish(), JITTER)
        self.ref.cast(Publish())

    def terminate(self, reason: Exception) -> None:
        self._polls.cancel()
        self._standing.retire()
        self._publisher.close()
        self._outbox.close()

    def handle(self, message: object) -> object:
        match message:
            case Publish():
                self._try_to(lambda: self._publish(math.inf))
            case Settle():
                self._try_to(lambda: self._publish(self._outbox.backlog().depth))
            case _:
                return super().handle(message)
        return None

    def _try_to(self, publish: Callable[[], None]) -> None:
        """Neither a broker, nor a bug in talking to one, is a reason to restart anything."""
        if monotonic() < self._lead_again:
            return
        try:
            if self._lead():
                self._look_now_and_then()
                if monotonic() >= self._publish_again:
                    publish()
        except StorageError as error:
            self._lead_again = self._fails(str(error))
            self._standing.retire()
        except Exception as error:
            logger.exception("%s: publishing failed", self._ns)
            self._fails(f"{type(error).__name__}: {error}")

    def _lead(self) -> bool:
        leads = self._lease.epoch != 0 and self._outbox.lead(self._lease.epoch)
        if leads and not self._standing.leads:
            logger.info("%s: this node publishes", self._ns)
            self._standing.looked = float("-inf")
            self._look_now_and_then()
            self._standing.leads = True
        if not leads:
            self._retire()
            self._lead_again = monotonic() + STAND_BY
        return leads

    def _retire(self) -> None:
        """Another node publishes, so what troubled this one is over."""
        self._standing.retire()
        self._standing.trouble = None
        self._failures = 0

    def _publish(self, most: float) -> None:
        """Until nothing is left, or nothing goes any more; or so many that nobody waits for the others."""
        while most > 0 and (ended := self._publish_portion()):
            most -= ended

    def _publish_portion(self) -> int:
        """How many messages were sent or refused; 0 when it is not worth going on."""
        unpublished = self._outbox.read()
        self._look_now_and_then()
        if not unpublished.messages:
            self._succeeds()
            return 0
        started = monotonic()
        published = self._publisher.publish(unpublished.messages, self._halt)
        self._outbox.settle(published)
        self._count(unpublished, published, monotonic() - started)
        if published.unavailable is not None:
            self._fails(published.unavailable)
            return 0
        if self._halt.is_set() or self.ref.stop_reason is not None:
            return 0
        self._succeeds()
        return len(published.sent) + len(published.refused)

    def _look_now_and_then(self) -> None:
        if monotonic() >= self._standing.looked + LOOK:
            self._standing.backlog = self._outbox.backlog()
            self._standing.looked = monotonic()

    def _fails(self, trouble: str) -> float:
        """One line for an outage, however long: the health of the node has the reason of the moment.

        Answers when to try again.
        """
        if self._standing.trouble is None:
            logger.warning("%s: nothing is published: %s", self._ns, trouble)
        self._standing.trouble = trouble
        self._metrics.publication_failed()
        self._publish_again = monotonic() + PAUSES[min(self._failures, len(PAUSES) - 1)]
        self._failures += 1
        return self._publish_again

    def _succeeds(self) -> None:
        if self._standing.trouble is not None:
            logger.warning("%s: messages are published again", self._ns)
        self._standing.trouble = None
        self._failures = 0

    def _count(self, unpublished: Unpublished, published: Published, seconds: float) -> None:
        sent = set(published.sent)
        events = sum(m.notice is Notice.EVENT for m in unpublished.messages if m.message_id in sent)
        self._metrics.published(events, len(sent) - events, seconds, unpublished.waited)
        for message in unpublished.messages if published.refused else ():
            if message.message_id in published.refused:
                self._metrics.parked()
                logger.error(
                    "%s: message %d of process %s can never be published: %s",
                    self._ns,
                    message.message_id,
                    message.process_id,
                    published.refused[message.message_id],
                )
