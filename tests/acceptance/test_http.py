"""The HTTP port of a node, and what strangers send to it."""

from __future__ import annotations

import select
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from http.client import HTTPResponse
from pathlib import Path
from threading import Event
from time import monotonic

import pytest

from progressor.rpc import codec
from progressor.rpc.gen.native import Progressor as Native
from progressor.rpc.gen.native import ttypes as t
from progressor.storage.embedded import EmbeddedPostgres
from tests.acceptance.nodes import NS, NodeProcess, as_toml, config, native, started
from tests.conftest import Database, fresh_database
from tests.eventually import eventually

POST = (
    b"POST /v1/automaton HTTP/1.1\r\nHost: x\r\ncontent-type: application/x-thrift\r\nwoody.trace-id: t\r\n"
    b"woody.span-id: s\r\nwoody.parent-id: p\r\nContent-Length: %d\r\n\r\n"
)
GET = b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = (
    b"POST /v1/progressor HTTP/1.1\r\nHost: x\r\ncontent-type: application/x-thrift\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


@pytest.fixture(scope="module")
def shared(postgres_server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    directory = tmp_path_factory.mktemp("http")
    with fresh_database(postgres_server) as database:
        file = directory / "sys.toml"
        file.write_text(as_toml(config(database.conninfo, directory)))
        with started(directory / "log", "--config", file) as node:
            node.wait_ready()
            yield node


@pytest.fixture
def node(shared: NodeProcess) -> Iterator[NodeProcess]:
    """Whatever a test does to it, the node has nothing to complain about, and answers others."""
    yield shared
    assert shared.get("/health").json["status"] == "passing"
    assert "Traceback" not in shared.errors
    assert "ERROR" not in shared.errors


def test_a_page_that_is_not_there(node: NodeProcess) -> None:
    assert [node.get(path).status for path in ("/", "/health/", "/metrics/x", "/../etc/passwd")] == [404] * 4


def test_a_query_is_no_part_of_the_path(node: NodeProcess) -> None:
    assert node.get("/ready?by=balancer").json == {"ready": True}


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\xff\xfe\n", b"400"),
        (b"%s %n\r\n\r\n", b"400"),
        (b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", b"405"),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X-Y: z\r\n" * 10_000, b"400"),
    ],
)
def test_what_is_no_request_is_refused(node: NodeProcess, request_: bytes, answer: bytes) -> None:
    with connect(node) as client:
        client.sendall(request_)
        assert answer in client.recv(1000)


def test_a_very_long_line_is_refused_before_it_ends(node: NodeProcess) -> None:
    with connect(node) as client:
        client.sendall(b"GET /" + b"x" * 65_600)
        assert b"400" in client.recv(1000)


def test_half_a_request_holds_up_nobody(node: NodeProcess) -> None:
    with ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(connect(node)).sendall(b"GET /hea")
        assert node.get("/ready").json == {"ready": True}


def test_a_client_that_cuts_the_connection(node: NodeProcess) -> None:
    for sent in (b"", b"GET /hea", b"GET /metrics HTTP/1.0\r\n\r\n"):
        with connect(node) as client:
            client.sendall(sent)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closes with RST


def limited(database: Database, directory: Path, **limits: float) -> AbstractContextManager[NodeProcess]:
    settings = config(database.conninfo, directory)
    settings["listen"]["limits"] = limits
    file = directory / "sys.toml"
    file.write_text(as_toml(settings))
    return started(directory / "log", "--config", file)


