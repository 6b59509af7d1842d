"""A pool of connections to one node, or to whoever stands before some. Thread-safe: a request has its own connection.

What becomes of a request whose connection breaks:

- It was not sent whole, so that no node has executed it: it is sent again, on a new connection.
- It was sent and there is no answer: nobody knows whether it was executed. It is sent again if it only reads, or has an
  idempotency key; else, or when the second one gets no answer either, its outcome is unknown: RequestTimeout.

A connection that the node has closed meanwhile is noticed before it is used.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from enum import Enum
from threading import Lock
from time import monotonic

from progressor.errors import CannotConnect, RequestTimeout
from progressor.rpc.address import Address
from progressor.rpc.connection import LOST, Connection, HttpConnection, TcpConnection

ATTEMPTS = 2


class Effect(Enum):
    """What a request does when it is executed twice."""

    NONE = "it only reads"
    ONE = "its idempotency key sees to it that there is one"
    TWO = "there may be two"


class Channel:
    def __init__(
        self,
        address: Address,
        tls: ssl.SSLContext | None,
        secret: str | None,
        connect_timeout: float,
        idle: int,
        greet: Callable[[Connection], None],
    ) -> None:
        """`idle`: how many connections are kept that nobody uses. `greet` makes the first call of each connection."""
        self._address = address
        self._tls = tls
        self._secret = secret
        self._connect_timeout = connect_timeout
        self._most = idle
        self._greet = greet
        self._idle: list[Connection] = []
        self._lock = Lock()
        self._is_closed = False

    def exchange(self, message: bytes, seconds: float, effect: Effect) -> bytes:
        """The answer to a message, which comes within so many seconds.

        Raises CannotConnect: nothing was done; RequestTimeout: nobody knows; AccessDenied, UnexpectedAnswer.
        """
        deadline, was_sent = monotonic() + seconds, False
        for attempt in range(ATTEMPTS):
            connection = self._connection(is_new=attempt > 0, may_be_done=was_sent and effect is not Effect.NONE)
            try:
                connection.send(message)
                was_sent = True
                connection.socket.settimeout(max(0.001, deadline - monotonic()))
                answer = connection.receive()
            except TimeoutError as error:
                connection.close()
                raise RequestTimeout(f"timeout: no answer in {seconds:g} s, the outcome is unknown") from error
            except LOST as error:
                connection.close()
                failure: Exception = error
                if was_sent and effect is Effect.TWO:
                    break
            except BaseException:
                connection.close()
                raise
            else:
                self._give_back(connection)
                return answer
        if was_sent and effect is not Effect.NONE:
            raise _unknown(failure) from failure
        raise self._cannot_connect(failure) from failure

    def close(self) -> None:
        with self._lock:
            self._is_closed, idle, self._idle = True, self._idle, []
        for connection in idle:
            connection.close()

    def _connection(self, *, is_new: bool, may_be_done: bool) -> Connection:
        idle = None if is_new else self._take_idle()
        if idle is not None:
            idle.socket.settimeout(self._connect_timeout)
            return idle
        try:
            return self._connect()
        except CannotConnect as error:
            if may_be_done:
                raise _unknown(error) from error
            raise

    def _take_idle(self) -> Connection | None:
        """The one that was used last; those that the node has closed meanwhile are forgotten."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if connection.is_usable:
                return connection
            connection.close()

    def _give_back(self, connection: Connection) -> None:
        with self._lock:
            if not self._is_closed and len(self._idle) < self._most:
                self._idle.append(connection)
                return
        connection.close()

    def _connect(self) -> Connection:
        try:
            connection = self._open()
        except LOST as error:
            raise self._cannot_connect(error) from error
        try:
            self._greet(connection)
        except LOST as error:
            connection.close()
            raise self._cannot_connect(error) from error
        except BaseException:
            connection.close()
            raise
        return connection

    def _open(self) -> Connection:
        if self._address.is_http:
            return HttpConnection(self._address, self._tls, self._connect_timeout, self._secret)
        return TcpConnection(self._address, self._tls, self._connect_timeout)

    def _cannot_connect(self, error: Exception) -> CannotConnect:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return CannotConnect(f"{CannotConnect.text} to {self._address}: {reason}")


def _unknown(error: Exception) -> RequestTimeout:
    return RequestTimeout(f"timeout: the connection broke, the outcome is unknown: {error}")
