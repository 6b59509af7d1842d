"""TLS on the HTTP port: the certificate of the node, and those of its clients."""

from __future__ import annotations

import http.client
import shutil
import ssl
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.nodes import NodeProcess, as_toml, config, started
from tests.conftest import Database

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to make certificates")


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and what it has signed: a node and a client."""
    directory = tmp_path_factory.mktemp("tls")
    new = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    openssl(*new, "-subj", "/CN=authority", "-keyout", directory / "ca.key", "-out", directory / "ca.pem")
    for name in ("node", "client"):
        signed = ("-CA", directory / "ca.pem", "-CAkey", directory / "ca.key", "-addext", "subjectAltName=IP:127.0.0.1")
        leaf = ("-addext", "basicConstraints=critical,CA:FALSE")
        out = ("-keyout", directory / f"{name}.key", "-out", directory / f"{name}.pem")
        openssl(*new, "-subj", f"/CN={name}", *signed, *leaf, *out)
    return directory


def settings(database: Database, directory: Path, **tls: Path) -> Path:
    given: dict[str, Any] = config(database.conninfo, directory)
    given["listen"]["tls"] = {name: str(path) for name, path in tls.items()}
    file = directory / "sys.toml"
    file.write_text(as_toml(given))
    return file


def ready(node: NodeProcess, files: Path, client: str | None = None) -> int:
    context = ssl.create_default_context(cafile=str(files / "ca.pem"))
    if client is not None:
        context.load_cert_chain(files / f"{client}.pem", files / f"{client}.key")
    host, port = node.url.removeprefix("https://").split(":")
    connection = http.client.HTTPSConnection(host, int(port), timeout=30, context=context)
    connection.request("GET", "/ready")
    status = connection.getresponse().status
    connection.close()
    return status


def test_https_only(database: Database, files: Path, tmp_path: Path) -> None:
    file = settings(database, tmp_path, certificate=files / "node.pem", key=files / "node.key")
    with started(tmp_path / "log", "--config", file) as node:
        node.wait_ready()
        assert ready(node, files) == 200
        with pytest.raises(OSError, match=r"reset|closed|Remote end"):
            urllib.request.urlopen(node.url.replace("https", "http") + "/ready", timeout=30)
        assert "Traceback" not in node.errors


def test_clients_with_a_certificate_only(database: Database, files: Path, tmp_path: Path) -> None:
    given = {"certificate": files / "node.pem", "key": files / "node.key", "client_ca": files / "ca.pem"}
    file = settings(database, tmp_path, **given)
    with started(tmp_path / "log", "--config", file) as node:
        node.wait_ready()
        assert ready(node, files, "client") == 200
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
            ready(node, files)
        assert "Traceback" not in node.errors


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda files: {"key": files / "client.key"}, "listen.tls: certificate, key and client_ca do not fit"),
        (lambda files: {"key": files / "nothing"}, "listen.tls.key: cannot read the file"),
        (lambda files: {"client_ca": files / "ca.key"}, "listen.tls: certificate, key and client_ca do not fit"),
    ],
)
def test_what_does_not_fit_is_named(
    database: Database, files: Path, tmp_path: Path, change: Callable[[Path], dict[str, Path]], problem: str
) -> None:
    given = {"certificate": files / "node.pem", "key": files / "node.key"} | change(files)
    with started(tmp_path / "log", "--config", settings(database, tmp_path, **given)) as node:
        assert node.wait() != 0
        assert problem in node.errors
        assert "Traceback" not in node.errors