def test_what_a_client_may_do_is_configured(database: Database, tmp_path: Path) -> None:
    limits = {"request_bytes": 100, "head_bytes": 400, "connections": 3, "idle_timeout": 0.2, "stall_timeout": 0.2}
    with limited(database, tmp_path, **limits) as node:
        node.wait_ready()
        with connect(node) as client:
            client.sendall(POST % 101 + b"x" * 101)
            assert client.recv(1000).startswith(b"HTTP/1.1 413")
        with connect(node) as client:
            client.sendall(b"GET /" + b"x" * 401)
            assert client.recv(1000).startswith(b"HTTP/1.1 400")
        with connect(node) as client:
            client.sendall(POST % 10)
            assert client.recv(1000).startswith(b"HTTP/1.1 408")
        for sent in (b"", b"GET /hea", b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n"):
            with connect(node) as client:
                client.sendall(sent)
                assert until_cut_off(client).startswith(b"HTTP/1.1 200" if sent.endswith(b"\r\n") else b"")
        eventually(lambda: node.get("/ready").status == 200)  # the connections above are gone
        with ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(connect(node)).sendall(b"GET /ready HTTP/1.1\r\nHost: x\r\n")
            eventually(lambda: node.get("/ready").status == 503)


def test_no_byte_puts_off_the_end(database: Database, tmp_path: Path) -> None:
    with limited(database, tmp_path, request_bytes=100, idle_timeout=1, stall_timeout=0.2) as node:
        node.wait_ready()
        with connect(node) as client:
            client.sendall(GET)
            assert status(client) == 200
            client.sendall(b"\r\n")
            assert until_cut_off(client) == b""
        before = node.metric("progressor_requests_refused_total")
        with connect(node) as client:
            client.sendall(POST % 1_000_000)
            assert status(client) == 413
            eventually(lambda: is_cut_off_at(client, b"x"), interval=0.05)
        with connect(node) as client:
            client.sendall(GET[:10])
            eventually(lambda: is_cut_off_at(client, b"x"), interval=0.05)
        assert node.metric("progressor_requests_refused_total") == before + 2


def status(client: socket.socket) -> int:
    """Of the answer, when the whole of it has come."""
    answer = HTTPResponse(client)
    answer.begin()
    answer.read()
    return answer.status


def is_cut_off_at(client: socket.socket, data: bytes) -> bool:
    try:
        client.sendall(data)
    except OSError:
        return True
    return False


def test_a_large_body_that_nobody_reads_may_come_to_its_end(database: Database, tmp_path: Path) -> None:
    with limited(database, tmp_path, request_bytes=100) as node:
        node.wait_ready()
        with connect(node) as client:
            client.sendall(POST % 1_000_000)
            assert status(client) == 413
            client.sendall(b"x" * 1_000_000 + GET)
            assert status(client) == 200


def test_who_never_reads_is_cut_off(database: Database, tmp_path: Path) -> None:
    """Long before it would be for doing nothing."""
    with limited(database, tmp_path, idle_timeout=1000, stall_timeout=0.5) as node:
        node.wait_ready()
        with native(node, "http") as client:
            client.Put(t.PutRequest(NS, "big", t.NewProcess(aux_state=b"x" * 9_000_000)))
        ask = codec.encode_message("Get", codec.CALL, 1, Native.Get_args(t.GetRequest(NS, "big")))
        with ExitStack() as stack:
            for n in range(10):
                deaf = stack.enter_context(connect(node))
                deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                deaf.sendall((CHUNKED + b"%x\r\n" % len(ask) + ask + b"\r\n0\r\n\r\n") * (1 + n))
            eventually(lambda: connections(node) >= 10)
            eventually(lambda: connections(node) == 0, 30)
        assert "Traceback" not in node.errors


def test_who_reads_slowly_is_not_cut_off(database: Database, tmp_path: Path) -> None:
    size = 9_000_000
    with limited(database, tmp_path, idle_timeout=2, stall_timeout=2) as node:
        node.wait_ready()
        with native(node, "http") as client:
            client.Put(t.PutRequest(NS, "big", t.NewProcess(aux_state=b"x" * size)))
        ask = codec.encode_message("Get", codec.CALL, 1, Native.Get_args(t.GetRequest(NS, "big")))
        pause = Event()
        with connect(node) as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            slow.sendall(CHUNKED + b"%x\r\n" % len(ask) + ask + b"\r\n0\r\n\r\n")
            left, began = size, monotonic()
            while left > 0:
                pause.wait(0.02)
                got = len(slow.recv(30_000))
                assert got, "it was cut off"
                left -= got
            assert monotonic() - began > 4


def connections(node: NodeProcess) -> float:
    """Beside the one that asks."""
    found = [line for line in node.get("/metrics").body.splitlines() if 'progressor_connections{port="http"}' in line]
    return float(found[0].split()[1]) - 1


def test_headers_behind_a_body_are_headers(node: NodeProcess) -> None:
    with connect(node) as client:
        client.sendall(CHUNKED + b"0\r\n" + b"x: y\r\n" * 20_000)
        assert b"A request line with its headers has at most 65536 bytes." in until_cut_off(client)
    with connect(node) as client:
        ask = codec.encode_message("HealthCheck", codec.CALL, 1, Native.HealthCheck_args([NS]))
        client.sendall(CHUNKED + b"%x\r\n" % len(ask) + ask + b"\r\n0\r\ncontent-type: text/html\r\n\r\n")
        assert status(client) == 200


def test_a_header_that_comes_in_pieces(node: NodeProcess) -> None:
    with connect(node) as client:
        client.sendall(b"GET /ready HTTP/1.1\r\nHost: x\r\nx: ")
        eventually(lambda: is_answered_at(client, b"y" * 1000), interval=0.001)
        assert status(client) == 400
    with connect(node) as client:
        client.sendall(b"GET /ready HTTP/1.1\r\nHost: x\r\nx: ")
        for _ in range(60):
            client.sendall(b"y" * 1000)
        client.sendall(b"\r\n\r\n")
        assert status(client) == 200


def is_answered_at(client: socket.socket, data: bytes) -> bool:
    client.sendall(data)
    return bool(select.select([client], [], [], 0)[0])


def test_a_body_is_no_part_of_the_next_head(database: Database, tmp_path: Path) -> None:
    with limited(database, tmp_path, head_bytes=400) as node:
        node.wait_ready()
        with connect(node) as client:
            client.sendall(GET[:-2] + b"Content-Length: 5000\r\n\r\n" + b"x" * 5000 + GET[:10])
            assert status(client) == 200
            client.sendall(GET[10:])
            assert status(client) == 200


def test_requests_that_wait_for_each_other(node: NodeProcess) -> None:
    with connect(node) as client:
        client.sendall(GET * 99 + GET.replace(b"Host", b"Connection: close\r\nHost"))
        assert until_cut_off(client).count(b"HTTP/1.1 200") == 100
    with connect(node) as client:
        client.sendall(GET * 1000)
        assert b"At most 100 requests wait on a connection." in until_cut_off(client)


def test_too_many_connections(database: Database, tmp_path: Path) -> None:
    """Those who are served go on."""
    with limited(database, tmp_path, connections=3) as node:
        node.wait_ready()
        with connect(node) as served, connect(node) as idle, connect(node) as silent:
            for _ in range(2):
                for client in (served, idle):
                    client.sendall(GET)
                    assert status(client) == 200
                with connect(node) as one_more:
                    one_more.sendall(GET)
                    assert until_cut_off(one_more).startswith(b"HTTP/1.1 503")
            silent.sendall(GET)
            assert status(silent) == 200


def test_twice_as_many_at_once_are_all_answered(database: Database, tmp_path: Path) -> None:
    with limited(database, tmp_path, connections=50) as node, ExitStack() as stack:
        node.wait_ready()
        node.send(signal.SIGSTOP)  # they are accepted in one go
        crowd = [stack.enter_context(connect(node)) for _ in range(100)]
        for each in crowd:
            each.sendall(GET)
        node.send(signal.SIGCONT)
        assert sorted(map(status, crowd)) == [200] * 50 + [503] * 50


def until_cut_off(client: socket.socket) -> bytes:
    answer = b""
    with suppress(ConnectionResetError):
        while more := client.recv(1000):
            answer += more
    return answer


def connect(node: NodeProcess) -> socket.socket:
    host, port = node.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


@pytest.mark.parametrize("fill", ["values", "replaced"])
def test_a_request_that_takes_long_to_decode_holds_up_nobody(node: NodeProcess, fill: str) -> None:
    count = 300_000
    namespace = b"n" if fill == "values" else "\ufffd".encode()  # what has this is decoded twice
    text = b"\x0b\0\1" + struct.pack(">i", len(namespace)) + namespace
    flags = b"\x0f\0\x08\x0c" + struct.pack(">i", count) + b"\x02\0\x02\1\0" * count + b"\0"
    message = b"\x80\1\0\1\0\0\0\5Start\0\0\0\0" + text + b"\x0c\0\3" + flags + b"\0"
    with connect(node) as client:
        client.sendall(POST % len(message) + message)
        assert node.get("/ready").status == 200
        assert not select.select([client], [], [], 0)[0], "the answer of the later one is there first"
        assert b"a required argument is missing" in client.recv(1000)
