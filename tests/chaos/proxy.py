"""A TCP proxy between a node and PostgreSQL that can do what networks do.

Connections are told apart by their application_name: `progressor writer`, `progressor lease`, `progressor listener`,
`progressor default_pool` ... Rules name the beginning of it; an empty name means all of them.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum, auto
from threading import Condition, Event, Thread

_ENCRYPTION_REQUESTS = (80877103, 80877104)
"""SSLRequest and GSSENCRequest (PostgreSQL manual, "Message Formats")."""
_PATIENCE = 0.2
_BIG = 32768

FIRST_OF_BATCH = b"progressor_hold_lease"
"""Until a session has sent this text it is being set up; from then on it sends nothing but batches."""
SYNC, FLUSH = b"S\0\0\0\x04", b"H\0\0\0\x04"
"""The end of a pipeline: at Sync the server commits."""
COMMIT = b"Q\0\0\0\x0bCOMMIT\0"
"""The end of any other transaction."""
IDLE = b"Z\0\0\0\x05I"
"""The server has committed."""


class Way(Enum):
    UP = auto()
    """From the node to the server."""
    DOWN = auto()


class Loss(Enum):
    """What happens to a connection when a transaction is committed."""

    ANSWER = auto()
    """The server has committed; the node never hears of it."""
    REQUEST = auto()
    """The server never hears of the wish to commit."""
    PATIENCE = auto()
    """The server has committed; the node hears of it after `thaw`."""
    VOICE = auto()
    """The server waits for the rest of the transaction; nothing more comes from the node until `thaw`."""


class Proxy:
    def __init__(self, server: tuple[str, int]) -> None:
        self._server = server
        self._changed = Condition()
        self._frozen: set[tuple[str, Way]] = set()
        self._refused: set[str] = set()
        self._losses: list[tuple[str, Loss]] = []
        self._deaf: set[str] = set()
        self._links: list[_Link] = []
        self._closed = False
        self.lost = Event()
        """Set when that which `lose` asked for has been done."""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._listener.settimeout(_PATIENCE)
        self.port: int = self._listener.getsockname()[1]
        self._thread = Thread(target=self._accept, name="proxy", daemon=True)
        self._thread.start()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._frozen.clear()
            self._changed.notify_all()
        self._thread.join()
        self._listener.close()
        for link in list(self._links):
            link.break_off()
        for link in list(self._links):
            link.join()

    # Rules

    def cut(self, name: str = "") -> int:
        """Breaks the connections of now; how many there were."""
        links = [link for link in self._links if link.name.startswith(name)]
        for link in links:
            link.break_off()
        return len(links)

    def refuse(self, name: str = "") -> None:
        """Breaks new connections at once."""
        self._refused.add(name)

    def accept(self, name: str = "") -> None:
        self._refused.discard(name)

    def freeze(self, name: str = "", *ways: Way) -> None:
        """Nothing gets through any more, but nothing breaks."""
        with self._changed:
            self._frozen |= {(name, way) for way in ways or tuple(Way)}

    def freeze_at_big_answer(self, name: str) -> None:
        """Lets a big answer come as far as the network's buffers are wide."""
        self._deaf.add(name)

    def thaw(self, name: str = "") -> None:
        with self._changed:
            self._deaf.clear()
            self._frozen = {(frozen, way) for frozen, way in self._frozen if not frozen.startswith(name)}
            self._changed.notify_all()

    def lose(self, name: str, loss: Loss) -> None:
        """Does this to the connection that commits next."""
        self.lost.clear()
        self._losses.append((name, loss))

    # For the links

    def is_refused(self, name: str) -> bool:
        return any(name.startswith(refused) for refused in self._refused)

    def look_at(self, name: str, answer: bytes) -> None:
        if len(answer) >= _BIG and any(name.startswith(deaf) for deaf in self._deaf):
            self.freeze(name, Way.DOWN)

    def wait_while_frozen(self, name: str, way: Way) -> None:
        with self._changed:
            while not self._closed and any(way is frozen and name.startswith(start) for start, frozen in self._frozen):
                self._changed.wait()

    def take_loss(self, name: str) -> Loss | None:
        for rule in self._losses:
            if name.startswith(rule[0]):
                self._losses.remove(rule)
                return rule[1]
        return None

    def forget(self, link: _Link) -> None:
        with suppress(ValueError):
            self._links.remove(link)

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            link = _Link(self, client, self._server)
            self._links.append(link)
            link.start()


