"""Accepts connections, and has their TLS handshakes done.

asyncio's own servers tell of a connection when its handshake has ended. Whoever connects and says nothing would cost
them a socket, uncounted; here a connection is counted and bounded from its first moment, and a handshake has its time.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from prometheus_client import Counter, Gauge

logger = logging.getLogger(__name__)

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
        protocol: Callable[[], asyncio.BaseProtocol],
        has_room: Callable[[int], bool],
        open_: Gauge,
        refused: Counter,
    ) -> None:
        """`listener` does not block. `patience`: seconds for a handshake, and for the end of TLS. `protocol` makes one
        for each connection.

        `has_room` is asked whether there may be another one, beside so many whose handshakes are under way. Those are
        counted in `open_` meanwhile; in `refused` what does not come to the end of its handshake.
        """
        self._listener = listener
        self._has_room = has_room
        self._open = open_
        self._refused = refused
        self._handshakes: dict[int, asyncio.Task[Any]] = {}
        """By the numbers of their files."""
        self._loop = asyncio.get_running_loop()
        seconds = None if context is None else patience
        self._shake_hands: Callable[[socket.socket], Coroutine[Any, Any, Any]] = partial(
            self._loop.connect_accepted_socket,
            protocol,
            ssl=context,
            ssl_handshake_timeout=seconds,
            ssl_shutdown_timeout=seconds,
        )
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

    def arrived(self, connection: asyncio.StreamWriter) -> None:
        """From now on somebody else counts it: it is there some turns of the loop before its handshake has ended."""
        self._forget(connection.get_extra_info("socket").fileno())

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
        number = connection.fileno()
        handshake = self._handshakes[number] = self._loop.create_task(self._shake_hands(connection))
        self._open.inc()
        handshake.add_done_callback(partial(self._end, connection, number))

    def _forget(self, number: int) -> None:
        if self._handshakes.pop(number, None) is not None:
            self._open.dec()

    def _end(self, connection: socket.socket, number: int, handshake: asyncio.Task[Any]) -> None:
        if self._handshakes.get(number) is handshake:  # else it has arrived, and the number may be another one's
            self._forget(number)
        if handshake.cancelled():
            connection.close()
        elif (error := handshake.exception()) is not None:  # of TLS, of the network, or it took too long
            connection.close()
            self._refused.inc()
            if not isinstance(error, OSError):
                logger.error("cannot serve a connection", exc_info=error)
