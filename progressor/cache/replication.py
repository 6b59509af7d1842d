"""Follows the WAL of a database, and tells the caches what each transaction did.

Nothing that goes wrong here makes the actor die: whatever it is, the caches are emptied, readers go to the database,
and it connects again after a pause. A death would do the same without the pause, and count against the restarts of the
tree.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from progressor.cache import prerequisites, publication, session
from progressor.cache.feed import Feed
from progressor.cache.stream import LOOK, Stream, StreamLost
from progressor.cache.transaction import Transaction
from progressor.errors import CacheUnavailable
from progressor.otp import Actor, Timer, TimerHandle
from progressor.postgres import EPOCH, Connection

logger = logging.getLogger(__name__)

_END_PREDECESSOR = """
select pg_terminate_backend(active_pid, 2000) from pg_replication_slots where slot_name = %s and active"""


@dataclass(frozen=True, slots=True)
class Connect:
    """Begin to follow."""


@dataclass(frozen=True, slots=True)
class Receive:
    """Take one look, then go on."""


class Replication(Actor):
    """Of one database. `pause`: seconds before it connects again."""

    def __init__(self, conninfo: Mapping[str, Any], feed: Feed, pause: float, timer: Timer) -> None:
        super().__init__()
        self._conninfo = conninfo
        self._feed = feed
        self._pause = pause
        self._timer = timer
        self._stream: Stream | None = None
        self._slot = ""
        self._later: TimerHandle | None = None

    def init(self) -> None:
        self.ref.cast(Connect())

    def terminate(self, reason: Exception) -> None:
        if self._later is not None:
            self._later.cancel()
        self._feed.disconnect("stopped")
        self._close()

    def handle(self, message: object) -> object:
        match message:
            case Connect():
                self._try(self._connect)
            case Receive():
                self._try(self._receive)
            case _:
                return super().handle(message)
        return None

    def _try(self, what: Callable[[], object]) -> None:
        try:
            what()
        except (psycopg.Error, StreamLost, CacheUnavailable) as error:
            self._lost((str(error).strip() or type(error).__name__).splitlines()[0])
        except Exception as error:
            logger.exception("following the WAL failed")
            self._lost(repr(error))
        else:
            self.ref.cast(Receive())

    def _connect(self) -> None:
        namespaces = list(self._feed.caches)
        with session.connect(self._conninfo) as connection:
            self._end_predecessor(connection)
            prerequisites.check(connection)
            publication.ensure(connection, namespaces)
            self._slot = f"progressor_{secrets.token_hex(8)}"
            self._stream = Stream(
                self._conninfo,
                self._slot,
                [publication.name(ns) for ns in namespaces],
                lambda: self.ref.stop_reason is not None,
            )
            self._feed.position = self._stream.position
            self._feed.connect(session.snapshot(connection))
        logger.info("the caches of %s follow the WAL", ", ".join(namespaces))

    def _end_predecessor(self, connection: Connection) -> None:
        """A connection that was lost here may live on at the server, with its slot."""
        if self._slot:
            connection.execute(_END_PREDECESSOR, [self._slot])

    def _receive(self) -> None:
        if self._stream is None:
            return
        for transaction in self._stream.receive(LOOK):
            self._apply(transaction)
            self._feed.position = transaction.end
            committed = EPOCH + timedelta(microseconds=transaction.at)
            self._feed.delay = max(0.0, (datetime.now(UTC) - committed).total_seconds())
        self._feed.position = self._stream.position
        if self._feed.broken is not None:
            raise StreamLost(self._feed.broken)

    def _apply(self, transaction: Transaction) -> None:
        caches = self._feed.caches
        for ns in transaction.emptied & caches.keys():
            caches[ns].empty(transaction.mark)
        for ns in transaction.changes.keys() & caches.keys():
            caches[ns].apply(transaction.mark, transaction.changes[ns])

    def _lost(self, problem: str) -> None:
        if self.ref.stop_reason is not None:
            return
        if self._feed.connected or self._feed.problem != problem:
            logger.warning("reads of %s go to the database: %s", ", ".join(self._feed.caches), problem)
        self._feed.disconnect(problem)
        self._close()
        self._feed.reconnects += 1
        self._later = self._timer.send_after(self._pause, self.ref, Connect())

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