class _Link:
    """One connection: a thread for each way."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: tuple[str, int]) -> None:
        self.name = ""
        self._proxy = proxy
        self._client = client
        self._address = server
        self._server: socket.socket | None = None
        self._swallow = False
        self._in_batches = False
        self._threads = [Thread(target=self._serve, daemon=True)]

    def start(self) -> None:
        self._threads[0].start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def break_off(self) -> None:
        for each in (self._client, self._server):
            if each is not None:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        try:
            self._client.settimeout(None)
            self._client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            packet = self._startup()
            if not packet or self._proxy.is_refused(self.name):
                return
            self._proxy.wait_while_frozen(self.name, Way.UP)
            self._server = socket.create_connection(self._address)
            self._server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._server.sendall(packet)
            down = Thread(target=self._pump_down, args=(self._server,), daemon=True)
            self._threads.append(down)
            down.start()
            self._pump_up(self._server)
            down.join()
        except OSError:
            pass
        finally:
            self.break_off()
            for each in (self._client, self._server):
                if each is not None:
                    each.close()
            self._proxy.forget(self)

    def _startup(self) -> bytes:
        """The packet that opens a session; wishes for encryption are declined."""
        while True:
            head = self._exactly(8)
            length, code = struct.unpack("!ii", head)
            if code not in _ENCRYPTION_REQUESTS:
                break
            self._client.sendall(b"N")
        body = self._exactly(length - 8)
        fields = iter(body.split(b"\0"))
        parameters = dict(zip(fields, fields, strict=False))
        self.name = parameters.get(b"application_name", b"").decode()
        return head + body

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._client.recv(size - len(data))
            if not more:
                raise ConnectionError
            data += more
        return data

    def _pump_up(self, server: socket.socket) -> None:
        with self._ending():
            tail = b""
            while data := self._client.recv(65536):
                self._proxy.wait_while_frozen(self.name, Way.UP)
                self._in_batches |= FIRST_OF_BATCH in tail + data
                batch = (tail + data).removesuffix(FLUSH)
                end = SYNC if self._in_batches else COMMIT
                if batch.endswith(end) and len(batch) > len(tail):
                    match self._proxy.take_loss(self.name):
                        case Loss.REQUEST:
                            server.sendall(batch[len(tail) : -len(end)])
                            self._proxy.lost.set()
                            return
                        case Loss.ANSWER:
                            self._swallow = True
                        case Loss.PATIENCE:
                            self._proxy.freeze(self.name, Way.DOWN)
                            self._proxy.lost.set()
                        case Loss.VOICE:
                            server.sendall(batch[len(tail) : -len(end)])
                            self._proxy.freeze("", Way.UP)
                            self._proxy.lost.set()
                            self._proxy.wait_while_frozen(self.name, Way.UP)
                            server.sendall(end)
                            continue
                tail = (tail + data)[-len(FIRST_OF_BATCH) :]
                server.sendall(data)

    def _pump_down(self, server: socket.socket) -> None:
        with self._ending():
            tail = b""
            while data := server.recv(65536):
                self._proxy.look_at(self.name, data)
                self._proxy.wait_while_frozen(self.name, Way.DOWN)
                if not self._swallow:
                    self._client.sendall(data)
                elif (tail + data).endswith(IDLE):
                    self._proxy.lost.set()
                    return
                tail = (tail + data)[-len(IDLE) :]

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """When one way ends, so does the other."""
        try:
            with suppress(OSError):
                yield
        finally:
            self.break_off()
