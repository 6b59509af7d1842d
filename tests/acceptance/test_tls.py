"""TLS: the certificate of the node, and those of its clients, on the HTTP port; handshakes that do not end, on both."""

from __future__ import annotations

import http.client
import socket
import ssl
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from progressor import CannotConnect, Client, Health, Process
from progressor.rpc import codec
from progressor.rpc.gen.native import Progressor as Native
from progressor.rpc.gen.native.ttypes import GetRequest
from tests.acceptance.frames import frame, read_frame
from tests.acceptance.nodes import FREE_PORT, NS, NodeProcess, as_toml, config, started
from tests.acceptance.test_http_fuzz import figures
from tests.acceptance.test_tcp import GOOD, is_ended
from tests.conftest import Database
from tests.eventually import eventually

POST = b"POST /v1/progressor HTTP/1.1\r\nHost: x\r\ncontent-type: application/x-thrift\r\nContent-Length: %d\r\n\r\n"


def settings(database: Database, directory: Path, tls: Mapping[str, Path], **limits: float) -> Path:
    given: dict[str, Any] = config(database.conninfo, directory)
    given["listen"] |= {"thrift": FREE_PORT, "limits": limits}
    given["listen"]["tls"] = {name: str(path) for name, path in tls.items()}
    file = directory / "sys.toml"
    file.write_text(as_toml(given))
    return file


def ready(node: NodeProcess, certificates: Path, client: str | None = None) -> int:
    return get(node, "/ready", certificates, client)[0]


def get(node: NodeProcess, path: str, certificates: Path, client: str | None = None) -> tuple[int, str]:
    """The status, and the page."""
    context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    if client is not None:
        context.load_cert_chain(certificates / f"{client}.pem", certificates / f"{client}.key")
    host, port = node.url.removeprefix("https://").split(":")
    connection = http.client.HTTPSConnection(host, int(port), timeout=30, context=context)
    connection.request("GET", path)
    with closing(connection), connection.getresponse() as answer:
        return answer.status, answer.read().decode()


def test_https_only(database: Database, certificates: Path, tmp_path: Path) -> None:
    given = {"certificate": certificates / "node.pem", "key": certificates / "node.key"}
    file = settings(database, tmp_path, given)
    with started(tmp_path / "log", "--config", file) as node:
        node.wait_ready()
        assert ready(node, certificates) == 200
        with pytest.raises(OSError, match=r"reset|closed|Remote end"):
            urllib.request.urlopen(node.url.replace("https", "http") + "/ready", timeout=30)
        assert "Traceback" not in node.errors


def test_clients_with_a_certificate_only(database: Database, certificates: Path, tmp_path: Path) -> None:
    given = {"certificate": certificates / "node.pem", "key": certificates / "node.key"}
    file = settings(database, tmp_path, given | {"client_ca": certificates / "ca.pem"})
    with started(tmp_path / "log", "--config", file) as node:
        node.wait_ready()
        assert ready(node, certificates, "client") == 200
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
            ready(node, certificates)
        assert "Traceback" not in node.errors


def connect(url: str) -> socket.socket:
    host, port = url.partition("://")[2].split(":")
    return socket.create_connection((host, int(port)), timeout=30)


