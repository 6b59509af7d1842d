"""Connections of one database for one purpose.

psycopg's pool hands a connection that comes back to the thread that has waited longest: fair, but each read then costs
a switch of threads, and fifty of them get half of what four get. Here threads queue at a gate in front of the pool, and
whoever is running may take the next turn; the pool itself is never asked for more than it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from threading import Lock
from time import monotonic
from typing import Any

from psycopg_pool import ConnectionPool, PoolTimeout

from progressor.postgres import Connection, parameters
from progressor.storage import session

PATIENCE = 10.0
"""Seconds to wait for a connection of a pool."""
RECONNECT_TIMEOUT = 5.0
"""Seconds of ever longer pauses between attempts to connect, then they begin anew: an outage leaves no long pause."""


class Pool:
    """At most `size` connections; it must be opened. Thread-safe."""

    def __init__(self, conninfo: Mapping[str, Any], size: int, name: str) -> None:
        self._name = name
        self._turns: SimpleQueue[None] = SimpleQueue()
        for _ in range(size):
            self._turns.put(None)
        self._lock = Lock()
        self._waiting = 0
        self._pool: ConnectionPool[Connection] = ConnectionPool(
            kwargs={**parameters(conninfo, application_name=f"progressor {name}"), "autocommit": True},
            min_size=1,
            max_size=size,
            name=name,
            open=False,
            reconnect_timeout=RECONNECT_TIMEOUT,
            configure=session.prepare,
        )

    def open(self) -> None:
        self._pool.open()

    def close(self) -> None:
        """Whoever waits gets PoolClosed."""
        self._pool.close()
        self._turns.put(None)  # one who waits takes it, fails, and passes it on

    def check(self) -> None:
        """Replaces connections that are dead."""
        self._pool.check()

    @contextmanager
    def connection(self, timeout: float = PATIENCE) -> Iterator[Connection]:
        """Raises PoolTimeout when there is none within `timeout` seconds."""
        deadline = monotonic() + timeout
        self._take_turn(timeout)
        try:
            with self._pool.connection(max(0.0, deadline - monotonic())) as connection:
                yield connection
        finally:
            self._turns.put(None)

    def figures(self) -> Mapping[str, int]:
        """How many connections are free, busy and waited for."""
        stats = self._pool.get_stats()
        free = stats.get("pool_available", 0)
        return {"free": free, "busy": stats.get("pool_size", 0) - free, "waited_for": self._waiting}

    def _take_turn(self, timeout: float) -> None:
        try:
            self._turns.get_nowait()
        except Empty:
            self._wait_for_turn(timeout)

    def _wait_for_turn(self, timeout: float) -> None:
        self._count(1)
        try:
            self._turns.get(timeout=max(0.0, timeout))
        except Empty:
            raise PoolTimeout(f"couldn't get a connection of {self._name!r} after {timeout:.2f} sec") from None
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._lock:
            self._waiting += change
