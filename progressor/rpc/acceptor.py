"""Accepts connections, and has their TLS handshakes done.

asyncio's own servers tell of a connection when its handshake has ended. Whoever connects and says nothing would cost
them a socket, uncounted; here a connection is counted and bounded from its first moment, and a handshake has its time.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any, TypeAlias

from prometheus_client import Counter, Gauge

logger = logging.getLogger(__name__)

MakeProtocol: TypeAlias = Callable[[Callable[[], None]], asyncio.BaseProtocol]
"""Makes the protocol of a connection. What it is given it calls in `connection_made`, as it begins to count itself."""
PORTION = 32
"""Connections that are accepted before others on the loop have their turn."""
PAUSE = 1.0
"""Seconds until the next attempt when the system has no more files or memory."""


class Acceptor:
    """Lives on the running event loop, from its making to `close`."""

    def __init__(
        self,
        listener: socket.socket,
        context: ssl.SSLContext | None,
        patience: float,
        protocol: MakeProtocol,
        has_room: Callable[[int], bool],
        open_: Gauge,
        refused: Counter,
    ) -> None:
        """`listener` does not block. `patience`: seconds for a handshake, and for the end of TLS.

        `has_room` is asked whether there may be another one, beside so many whose handshakes are under way. Those are
        counted in `open_` meanwhile; in `refused` what does not come to the end of its handshake.
        """
        self._listener = listener
        self._context = context
        self._patience = None if context is None else patience
        self._protocol = protocol
        self._has_room = has_room
        self._open = open_
        self._refused = refused
        self._handshakes: dict[int, asyncio.Task[Any]] = {}
        self._numbers = count()
        self._loop = asyncio.get_running_loop()
        self._is_closed = False
        self._resume()

    def close(self) -> None:
        """Accepts nothing more, and ends the connections whose handshakes are under way."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for handshake in self._handshakes.values():
            handshake.cancel()

    def _resume(self) -> None:
        if not self._is_closed:
            self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(PORTION):
            try:
                connection, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                logger.warning("cannot accept connections for a moment: %s", error.strerror)
                self._loop.remove_reader(self._listener)
                self._loop.call_later(PAUSE, self._resume)
                return
            if not self._has_room(len(self._handshakes)):
                connection.close()
                continue
            self._begin(connection)

    def _begin(self, connection: socket.socket) -> None:
        """Over plain TCP the handshake is nothing."""
        number = next(self._numbers)
        handshake = self._handshakes[number] = self._loop.create_task(
            self._loop.connect_accepted_socket(
                partial(self._protocol, partial(self._forget, number)),
                connection,
                ssl=self._context,
                ssl_handshake_timeout=self._patience,
                ssl_shutdown_timeout=self._patience,
            )
        )
        self._open.inc()
        handshake.add_done_callback(partial(self._end, connection, number))

    def _forget(self, number: int) -> None:
        """Somebody else counts it, some turns of the loop before the task has ended; or it came to nothing."""
        if self._handshakes.pop(number, None) is not None:
            self._open.dec()

    def _end(self, connection: socket.socket, number: int, handshake: asyncio.Task[Any]) -> None:
        self._forget(number)
        if handshake.cancelled():
            connection.close()
        elif (error := handshake.exception()) is not None:  # of TLS, of the network, or it took too long
            connection.close()
            self._refused.inc()
            if not isinstance(error, OSError):
                logger.error("cannot serve a connection", exc_info=error)
