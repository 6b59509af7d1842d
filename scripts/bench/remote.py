"""Calls over the network: a node in a process of its own, and clients in this one."""

from __future__ import annotations

import http.client
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
from progressor.rpc import codec, woody
from progressor.rpc.gen.msgpack.ttypes import Value
from progressor.rpc.gen.state_processing import Automaton
from progressor.rpc.gen.state_processing import ttypes as mg

HEADERS = {
    "content-type": woody.CONTENT_TYPE,
    "woody.trace-id": "bench",
    "woody.span-id": "bench",
    "woody.parent-id": "undefined",
}


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
    """Calls of the Automaton."""

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
        connection: Any = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = http.client.HTTPConnection("127.0.0.1", self._port)
        connection.request("POST", "/v1/automaton", message, HEADERS)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200 or woody.ERROR_CLASS in answer.headers:
            raise RuntimeError(f"HTTP {answer.status} {answer.headers.get(woody.ERROR_REASON)}")
        result: Any = codec.decode(Automaton.Call_result, codec.message_head(body)[3])
        response: bytes | None = result.success.bin
        return response


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
