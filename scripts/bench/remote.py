"""Calls over the network: a node in a process of its own, and clients in this one."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import local
from time import monotonic, sleep
from typing import Any

from bench import nodes
from bench.job import NS, Bench
from bench.meter import Figures
from bench.stepping import init_all
from progressor import CannotConnect, Client, Process
from progressor.rpc import codec
from progressor.rpc.gen.msgpack.ttypes import Value
from progressor.rpc.gen.state_processing import Automaton
from progressor.rpc.gen.state_processing import ttypes as mg

HEAD = (
    b"POST /v1/automaton HTTP/1.1\r\nhost: bench\r\ncontent-type: application/x-thrift\r\nwoody.trace-id: bench\r\n"
    b"woody.span-id: bench\r\nwoody.parent-id: undefined\r\ncontent-length: %d\r\n\r\n"
)


def call(bench: Bench, clients: int, processes: int, transport: str) -> Figures:
    """Calls of processes at random, each client over a connection of its own."""
    processes = bench.size(processes, 100)
    http_port, thrift_port = _free_ports()
    listen = {"http": f"127.0.0.1:{http_port}", "thrift": f"127.0.0.1:{thrift_port}"}
    with (
        nodes.running(bench, {**bench.config("Plain"), "listen": listen}),
        _connected(f"thrift://{listen['thrift']}", clients) as client,
    ):
        init_all(client, processes)
        verbs = client if transport == "thrift" else Woody(http_port)
        return bench.measure(
            verbs, clients, lambda verbs, random: verbs.call(ns=NS, id=f"p{random.randrange(processes)}")
        )


class Woody:
    """Calls of the Automaton. HTTP is written by hand: the standard library takes more CPU for it than the node."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._local = local()

    def init(self, *, ns: str, id: str, args: bytes = b"") -> bytes | None:
        raise NotImplementedError

    def get(self, *, ns: str, id: str, cache: bool = True) -> Process:
        raise NotImplementedError

    def call(self, *, ns: str, id: str, args: bytes = b"") -> bytes | None:
        descriptor = mg.MachineDescriptor(ns, mg.Reference(id=id), mg.HistoryRange())
        message = codec.encode_message("Call", codec.CALL, 0, Automaton.Call_args(descriptor, Value(bin=args)))
        body = self._connection().post(message)
        result: Any = codec.decode(Automaton.Call_result, codec.message_head(body)[3])
        response: bytes | None = result.success.bin
        return response

    def _connection(self) -> _Connection:
        connection: _Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = _Connection(self._port)
        return connection


class _Connection:
    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._answers = self._socket.makefile("rb")

    def post(self, message: bytes) -> bytes:
        """The body of the answer."""
        self._socket.sendall(HEAD % len(message) + message)
        head = list(iter(self._answers.readline, b"\r\n"))
        if b" 200 " not in head[0] or any(line.startswith(b"woody.error") for line in head):
            raise RuntimeError(b"".join(head).decode())
        (length,) = (int(line.split(b":")[1]) for line in head if line.startswith(b"content-length:"))
        return self._answers.read(length)


@contextmanager
def _connected(url: str, connections: int) -> Iterator[Client]:
    with Client(url, connections=connections) as client:
        deadline = monotonic() + nodes.PATIENCE
        while True:
            try:
                client.health_check([NS])
                break
            except CannotConnect:
                if monotonic() > deadline:
                    raise
                sleep(0.1)
        yield client


def _free_ports() -> list[int]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return [one.getsockname()[1], other.getsockname()[1]]
