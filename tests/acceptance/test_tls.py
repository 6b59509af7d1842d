"""TLS on the HTTP port: the certificate of the node, and those of its clients."""

from __future__ import annotations

import http.client
import ssl
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.nodes import NodeProcess, as_toml, config, started
from tests.conftest import Database


def settings(database: Database, directory: Path, **tls: Path) -> Path:
    given: dict[str, Any] = config(database.conninfo, directory)
    given["listen"]["tls"] = {name: str(path) for name, path in tls.items()}
    file = directory / "sys.toml"
    file.write_text(as_toml(given))
    return file


def ready(node: NodeProcess, certificates: Path, client: str | None = None) -> int:
    context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    if client is not None:
        context.load_cert_chain(certificates / f"{client}.pem", certificates / f"{client}.key")
    host, port = node.url.removeprefix("https://").split(":")
    connection = http.client.HTTPSConnection(host, int(port), timeout=30, context=context)
    connection.request("GET", "/ready")
    status = connection.getresponse().status
    connection.close()
    return status


def test_https_only(database: Database, certificates: Path, tmp_path: Path) -> None:
    file = settings(database, tmp_path, certificate=certificates / "node.pem", key=certificates / "node.key")
    with started(tmp_path / "log", "--config", file) as node:
        node.wait_ready()
        assert ready(node, certificates) == 200
        with pytest.raises(OSError, match=r"reset|closed|Remote end"):
            urllib.request.urlopen(node.url.replace("https", "http") + "/ready", timeout=30)
        assert "Traceback" not in node.errors


def test_clients_with_a_certificate_only(database: Database, certificates: Path, tmp_path: Path) -> None:
    given = {"certificate": certificates / "node.pem", "key": certificates / "node.key"}
    file = settings(database, tmp_path, **given, client_ca=certificates / "ca.pem")
    with started(tmp_path / "log", "--config", file) as node:
        node.wait_ready()
        assert ready(node, certificates, "client") == 200
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
            ready(node, certificates)
        assert "Traceback" not in node.errors


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
    with started(tmp_path / "log", "--config", settings(database, tmp_path, **given)) as node:
        assert node.wait() != 0
        assert problem in node.errors
        assert "Traceback" not in node.errors
