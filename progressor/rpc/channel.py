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

    def exchange(self, message: bytes, seconds: float, effect: Effect) -> tuple[bytes, bool]:
        """The answer to a message, which comes within so many seconds; and whether it is the answer to the second one,
        while the first may have been executed.

        Raises CannotConnect: nothing was done; RequestTimeout: nobody knows; AccessDenied, InvalidRequest,
        UnexpectedAnswer.
        """
        deadline, may_be_done = monotonic() + seconds, False
        failure: Exception
        for is_last in (False, True):
            try:
                return self._attempt(message, deadline, is_new=is_last), may_be_done
            except _Lost as lost:
                failure = lost
                may_be_done |= lost.was_sent and effect is not Effect.NONE
                if may_be_done and effect is Effect.TWO:
                    break
            except CannotConnect as error:
                if not may_be_done:
                    raise
                failure = error
        if may_be_done:
            raise RequestTimeout(f"timeout: the connection broke, the outcome is unknown: {failure}") from failure
        raise self._cannot_connect(failure) from failure

    def close(self) -> None:
        with self._lock:
            self._is_closed, idle, self._idle = True, self._idle, []
        for connection in idle:
            connection.close()

    def _attempt(self, message: bytes, deadline: float, *, is_new: bool) -> bytes:
        """Raises _Lost, and as `exchange`."""
        connection = (None if is_new else self._take_idle()) or self._connect()
        connection.deadline, was_sent = deadline, False
        try:
            was_sent = connection.send(message)
            answer = connection.receive()
        except LOST as error:
            connection.close()
            if was_sent and isinstance(error, TimeoutError):
                raise RequestTimeout("timeout: no answer in time, the outcome is unknown") from error
            raise _Lost(_reason(error), was_sent=was_sent) from error
        except BaseException:
            connection.close()
            raise
        if was_sent:
            self._give_back(connection)
        else:
            connection.close()
        return answer

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
        connection.deadline = monotonic() + self._connect_timeout
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
        return CannotConnect(f"{CannotConnect.text} to {self._address}: {_reason(error)}")


class _Lost(Exception):
    """The connection broke."""

    def __init__(self, reason: str, *, was_sent: bool) -> None:
        super().__init__(reason)
        self.was_sent = was_sent
        """Whether the whole of the request was."""


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
