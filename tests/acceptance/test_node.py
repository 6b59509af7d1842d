"""progressor-node until it runs: its arguments, its configuration, and what keeps it from starting."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.acceptance.nodes import NS, Gates, StartNode, Work, as_toml, config, run
from tests.conftest import Database
from tests.eventually import eventually

SECRET = "open sesame"
NOWHERE = {"host": "127.0.0.1", "port": 1, "dbname": "nothing", "user": "nobody", "password": SECRET}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Mapping[str, Any]], Path]:
    def write(tables: Mapping[str, Any]) -> Path:
        file = tmp_path / "sys.toml"
        file.write_text(as_toml(tables))
        return file

    return write


Write = Callable[[Mapping[str, Any]], Path]


def assert_failed(result: subprocess.CompletedProcess[str], status: int, *problems: str) -> None:
    """The last lines on standard error are the problems, and nothing else is said."""
    assert result.returncode == status, result.stderr
    assert result.stderr.splitlines()[-len(problems) :] == list(problems)
    assert "Traceback" not in result.stderr
    assert SECRET not in result.stderr
    assert not result.stdout


# Arguments


def test_the_installed_command_explains_itself() -> None:
    command = Path(sys.executable).with_name("progressor-node")
    shown = subprocess.run([command, "--help"], capture_output=True, text=True, check=True).stdout
    for option in (
        "--config",
        "--check-config",
        "--migrate-only",
        "--dev",
        "--data",
        "--http",
        "--thrift",
        "--processes",
    ):
        assert f" {option} " in shown or f"[{option}" in shown


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "one of the arguments --config --dev is required"),
        (["--config", "x.toml", "--port", "1"], "unrecognized arguments: --port 1"),
        (["--config", "x.toml", "--dev"], "argument --dev: not allowed with argument --config"),
        (
            ["--config", "x.toml", "--check-config", "--migrate-only"],
            "argument --migrate-only: not allowed with argument --check-config",
        ),
        (["--config", "x.toml", "--processes", "0"], "argument --processes: expected a number from 1 to 64, got '0'"),
        (["--config", "x.toml", "--data", "x"], "--data, --http and --thrift go with --dev"),
        (["--config", "x.toml", "--http", "localhost:1"], "--data, --http and --thrift go with --dev"),
        (["--config", "x.toml", "--thrift", "localhost:1"], "--data, --http and --thrift go with --dev"),
    ],
)
def test_wrong_usage(arguments: list[str], problem: str) -> None:
    result = run(*arguments)
    assert result.stderr.startswith("usage: progressor-node ")
    assert_failed(result, 2, f"progressor-node: error: {problem}")


# The configuration


def test_a_good_configuration_needs_no_database_to_be_checked(write: Write, tmp_path: Path) -> None:
    result = run("--config", write(config(NOWHERE, tmp_path)), "--check-config")
    assert (result.returncode, result.stdout, result.stderr) == (0, "the configuration is fine\n", "")


@pytest.mark.parametrize("more", [["--check-config"], []])
def test_every_mistake_has_a_line(write: Write, tmp_path: Path, more: list[str]) -> None:
    tables = config(NOWHERE, tmp_path, node={"lease_timeout": 0.1}, namespace={"worker_pool": 3}, http="8022")
    tables["databases"]["db"]["passwort"] = SECRET
    tables["pools"]["default_pool"]["database"] = "bd"
    result = run("--config", write(tables), *more)
    assert_failed(
        result,
        2,
        "databases.db.passwort: unknown key, did you mean password?",
        'pools.default_pool.database: no database "bd" in [databases], did you mean "db"?',
        'listen.http: expected "host:port", got "8022"',
        "progressor.lease_timeout: expected more than 2 x heartbeat_interval (0.3), got 0.1",
        f'progressor.namespaces."{NS}".worker_pool: unknown key, did you mean worker_pool_size?',
    )
    assert len(result.stderr.splitlines()) == 5


def test_processors_that_cannot_be_found(write: Write, tmp_path: Path) -> None:
    tables = config(NOWHERE, tmp_path)
    tables["progressor"]["namespaces"] = {
        "a": {"processor": {"client": "ehco"}},
        "b": {"processor": {"client": "no.such.module:thing"}},
        "c": {"processor": {"client": "tests.acceptance.processors:missing"}},
        "d": {"processor": {"client": "tests.acceptance.processors:Path"}},
    }
    result = run("--config", write(tables), "--check-config")
    assert_failed(
        result,
        2,
        "progressor.namespaces.\"a\".processor: processor 'ehco': expected one of echo, counter, payment, thrift, "
        "package.module:Name, or an entry point",
        "progressor.namespaces.\"b\".processor: processor 'no.such.module:thing': there is no module 'no'",
        "progressor.namespaces.\"c\".processor: processor 'tests.acceptance.processors:missing': module "
        "'tests.acceptance.processors' has no attribute 'missing'",
        *result.stderr.splitlines()[3:],
    )
    assert len(result.stderr.splitlines()) == 4
    assert "processor 'tests.acceptance.processors:Path': " in result.stderr


def test_settings_that_librdkafka_does_not_take(write: Write, tmp_path: Path) -> None:
    tables = config(NOWHERE, tmp_path)
    tables["kafka"] = {"clients": {"k": {"endpoints": ["h:9092"], "config": {"sasl.passwort": SECRET}}}}
    problem = 'kafka.clients.k.config: No such configuration property: "sasl.passwort"'
    assert_failed(run("--config", write(tables), "--check-config"), 2, problem)


def test_what_the_file_names_and_cannot_be_used(write: Write, tmp_path: Path, certificates: Path) -> None:
    """Whatever is wrong, all of it is listed."""
    tables = config(NOWHERE, tmp_path)
    tables["progressor"]["namespaces"][NS]["processor"] = {"client": "ehco"}
    tables["kafka"] = {"clients": {"k": {"endpoints": ["h:9092"], "config": {"sasl.passwort": SECRET}}}}
    files = {"certificate": certificates / "node.pem", "key": certificates / "client.key"}
    tables["listen"]["tls"] = {name: str(path) for name, path in files.items()}
    for more in (["--check-config"], [], ["--processes", "2"]):
        result = run("--config", write(tables), *more)
        assert_failed(
            result,
            2,
            'kafka.clients.k.config: No such configuration property: "sasl.passwort"',
            f"progressor.namespaces.\"{NS}\".processor: processor 'ehco': expected one of echo, counter, payment, "
            "thrift, package.module:Name, or an entry point",
            "listen.tls: certificate, key and client_ca do not fit: KEY_VALUES_MISMATCH",
        )
        assert len(result.stderr.splitlines()) == 3


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert_failed(run("--config", tmp_path / "x.toml"), 2, f"{tmp_path}/x.toml: No such file or directory")


def test_a_file_that_is_no_toml(tmp_path: Path) -> None:
    file = tmp_path / "sys.toml"
    file.write_text(f'[databases.db]\npassword = "{SECRET}"\nport = \n')
    assert_failed(run("--config", file, "--check-config"), 2, f"{file}: Invalid value (at line 3, column 8)")


# The database


def test_migrating_apart(database: Database, work: Work, gates: Gates, write: Write, start_node: StartNode) -> None:
    file = write(config(database.conninfo, gates.directory))
    for _ in range(2):
        result = run("--config", file, "--migrate-only")
        assert (result.returncode, result.stdout) == (0, "the database is up to date\n"), result.stderr
    assert work.nodes() == 0
    work.add("p")
    node = start_node(node={"migration_enabled": False})
    eventually(lambda: work.done() == ["p"])
    assert node.stop() == 0


def test_an_empty_database_is_not_migrated_unasked(database: Database, gates: Gates, write: Write) -> None:
    file = write(config(database.conninfo, gates.directory, node={"migration_enabled": False}))
    for more in ([], ["--processes", "2"]):
        result = run("--config", file, *more)
        problem = "progressor-node: the database has no Progressor schema: run progressor-node --migrate-only"
        assert_failed(result, 1, problem)
    with psycopg.connect(**database.conninfo) as connection:
        assert connection.execute("select count(*) from pg_tables where schemaname = 'public'").fetchone() == (0,)


@pytest.mark.parametrize("more", [[], ["--migrate-only"]])
def test_the_database_is_away(write: Write, tmp_path: Path, more: list[str]) -> None:
    result = run("--config", write(config(NOWHERE, tmp_path)), "--log-level", "debug", *more)
    assert_failed(result, 1, result.stderr.splitlines()[-1])
    assert "progressor-node: storage unavailable, try again: " in result.stderr
    assert 'server at "127.0.0.1", port 1 failed: Connection refused' in result.stderr


def test_the_password_is_wrong(database: Database, write: Write, tmp_path: Path) -> None:
    file = write(config({**database.conninfo, "password": SECRET}, tmp_path))
    result = run("--config", file, "--log-level", "debug")
    assert_failed(result, 1, result.stderr.splitlines()[-1])
    assert "password authentication failed for user" in result.stderr.splitlines()[-1]


# The HTTP port


@pytest.mark.parametrize("more", [[], ["--processes", "2"]])
def test_the_port_is_taken(database: Database, work: Work, write: Write, tmp_path: Path, more: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = run("--config", write(config(database.conninfo, tmp_path, http=address)), *more)
        assert_failed(result, 1, f"progressor-node: cannot listen on {address}: Address already in use")
    assert work.nodes() == 0


def test_an_ipv6_address(database: Database, write: Write, tmp_path: Path, start_node: StartNode) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    node = start_node(http="[::1]:0")
    assert node.get("/ready").json == {"ready": True}
