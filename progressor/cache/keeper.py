"""Looks after the caches of a database: what they may forget, and whether the stream still says everything.

PostgreSQL sends nothing, and says nothing, when a table has left its publication, and from version 18 on also when the
publication is gone. So somebody has to look.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any

import psycopg

from progressor.cache import publication, session
from progressor.cache.feed import Feed
from progressor.otp import Actor, Timer
from progressor.postgres import Connection

INTERVAL = 1.0
UNSEEN = 10.0
"""Seconds without a look after which the stream is not trusted any more."""


@dataclass(frozen=True, slots=True)
class Look:
    """Look after the caches."""


class CacheKeeper(Actor):
    """Of the caches of one database. `idle`: seconds after which a process that nobody reads is forgotten."""

    def __init__(self, conninfo: Mapping[str, Any], feed: Feed, idle: float, timer: Timer) -> None:
        super().__init__()
        self._conninfo = conninfo
        self._feed = feed
        self._idle = idle
        self._timer = timer
        self._connection: Connection | None = None
        self._forgot = self._seen = monotonic()

    def init(self) -> None:
        self._looks = self._timer.every(min(INTERVAL, self._idle / 2), self.ref, Look())

    def terminate(self, reason: Exception) -> None:
        self._looks.cancel()
        self._close()

    def handle(self, message: object) -> object:
        match message:
            case Look():
                self._forget()
                self._look()
            case _:
                return super().handle(message)
        return None

    def _forget(self) -> None:
        now = monotonic()
        if now - self._forgot >= self._idle / 10:
            self._forgot = now
            for cache in self._feed.caches.values():
                cache.forget(now - self._idle)

    def _look(self) -> None:
        if not self._feed.connected:
            self._close()
            self._seen = monotonic()
            return
        try:
            self._see()
        except psycopg.Error as error:
            self._close()
            if monotonic() - self._seen > UNSEEN:
                self._feed.broken = f"the database does not answer beside the stream: {error}"

    def _see(self) -> None:
        if self._connection is None:
            self._connection = session.connect(self._conninfo)
        missing = publication.incomplete(self._connection, list(self._feed.caches))
        if missing:
            self._feed.broken = f"not published any more: {', '.join(missing)}"
        seen = session.snapshot(self._connection)
        for cache in self._feed.caches.values():
            cache.confirm(seen)
        self._feed.behind = max(0, seen.lsn - self._feed.position)
        self._seen = monotonic()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
