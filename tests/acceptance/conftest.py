from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.nodes import Gates, NodeProcess, StartNode, Work, as_toml, config, started
from tests.conftest import Database


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, what it has signed, a node and two clients, and what nobody has: `forger`."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make certificates")
    directory = tmp_path_factory.mktemp("tls")
    new = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")

    def make(name: str, *arguments: str | Path) -> None:
        out = ("-keyout", directory / f"{name}.key", "-out", directory / f"{name}.pem")
        subprocess.run(["openssl", *new, "-subj", f"/CN={name}", *arguments, *out], check=True, capture_output=True)

    make("ca")
    make("forger")
    for name in ("node", "client", "stranger"):
        signed = ("-CA", directory / "ca.pem", "-CAkey", directory / "ca.key", "-addext", "subjectAltName=IP:127.0.0.1")
        make(name, *signed, "-addext", "basicConstraints=critical,CA:FALSE")
    return directory


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A directory that other users may enter, unlike pytest's tmp_path: root's server is another user's."""
    path = Path(tempfile.mkdtemp(prefix="progressor-test-"))
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    return Gates(tmp_path)


@pytest.fixture
def work(database: Database) -> Work:
    return Work(database.conninfo)


@pytest.fixture
def start_node(database: Database, gates: Gates, tmp_path: Path) -> Iterator[StartNode]:
    """Starts a node on the database of the test; `settings` as those of `config`."""
    with ExitStack() as stack:

        def start(*arguments: str, conninfo: Mapping[str, Any] | None = None, **settings: Any) -> NodeProcess:
            file = tmp_path / "sys.toml"
            file.write_text(as_toml(config(conninfo or database.conninfo, gates.directory, **settings)))
            node = stack.enter_context(started(tmp_path / "log", "--config", file, *arguments))
            node.wait_ready()
            return node

        yield start
