"""Group commit: all that waits in the mailbox becomes one transaction.

Alone at low load, big batches under load; never a pause to fill one. An item that the database refuses, or fails at
again and again, must not fail the others: the batch is halved until the culprit stands alone. While the database is
away everything is held; a request fails when its deadline comes, a result is held as long as the lease is.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event
from time import monotonic
from typing import TypeAlias

from progressor.engine import lifecycle
from progressor.engine.callers import answer
from progressor.engine.directory import Directory, Role
from progressor.engine.lease import Lease, LeaseIsLost
from progressor.engine.messages import Accept, ClaimTasks, Committed, Complete, Publish, Settle
from progressor.engine.ports import Batch, BatchResult, Claim, Committer, Lost, Refused
from progressor.errors import LeaseLost, RequestTimeout, StorageError, StorageRejected, StorageUnavailable
from progressor.metrics import Metrics
from progressor.model import Answered
from progressor.otp import Actor

logger = logging.getLogger(__name__)

MAX_BATCH = 500
MAX_BYTES = 32 * 1024 * 1024
"""What the items of a batch have at most together; a larger one comes alone. PostgreSQL takes less than a gigabyte."""
TRIALS = 5
"""How often the database may fail at a batch, though it takes an empty one, before the batch is halved."""
PAUSES = (0.02, 0.05, 0.1, 0.2, 0.5)
"""Seconds between attempts to reach the database; the last one repeats."""

_UNKNOWN = "timeout: the database fails at this request, and nobody knows whether it was stored"

Item: TypeAlias = Accept | Complete | ClaimTasks


class Writer(Actor):
    """The one that commits, for all namespaces of a database."""

    def __init__(
        self,
        database: str,
        make_committer: Callable[[], Committer],
        lease: Lease,
        directory: Directory,
        metrics: Metrics,
    ) -> None:
        super().__init__()
        self._database = database
        self._make_committer = make_committer
        self._lease = lease
        self._directory = directory
        self._metrics = metrics

    def init(self) -> None:
        self._committer = self._make_committer()
        self._directory.enter(Role.WRITER, self._database, self.ref)

    def terminate(self, reason: Exception) -> None:
        self._committer.close()

    def handle(self, message: object) -> object:
        if isinstance(message, Settle):
            return None
        if not isinstance(message, Item):
            return super().handle(message)
        items: list[Item] = [message, *self.drain(MAX_BATCH - 1)]  # type: ignore[list-item]
        self._lease.writing_since = monotonic()
        while items:
            now, items = _next_batch(items)
            self._commit(now)
        self._lease.writing_since = None
        return None

    def _commit(self, items: Sequence[Item], *, again: bool = False, is_part: bool = False) -> None:
        """Commits the items, and does not return before each has its fate. `is_part`: the database failed at more."""
        attempt = failures = 0
        while True:
            items = self._without_hopeless(items, again=again)
            if not items:
                return
            epoch = self._lease.epoch
            try:
                self._report(items, self._transact(epoch, items, again=again))
                return
            except StorageUnavailable as error:
                logger.warning("%d items wait: %s", len(items), error)
                again = again or self._committer.in_doubt
                failures += self._committer.is_suspect and self._takes_others(epoch)
                if failures >= (1 if is_part and len(items) > 1 else TRIALS):
                    self._isolate(items, error, again=again)
                    return
            except LeaseLost:
                self._directory.cast(Role.LEASE, self._database, LeaseIsLost(epoch))
            except StorageRejected as error:
                if again or not self._committer.in_doubt:
                    self._isolate(items, error, again=again)
                    return
                logger.warning("%d items were committed, but the answer cannot be read: %s", len(items), error)
                again = True
            Event().wait(PAUSES[min(attempt, len(PAUSES) - 1)])
            attempt += 1

    def _takes_others(self, epoch: int) -> bool:
        """Whether the database is there, and commits what is no trouble."""
        try:
            self._committer.commit(epoch, {}, again=False)
        except StorageError:
            return False
        return True

    def _transact(self, epoch: int, items: Sequence[Item], *, again: bool) -> Mapping[str, BatchResult]:
        batches = {ns: group.batch() for ns, group in _by_namespace(items).items()}
        started = monotonic()
        results = self._committer.commit(epoch, batches, again=again)
        self._metrics.committed(len(items), monotonic() - started)
        return results

    def _without_hopeless(self, items: Sequence[Item], *, again: bool) -> Sequence[Item]:
        """Ends the items that cannot succeed any more; the others."""
        stopping = self.ref.stop_reason is not None
        hopeful: list[Item] = []
        hopeless: list[Item] = []
        for item in items:
            (hopeless if stopping or self._is_hopeless(item, again=again) else hopeful).append(item)
        if hopeless:
            self._drop(hopeless, again=again)
        return hopeful

    def _is_hopeless(self, item: Item, *, again: bool) -> bool:
        """What was sent before may have begun: it must be heard of, even if its caller has given up."""
        match item:
            case Accept():
                return not again and item.deadline < monotonic()
            case Complete():
                return item.completion.task.owner != self._lease.epoch
            case ClaimTasks():
                return not again and not self._lease.is_valid

    def _drop(self, items: Sequence[Item], *, again: bool) -> None:
        unavailable = StorageUnavailable() if not again else RequestTimeout()
        for ns, group in _by_namespace(items).items():
            self._tell(
                ns,
                Committed(
                    accepted=[(accept, Refused(unavailable)) for accept in group.accepts],
                    completed=[(complete, Lost(None)) for complete in group.completes],
                    claimed=[(claim, None) for claim in group.claims],
                ),
            )

    def _isolate(self, items: Sequence[Item], error: StorageError, *, again: bool) -> None:
        if len(items) > 1:
            middle = len(items) // 2
            self._commit(items[:middle], again=again, is_part=True)
            self._commit(items[middle:], again=again, is_part=True)
            return
        refused, is_known = error, not self._committer.in_doubt
        if not isinstance(error, StorageRejected):
            refused, is_known = StorageRejected(f"{StorageRejected.text}: {error}"), False
        logger.error("refused by the database: %s", refused)
        match items[0]:
            case Accept(ns) as accept:
                self._tell(
                    ns, Committed(accepted=[(accept, Refused(refused if is_known else RequestTimeout(_UNKNOWN)))])
                )
            case Complete(ns, completion) as complete if not lifecycle.is_refusal(completion):
                self._commit([Complete(ns, lifecycle.refuse(completion, str(refused)), complete.sent)], again=again)
            case Complete(ns) as complete:
                self._tell(ns, Committed(completed=[(complete, Lost(None))]))
            case ClaimTasks(ns, claims):
                self._tell(ns, Committed(claimed=[(claim, None) for claim in claims]))

    def _report(self, items: Sequence[Item], results: Mapping[str, BatchResult]) -> None:
        for ns, group in _by_namespace(items).items():
            result = results[ns]
            self._tell(
                ns,
                Committed(
                    list(zip(group.accepts, result.requests, strict=True)),
                    list(zip(group.completes, result.completions, strict=True)),
                    list(zip(group.claims, result.claims, strict=True)),
                    result.ended,
                ),
            )
            self._directory.nudge(Role.NOTIFIER, ns, Publish())

    def _tell(self, ns: str, committed: Committed) -> None:
        if not self._directory.cast(Role.SCHEDULER, ns, committed):
            for accept, _ in committed.accepted:  # it is being restarted; what it misses becomes a zombie
                answer(accept.future, Refused(RequestTimeout()))


@dataclass(slots=True)
class _Group:
    """The items of a batch that belong to one namespace."""

    accepts: list[Accept] = field(default_factory=list)
    completes: list[Complete] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)

    def add(self, item: Item) -> None:
        match item:
            case Complete():
                self.completes.append(item)
            case Accept():
                self.accepts.append(item)
            case ClaimTasks():
                self.claims.extend(item.claims)

    def batch(self) -> Batch:
        return Batch(
            [accept.request for accept in self.accepts],
            [complete.completion for complete in self.completes],
            self.claims,
        )


def _by_namespace(items: Iterable[Item]) -> Mapping[str, _Group]:
    groups: defaultdict[str, _Group] = defaultdict(_Group)
    for item in items:
        groups[item.ns].add(item)
    return groups


def _next_batch(items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """Those that one transaction can take, and those that must come after it: it takes one completion for each process,
    and MAX_BYTES, or a single item."""
    now: list[Item] = []
    later: list[Item] = []
    seen: set[tuple[str, str]] = set()
    size = 0
    for place, item in enumerate(items):
        if isinstance(item, Complete):
            process = (item.ns, item.completion.task.process_id)
            if process in seen:
                later.append(item)
                continue
            seen.add(process)
        size += _size(item)
        if size > MAX_BYTES and now:
            return now, [*later, *items[place:]]
        now.append(item)
    return now, later


def _size(item: Item) -> int:
    """Bytes of what can be large."""
    if isinstance(item, Accept):
        return len(item.request.args) + len(item.request.context)
    if isinstance(item, ClaimTasks):
        return 0
    completion, timer = item.completion, item.completion.timer
    size = len(completion.aux_state or b"") + len(timer.args) + len(timer.context)
    if isinstance(completion.answer, Answered):
        size += len(completion.answer.response or b"")
    for event in completion.events:
        size += len(event.payload)
    return size