@pytest.mark.parametrize(("port", "most"), [("thrift", 10), ("http", 20)])
def test_handshakes_under_way_are_connections(
    database: Database, certificates: Path, tmp_path: Path, port: str, most: int
) -> None:
    given = {"certificate": certificates / "node.pem", "key": certificates / "node.key"}
    file = settings(database, tmp_path, given, connections=10, stall_timeout=100)
    with started(tmp_path / "log", "--config", file) as node:
        node.wait_ready()
        url = node.thrift_url if port == "thrift" else node.url
        with ExitStack() as stack:
            for _ in range(most):
                stack.enter_context(connect(url))
            for _ in range(5):
                with connect(url) as one_more:
                    assert is_ended(one_more)
        eventually(lambda: is_served(url, certificates))
        assert "Traceback" not in node.errors


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\x00\x01"])
@pytest.mark.parametrize("port", ["thrift", "http"])
def test_a_handshake_that_does_not_end_is_cut_off(
    database: Database, certificates: Path, tmp_path: Path, port: str, said: bytes
) -> None:
    given = {"certificate": certificates / "node.pem", "key": certificates / "node.key"}
    file = settings(database, tmp_path, given, stall_timeout=0.5)
    with started(tmp_path / "log", "--config", file) as node, ExitStack() as stack:
        node.wait_ready()
        url = node.thrift_url if port == "thrift" else node.url
        assert is_served(url, certificates)
        files = figures(node)["files"]
        crowd = [stack.enter_context(connect(url)) for _ in range(50)]
        for each in crowd:
            each.sendall(said)
        assert all(is_ended(each) for each in crowd)
        eventually(lambda: figures(node)["files"] < files + 20)
        page = get(node, "/metrics", certificates)[1]
        assert f'progressor_requests_refused_total{{port="{port}"}} 50.0\n' in page
        assert 'progressor_connections{port="thrift"} 0.0\n' in page
        assert "Traceback" not in node.errors


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_who_has_its_answer_has_time(database: Database, certificates: Path, tmp_path: Path, parts: int) -> None:
    """In however many reads its request came."""
    given = {"certificate": certificates / "node.pem", "key": certificates / "node.key"}
    file = settings(database, tmp_path, given, stall_timeout=0.5, idle_timeout=100)
    with started(tmp_path / "log", "--config", file) as node:
        node.wait_ready()
        with secured(node.thrift_url, certificates) as client, secured(node.thrift_url, certificates) as other:
            for at in range(parts):
                client.sendall(GOOD[at:] if at == parts - 1 else GOOD[at : at + 1])
                other.sendall(GOOD)
                assert read_frame(other)  # the node has read the part
            assert read_frame(client)
            for _ in range(2):
                with secured(node.thrift_url, certificates) as half:
                    half.sendall(GOOD[:10])
                    assert is_ended(half)
            client.sendall(GOOD)
            assert read_frame(client)
        page = get(node, "/metrics", certificates)[1]
        assert 'progressor_requests_refused_total{port="thrift"} 2.0\n' in page


@pytest.mark.parametrize("port", ["thrift", "http"])
def test_who_never_reads_is_cut_off(database: Database, certificates: Path, tmp_path: Path, port: str) -> None:
    """Long before it would be for doing nothing."""
    given = {"certificate": certificates / "node.pem", "key": certificates / "node.key"}
    file = settings(database, tmp_path, given, stall_timeout=0.5, idle_timeout=1000)
    ask = codec.encode_message("Get", codec.CALL, 1, Native.Get_args(GetRequest(NS, "big")))
    with started(tmp_path / "log", "--config", file) as node, ExitStack() as stack:
        node.wait_ready()
        url = node.thrift_url if port == "thrift" else node.url
        with Client(url, ca=certificates / "ca.pem") as client:
            client.put(ns=NS, id="big", process=Process("big", aux_state=b"x" * 9_000_000))
        request = frame(ask) if port == "thrift" else POST % len(ask) + ask
        for n in range(10):
            deaf = stack.enter_context(secured(url, certificates))
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.sendall(request[:n])
            deaf.sendall(request[n:] + request)
        quiet = f'progressor_connections{{port="{port}"}} {0.0 if port == "thrift" else 1.0}\n'  # the one that asks
        eventually(lambda: quiet not in get(node, "/metrics", certificates)[1])
        eventually(lambda: quiet in get(node, "/metrics", certificates)[1], 30)
        assert "Traceback" not in node.errors


def secured(url: str, certificates: Path) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    return context.wrap_socket(connect(url), server_hostname="127.0.0.1")


def is_served(url: str, certificates: Path) -> bool:
    try:
        with Client(url, ca=certificates / "ca.pem") as client:
            return client.health_check([NS])[0] is Health.PASSING
    except CannotConnect:
        return False


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda made: {"key": made / "client.key"}, "listen.tls: certificate, key and client_ca do not fit"),
        (lambda made: {"key": made / "nothing"}, "listen.tls.key: cannot read the file"),
        (lambda made: {"client_ca": made / "ca.key"}, "listen.tls: certificate, key and client_ca do not fit"),
    ],
)
def test_what_does_not_fit_is_named(
    database: Database, certificates: Path, tmp_path: Path, change: Callable[[Path], dict[str, Path]], problem: str
) -> None:
    given = {"certificate": certificates / "node.pem", "key": certificates / "node.key"} | change(certificates)
    with started(tmp_path / "log", "--config", settings(database, tmp_path, given)) as node:
        assert node.wait() != 0
        assert problem in node.errors
        assert "Traceback" not in node.errors
