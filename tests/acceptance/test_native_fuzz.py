"""The native service under mutated requests, over TCP and HTTP: no crash, no leak, and others are served meanwhile.

`PROGRESSOR_FUZZ` says how many requests; by default few, for a quick look.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from progressor.rpc import codec
from progressor.rpc.gen.native import Progressor as Native
from progressor.rpc.gen.native import ttypes as t
from progressor.storage.embedded import EmbeddedPostgres
from tests.acceptance.frames import frame, read_frame
from tests.acceptance.nodes import FREE_PORT, NodeProcess, as_toml, config, native, started
from tests.acceptance.test_http_fuzz import CLIENTS, REQUESTS, figures, mutated
from tests.acceptance.test_http_fuzz import send as send_all
from tests.conftest import fresh_database
from tests.eventually import eventually

NS = "default/default"
HEAD = (
    b"POST /v1/progressor HTTP/1.1\r\nHost: x\r\ncontent-type: application/x-thrift\r\nAuthorization: Bearer x\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n"
)
_NEW = t.NewProcess(
    t.ProcessStatus.running, "detail", b"state", '{"a": 1}', [t.NewEvent(1, 10**15, '{"b": [2]}', b"payload")], 10**15
)
_REQUEST = t.Request(NS, "p", b"arguments", b"context", t.Range(1, 2, t.Direction.backward), "key", 1.5)
_CALLS = {
    "Authenticate": Native.Authenticate_args("secret"),
    "Init": Native.Init_args(_REQUEST),
    "Call": Native.Call_args(_REQUEST),
    "Notify": Native.Notify_args(_REQUEST),
    "Repair": Native.Repair_args(_REQUEST),
    "SimpleRepair": Native.SimpleRepair_args(_REQUEST),
    "Remove": Native.Remove_args(t.Request(NS, "other")),
    "Get": Native.Get_args(t.GetRequest(NS, "p", t.Range(0, 10), True, 1, 1.5)),
    "Put": Native.Put_args(t.PutRequest(NS, "q", _NEW, t.SetTimer(4 * 10**15, True), b"context")),
    "Trace": Native.Trace_args(NS, "p"),
    "List": Native.List_args(t.ListRequest(NS, 2, '{"a": 1}', "p", 1, 4 * 10**15, 1, 4 * 10**15, 10, "a")),
    "HealthCheck": Native.HealthCheck_args([NS]),
}
MESSAGES = [codec.encode_message(name, codec.CALL, 1, given) for name, given in _CALLS.items()]


@pytest.fixture
def node(postgres_server: EmbeddedPostgres, tmp_path: Path) -> Iterator[NodeProcess]:
    with fresh_database(postgres_server) as database:
        settings = config(database.conninfo, tmp_path)
        settings["progressor"]["namespaces"][NS] = {"processor": {"client": "echo"}}
        settings["listen"]["thrift"] = FREE_PORT
        file = tmp_path / "sys.toml"
        file.write_text(as_toml(settings))
        with started(tmp_path / "log", "--config", file) as node:
            node.wait_ready()
            yield node


class Stream:
    """A connection that is opened anew when the node has ended it."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._connection = socket.create_connection(address, timeout=60)

    def exchange(self, message: bytes) -> None:
        """One frame is answered by one frame, or by the end of the connection."""
        try:
            self._connection.sendall(frame(message))
            read_frame(self._connection)
        except (ConnectionError, EOFError):
            self.close()
            self._connection = socket.create_connection(self._address, timeout=60)

    def close(self) -> None:
        self._connection.close()


def fuzz(node: NodeProcess, seed: int) -> None:
    host, port = node.thrift_url.removeprefix("thrift://").split(":")
    web = node.url.removeprefix("http://").split(":")
    source, tcp = random.Random(seed), (host, int(port))
    stream = Stream(tcp)
    for number in range(REQUESTS // CLIENTS):
        message = mutated(source.choice(MESSAGES), source)
        match source.randrange(10):
            case 0:
                send_broken(tcp, mutated(frame(message), source))
            case 1:
                answer = send_all((web[0], int(web[1])), HEAD % len(message) + message)
                assert answer.startswith(b"HTTP/1.1 "), answer
            case _:
                stream.exchange(message)
        if number % 50 == 0:
            with native(node, "thrift") as client:
                assert client.HealthCheck([NS]).health == t.Health.passing
    stream.close()


def send_broken(address: tuple[str, int], data: bytes) -> None:
    """Whatever length it announces, no more of it comes; the connection ends."""
    with socket.create_connection(address, timeout=60) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
        except ConnectionError:
            pass


@pytest.mark.timeout(3600)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc to look for leaks in")
def test_mutated_requests(node: NodeProcess) -> None:
    host, port = node.thrift_url.removeprefix("thrift://").split(":")
    stream = Stream((host, int(port)))
    for message in MESSAGES * 50:
        stream.exchange(message)
    stream.close()
    before = figures(node)
    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(fuzz, [node] * CLIENTS, range(CLIENTS)))
    eventually(lambda: figures(node)["files"] <= before["files"] + 6)  # the pools of the database
    after = figures(node)
    assert after["threads"] <= before["threads"] + 10  # those that read from it
    assert after["kB"] < before["kB"] + 64 * 1024
    assert "Traceback" not in node.errors
    with native(node, "thrift") as client:
        assert client.HealthCheck([NS]).health == t.Health.passing
