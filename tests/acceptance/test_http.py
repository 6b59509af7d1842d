"""The HTTP port of a node, and what strangers send to it."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from progressor.storage.embedded import EmbeddedPostgres
from tests.acceptance.nodes import NodeProcess, as_toml, config, started
from tests.conftest import Database, fresh_database
from tests.eventually import eventually

POST = (
    b"POST /v1/automaton HTTP/1.1\r\nHost: x\r\ncontent-type: application/x-thrift\r\nwoody.trace-id: t\r\n"
    b"woody.span-id: s\r\nwoody.parent-id: p\r\nContent-Length: %d\r\n\r\n"
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


def test_what_a_client_may_do_is_configured(database: Database, tmp_path: Path) -> None:
    settings = config(database.conninfo, tmp_path)
    limits = {"request_bytes": 100, "head_bytes": 400, "connections": 3, "idle_timeout": 0.2, "stall_timeout": 0.2}
    settings["listen"]["limits"] = limits
    file = tmp_path / "sys.toml"
    file.write_text(as_toml(settings))
    with started(tmp_path / "log", "--config", file) as node:
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
