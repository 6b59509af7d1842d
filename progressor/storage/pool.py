"""Connections of one database for one purpose.

psycopg's pool hands a connection that comes back to the thread that has waited longest: fair, but each read then costs
a switch of threads, and fifty of them get half of what four get. Here threads queue at a gate in front of the pool, and
whoever is running may take the next turn; the pool itself is never asked for more than it has.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from threading import Lock
from time import monotonic
from typing import Any, TypeVar, cast

import psycopg
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool, PoolTimeout

from progressor.postgres import Connection, parameters
from progressor.storage import session

T = TypeVar("T")
PATIENCE = 10.0
"""Seconds to wait for a connection of a pool."""
RECONNECT_TIMEOUT = 5.0
"""Seconds of ever longer pauses between attempts to connect, then they begin anew: an outage leaves no long pause."""


class PooledConnection(psycopg.Connection[TupleRow]):
    """One whose statements can be given an end, even if the server is silent."""

    deadline: float | None = None
    """By the monotonic clock. What has not been answered by then is given up, and the connection with it."""

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **given: Any) -> T:
        """Here the driver waits for the network."""
        return super().wait(gen if self.deadline is None else self._until(self.deadline, gen), *args, **given)

    def _until(self, deadline: float, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        """The driver comes back ten times a second, with nothing if there is nothing."""
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if monotonic() >= deadline:
                    self.close()
                    raise psycopg.OperationalError("the server did not answer in time")
                wanted = gen.send(ready)
        except StopIteration as end:
            return cast("T", end.value)


class Pool:
    """At most `size` connections; it must be opened. Thread-safe."""

    def __init__(self, conninfo: Mapping[str, Any], size: int, name: str) -> None:
        self._name = name
        self._turns: SimpleQueue[None] = SimpleQueue()
        for _ in range(size):
            self._turns.put(None)
        self._lock = Lock()
        self._waiting = 0
        self._pool: ConnectionPool[PooledConnection] = ConnectionPool(
            connection_class=PooledConnection,
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
    def connection(self, timeout: float = PATIENCE, *, ends: bool = False) -> Iterator[Connection]:
        """Raises PoolTimeout when there is none within `timeout` seconds. With `ends`, a statement that has not been
        answered by then raises OperationalError."""
        deadline = monotonic() + timeout
        self._take_turn(timeout)
        try:
            with self._pool.connection(max(0.0, deadline - monotonic())) as connection:
                connection.deadline = deadline if ends else None
                try:
                    yield connection
                finally:
                    connection.deadline = None
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
