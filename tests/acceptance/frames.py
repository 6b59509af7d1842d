"""Thrift's frames: a length of four bytes, and a message."""

from __future__ import annotations

import socket


def frame(message: bytes) -> bytes:
    return len(message).to_bytes(4, "big") + message


def read_frame(connection: socket.socket) -> bytes:
    """The message of the next frame. Raises EOFError when the connection ends before."""
    return _exactly(connection, int.from_bytes(_exactly(connection, 4), "big"))


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data
