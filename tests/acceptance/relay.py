"""What may lie between a client and a node: it hands frames on, and can lose one, or what is behind it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum, auto
from threading import Thread

from tests.acceptance.frames import frame, read_frame


class Loss(Enum):
    REQUEST = auto()
    """The node never hears of it."""
    ANSWER = auto()
    """The node has answered; the client never hears of it."""


class Relay:
    """Loses requests, or their answers, when it is told to."""

    def __init__(self, node_url: str) -> None:
        host, port = node_url.removeprefix("thrift://").split(":")
        self._node = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[Thread] = []
        self._connections: list[socket.socket] = []
        self.losses: list[tuple[bytes, Loss]] = []
        self.connections = 0
        self._accepting = Thread(target=self._accept)
        self._accepting.start()

    @property
    def url(self) -> str:
        return f"thrift://127.0.0.1:{self._listener.getsockname()[1]}"

    def lose(self, marked: bytes, loss: Loss) -> None:
        """The next request in which `marked` stands."""
        self.losses.append((marked, loss))

    def cut(self) -> None:
        """Ends the connections of now."""
        for connection in tuple(self._connections):  # those who are cut off may be back at once
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        self.cut()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                self._connections.append(client)
                self._threads.append(Thread(target=self._serve, args=(client,)))
                self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError, EOFError), client, socket.create_connection(self._node) as node:
            while True:
                request = read_frame(client)
                loss = self._take_loss(request)
                if loss is Loss.REQUEST:
                    return
                node.sendall(frame(request))
                answer = read_frame(node)
                if loss is Loss.ANSWER:
                    return
                client.sendall(frame(answer))

    def _take_loss(self, request: bytes) -> Loss | None:
        for rule in self.losses:
            if rule[0] in request:
                self.losses.remove(rule)
                return rule[1]
        return None


@contextmanager
def relaying(node_url: str) -> Iterator[Relay]:
    relay = Relay(node_url)
    try:
        yield relay
    finally:
        relay.close()
