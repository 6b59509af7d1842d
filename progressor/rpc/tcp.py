"""The TCP port: messages of Thrift in frames, a length of four bytes before each; one after the other on a connection.

One event loop in one thread, as that of the HTTP port. A client that sends half of a frame, garbage or a huge length,
or does not read its answers, costs its own connection only, and not for long.

A call that is larger than it may be is answered when its head is there. The rest is read and thrown away: a connection
that is closed with something unread takes the answer with it (RST, RFC 1122, 4.2.2.13).
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import ssl
import struct
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from threading import Thread
from typing import Protocol

import uvloop
from prometheus_client import Counter

from progressor.config import Limits, TlsConfig
from progressor.metrics import RequestMetrics
from progressor.otp import Actor
from progressor.rpc.acceptor import Acceptor
from progressor.rpc.access import Caller, peer_names
from progressor.rpc.codec import BEGINNING, DecodeError, head_size
from progressor.rpc.listener import PATIENCE, StopAccepting, Stopped, bound, own, tls_context

logger = logging.getLogger(__name__)

PORT = "thrift"
HEAD = struct.Struct(">i")

LONGEST_HEAD = 1024
PORTION = 64 * 1024
"""Bytes that are read, or written, at a time. TLS takes all that it is given, and does not tell what is unread."""


class Service(Protocol):
    """Both give the reply to a message, and raise DecodeError."""

    async def answer(self, message: bytes, caller: Caller) -> bytes:
        """Cancelled it may still reply."""

    def refusal(self, head: bytes, size: int, most: int, caller: Caller) -> bytes:
        """Of a message that is there up to its struct only, since it has more bytes than it may have."""


class TcpServer(Actor):
    """Serves a socket that listens, or an address."""

    def __init__(
        self,
        where: socket.socket | tuple[str, int],
        service: Service,
        announce: Callable[[tuple[str, int]], None],
        requests: RequestMetrics,
        tls: TlsConfig | None,
        limits: Limits,
    ) -> None:
        """A socket stays its owner's: it is open when the server has stopped."""
        super().__init__()
        self._where = where
        self._service = service
        self._announce = announce
        self._tls = tls
        self._limits = limits
        self._open = requests.connections(PORT)
        self._refused = requests.refused(PORT)
        self._acceptor: Acceptor | None = None
        self._connections: dict[_Connection, asyncio.Task[None]] = {}
        self._leaving = asyncio.Event()
        self._ending = asyncio.Event()

    def init(self) -> None:
        """Raises CannotListen and ConfigError."""
        context = None if self._tls is None else tls_context(self._tls)
        listener = own(self._where)
        self._loop = uvloop.new_event_loop()
        self._thread = Thread(target=self._run, args=(listener, context), name="thrift", daemon=True)
        self._thread.start()
        self._announce(bound(listener))

    def handle(self, message: object) -> object:
        if not isinstance(message, StopAccepting):
            return super().handle(message)
        asyncio.run_coroutine_threadsafe(self._leave(), self._loop).result(PATIENCE)
        return None

    def terminate(self, reason: Exception) -> None:
        """Requests in flight get their answers, or after a while hear that their outcome is unknown."""
        with suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()

    def _run(self, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve(listener, context))
        finally:
            listener.close()
            if not self._ending.is_set():
                self.ref.cast(Stopped())

    async def _serve(self, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        patience = self._limits.stall_timeout
        self._acceptor = Acceptor(listener, context, patience, self._stream, self._has_room, self._open, self._refused)
        await self._ending.wait()
        await self._leave()
        await self._end_connections()

    async def _leave(self) -> None:
        """Accepts nothing more, and ends the connections that ask for nothing; the others after their answers."""
        self._leaving.set()
        if self._acceptor is not None:
            self._acceptor.close()
        for connection in self._connections:
            connection.end_if_idle()

    def _has_room(self, handshakes: int) -> bool:
        return len(self._connections) + handshakes < self._limits.connections

    def _stream(self, arrived: Callable[[], None]) -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(
            StreamReader(loop=self._loop), partial(self._connected, arrived), self._loop
        )

    def _connected(self, arrived: Callable[[], None], reader: StreamReader, writer: StreamWriter) -> None:
        arrived()
        if not self._has_room(0) or self._leaving.is_set():
            writer.transport.abort()
            return
        connection = _Connection(reader, writer, self._service, self._limits, self._leaving, self._refused)
        self._connections[connection] = self._loop.create_task(self._serve_connection(connection, writer))
        self._open.inc()

    async def _serve_connection(self, connection: _Connection, writer: StreamWriter) -> None:
        try:
            await connection.serve()
            writer.close()
        except asyncio.CancelledError:  # the server stops
            writer.transport.abort()
        except DecodeError:
            self._refused.inc()
            writer.transport.abort()
        except (EOFError, OSError):
            writer.transport.abort()
        except Exception:
            logger.exception("cannot go on with a connection")
            writer.transport.abort()
        finally:
            connection.forget()
            self._open.dec()
            del self._connections[connection]

    async def _end_connections(self) -> None:
        for _ in range(2):
            tasks = list(self._connections.values())
            if tasks:
                await asyncio.wait(tasks, timeout=self._limits.stop_timeout)
            for task in tasks:
                task.cancel()


class _Connection:
    """Looks every `stall_timeout` whether what it expects of its client comes in time."""

    def __init__(
        self,
        reader: StreamReader,
        writer: StreamWriter,
        service: Service,
        limits: Limits,
        leaving: asyncio.Event,
        refused: Counter,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._service = service
        self._limits = limits
        self._leaving = leaving
        self._refused = refused
        self._caller = Caller(peer_names(writer.transport))
        self._is_idle = False
        self._deadline = math.inf
        self._unread = 0
        self._loop = asyncio.get_running_loop()
        self._look()
        # The smallest, else the last answers wait for ever in our memory. With 0 uvloop's TLS pauses an empty buffer.
        writer.transport.set_write_buffer_limits(high=1)

    async def serve(self) -> None:
        """Until the client has gone, or one of the two ends has enough. Raises DecodeError, EOFError and OSError."""
        while not self._leaving.is_set() and not self._caller.is_refused:
            size = await self._size()
            if size > self._limits.request_bytes:
                await self._refuse(size)
            else:
                await self._answer(size)

    def end_if_idle(self) -> None:
        if self._is_idle:
            self._writer.close()  # which ends the waiting, as the client's end does

    def forget(self) -> None:
        self._watch.cancel()

    async def _size(self) -> int:
        """Of the next message, which then has to come in time."""
        self._is_idle = True
        self._expect(self._limits.idle_timeout)
        (size,) = HEAD.unpack(await self._reader.readexactly(HEAD.size))
        self._is_idle = False
        if size <= 0:
            raise DecodeError("no frame")
        self._expect(self._limits.stall_timeout)
        return int(size)

    async def _answer(self, size: int) -> None:
        message = await self._reader.readexactly(size)
        self._deadline = math.inf
        await self._write(await self._service.answer(message, self._caller))

    async def _refuse(self, size: int) -> None:
        """The whole of the message, answer included, has the time of any other one."""
        head = await self._head(size)
        self._refused.inc()
        await self._write(self._service.refusal(head, size, self._limits.request_bytes, self._caller))
        left = size - len(head)
        while left:
            portion = await self._reader.read(min(left, PORTION))
            if not portion:
                raise EOFError
            left -= len(portion)

    async def _head(self, size: int) -> bytes:
        """The bytes of a message before its struct; what is none is refused at its first bytes."""
        beginning = await self._reader.readexactly(min(size, BEGINNING))
        length = min(size, head_size(beginning))
        if length > LONGEST_HEAD:
            raise DecodeError("no head, or too long a one")
        return beginning + await self._reader.readexactly(length - len(beginning))

    async def _write(self, reply: bytes) -> None:
        framed = memoryview(HEAD.pack(len(reply)) + reply)
        for at in range(0, len(framed), PORTION):
            if self._writer.is_closing():
                raise ConnectionResetError
            self._expect(self._limits.stall_timeout)
            self._writer.write(framed[at : at + PORTION])
            await self._writer.drain()

    def _expect(self, seconds: float) -> None:
        self._deadline = self._loop.time() + seconds

    def _look(self) -> None:
        before, self._unread = self._unread, self._writer.transport.get_write_buffer_size()
        reads_on = 0 < self._unread < before
        if self._loop.time() < self._deadline or reads_on:
            self._watch = self._loop.call_later(self._limits.stall_timeout, self._look)
            return
        if not self._is_idle:
            self._refused.inc()
        self._writer.transport.abort()
