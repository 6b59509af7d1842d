"""`progressor-node` as a user meets it before anything runs: its options, its configuration, its database."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from progressor.processor import SHIPPED
from tests.chaos.cluster import NS, PROGRESSOR_NODE, ROOT, Cluster, toml
from tests.conftest import Database

TIMEOUT = 60


def run(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    command = [*PROGRESSOR_NODE, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def config(conninfo: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A small one. `changes` are keys of `[progressor]`."""
    return {
        "progressor": {"namespaces": {NS: {"processor": {"client": "echo"}}}, **changes},
        "databases": {
            "db": {
                "host": conninfo["host"],
                "port": conninfo["port"],
                "database": conninfo["dbname"],
                "username": conninfo["user"],
                "password": conninfo["password"],
            }
        },
        "pools": {pool: {"database": "db"} for pool in ("default_pool", "default_scan_pool", "default_front_pool")},
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "sys.toml"


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is bound, so that nobody takes it, where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


NOWHERE = {"host": "127.0.0.1", "port": 1, "dbname": "none", "user": "nobody", "password": "sesame-0815"}


def test_a_good_configuration_is_fine_without_a_database(file: Path) -> None:
    file.write_text(toml(config(NOWHERE)))
    assert run("--config", file, "--check-config") == (0, "the configuration is fine\n", "")


def test_every_mistake_is_listed(file: Path) -> None:
    wrong = config(NOWHERE, lease_timeout=1, heartbeat_intervall=1)
    wrong["progressor"]["namespaces"]["other/one"] = {"worker_pool_size": "many", "processor": {}}
    wrong["pools"]["default_pool"]["database"] = "nowhere"
    file.write_text(toml(wrong))
    status, output, problems = run("--config", file, "--check-config")
    assert (status, output) == (2, "")
    lines = problems.splitlines()
    for part in ("lease_timeout", "heartbeat_intervall", "worker_pool_size", "client", "nowhere"):
        assert any(part in line for line in lines), (part, problems)
    assert "sesame" not in problems
    assert run("--config", file)[0] == 2


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    status, _, problems = run("--config", tmp_path / "nothing.toml")
    assert status == 2
    assert "nothing.toml" in problems
    assert "No such file" in problems


def test_a_file_that_is_no_toml(file: Path) -> None:
    file.write_text("[progressor\npassword = 'sesame-0815'")
    status, _, problems = run("--config", file)
    assert (status, len(problems.splitlines())) == (2, 1)
    assert "sesame" not in problems


@pytest.mark.parametrize(
    "client", ["ecco", "processors.nothing:Echo", "processors.echo:Ecco", "tests.chaos.cluster:NS"]
)
def test_a_processor_that_is_not_there(file: Path, client: str) -> None:
    wrong = config(NOWHERE)
    wrong["progressor"]["namespaces"][NS]["processor"]["client"] = client
    file.write_text(toml(wrong))
    status, _, problems = run("--config", file, "--check-config")
    assert status == 2
    assert NS in problems
    assert client in problems
    if client == "ecco":
        assert all(known in problems for known in SHIPPED)


@pytest.mark.parametrize("arguments", [[], ["--config"], ["--dev", "--config", "x"], ["--dev", "--nonsense"]], ids=str)
def test_wrong_usage(arguments: list[str]) -> None:
    status, _, problems = run(*arguments)
    assert status == 2
    assert "usage: progressor-node" in problems


@pytest.mark.parametrize("option", [[], ["--migrate-only"], ["--processes", "2"]], ids=str)
def test_a_database_that_is_away(file: Path, closed_port: int, option: list[str]) -> None:
    file.write_text(toml(config({**NOWHERE, "port": closed_port})))
    status, output, problems = run("--config", file, *option, "--log-level", "error")
    assert (status, output) == (1, "")
    assert problems.startswith("progressor-node: storage unavailable")
    assert str(closed_port) in problems
    assert "sesame" not in problems


@pytest.mark.parametrize("change", [{"dbname": "nothing"}, {"password": "wrong"}], ids=str)
def test_a_database_that_refuses_us(file: Path, database: Database, change: dict[str, str]) -> None:
    file.write_text(toml(config({**database.conninfo, **change})))
    status, _, problems = run("--config", file, "--log-level", "error")
    assert status == 1
    assert problems.startswith("progressor-node: ")


def test_the_database_is_brought_up_to_date(file: Path, database: Database) -> None:
    file.write_text(toml(config(database.conninfo, migration_enabled=False)))
    status, _, problems = run("--config", file)
    assert status == 1
    assert "--migrate-only" in problems
    for _ in range(2):
        assert run("--config", file, "--migrate-only")[:2] == (0, "the database is up to date\n")
    with psycopg.connect(**database.conninfo) as connection:
        assert connection.execute(f'select count(*) from "{NS}_processes"').fetchone() == (0,)
    with Cluster(database.conninfo, plain=True) as cluster:
        (node,) = cluster.start("one")
        assert node.stop() == 0


def test_an_address_that_is_taken(file: Path, database: Database, closed_port: int) -> None:
    taken = {**config(database.conninfo), "listen": {"http": f"127.0.0.1:{closed_port}"}}
    file.write_text(toml(taken))
    status, _, problems = run("--config", file, "--log-level", "error")
    assert status == 1
    assert f"cannot listen on http://127.0.0.1:{closed_port}" in problems
    with psycopg.connect(**database.conninfo) as connection:
        assert connection.execute("select * from progressor_nodes").fetchall() == []
