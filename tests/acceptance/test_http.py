"""The HTTP port of a node, and what strangers send to it."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from progressor.storage.embedded import EmbeddedPostgres
from tests.acceptance.nodes import NodeProcess, as_toml, config, started
from tests.conftest import fresh_database


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


def connect(node: NodeProcess) -> socket.socket:
    host, port = node.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)
