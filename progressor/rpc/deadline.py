"""Sockets until a deadline.

The timeout of a socket holds for each look at it, so that a peer that sends a byte at a time has as long as it likes.
"""

from __future__ import annotations

import http.client
import io
import socket
from time import monotonic
from typing import Any

LONGEST = 1e6
"""Seconds that a socket can wait: more does not fit."""


def until(deadline: float, sock: socket.socket) -> socket.socket:
    """The socket; its next operation ends at the deadline, a time of the monotonic clock. Raises TimeoutError."""
    left = deadline - monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    sock.settimeout(min(left, LONGEST))
    return sock


def responses(deadline: float) -> Any:
    """For the `response_class` of an HTTPConnection: what makes responses that are read until the deadline, from their
    first byte to their last."""

    def response(sock: socket.socket, *arguments: Any, **more: Any) -> http.client.HTTPResponse:
        reading: Any = _Reading(sock, deadline)
        return http.client.HTTPResponse(reading, *arguments, **more)

    return response


class _Reading:
    """As much of a socket as an HTTPResponse needs."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._socket = sock
        self._deadline = deadline

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Raw(self._socket, self._deadline))


class _Raw(io.RawIOBase):
    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._socket = sock
        self._deadline = deadline
        self._file = sock.makefile("rb", buffering=0)  # keeps the socket open until it has been read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        until(self._deadline, self._socket)
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()
