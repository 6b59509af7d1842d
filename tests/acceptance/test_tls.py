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

from progressor import CannotConnect, Client, Health
from tests.acceptance.nodes import FREE_PORT, NS, NodeProcess, as_toml, config, started
from tests.acceptance.test_http_fuzz import figures
from tests.acceptance.test_tcp import is_ended
from tests.conftest import Database
from tests.eventually import eventually


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
