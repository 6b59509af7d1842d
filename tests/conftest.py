"""What every test may use: one PostgreSQL server for the whole run, and a database of its own for a test; one broker.

`--postgres-bin DIR`, or the variable PROGRESSOR_POSTGRES_BIN, runs the tests on the server of that directory;
`--postgres-bin bundled:18` on version 18 of the extra `embedded`.

Tests of Kafka have one broker for the whole run. They are skipped where there is none (scripts/kafka), unless the
variable CI is set.
"""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Identifier

from progressor.storage.embedded import EmbeddedPostgres

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from kafka.broker import Broker, KafkaNotFound

IN_MEMORY = Path("/dev/shm")
"""Linux has a file system in memory there. To make a database takes a tenth of the time in it."""

# The tests that cut the power have a server of their own.
FAST_SETTINGS = {"fsync": "off", "full_page_writes": "off", "autovacuum_naptime": "10s"}


@dataclass(frozen=True)
class Database:
    """A database of the test's own; `conninfo` holds the arguments of psycopg.connect."""

    name: str
    conninfo: dict[str, Any]

    @property
    def dsn(self) -> str:
        return make_conninfo(**self.conninfo)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--postgres-bin",
        metavar="DIR",
        default=os.environ.get("PROGRESSOR_POSTGRES_BIN") or None,
        help="the binaries of the PostgreSQL to test on: a directory, `bundled` or `bundled:18`",
    )


def pytest_report_header(config: pytest.Config) -> str:
    return f"PostgreSQL binaries: {config.getoption('--postgres-bin') or 'those of the machine'}"


@pytest.fixture(scope="session")
def postgres_bin(pytestconfig: pytest.Config) -> str | None:
    """What the run was told with --postgres-bin."""
    given: str | None = pytestconfig.getoption("--postgres-bin")
    return given


@pytest.fixture(scope="session")
def postgres_server(postgres_bin: str | None) -> Iterator[EmbeddedPostgres]:
    with pytest.MonkeyPatch.context() as patch:
        if has_room(IN_MEMORY):
            patch.setattr(tempfile, "tempdir", str(IN_MEMORY))
        server = EmbeddedPostgres.start(bin_dir=postgres_bin, settings=FAST_SETTINGS)
    with server:
        yield server


def has_room(directory: Path) -> bool:
    """For a server: its binaries may be copied there and run, and its WAL grows to a gigabyte between checkpoints."""
    try:
        found = os.statvfs(directory)
    except FileNotFoundError:
        return False
    return not found.f_flag & os.ST_NOEXEC and found.f_bavail * found.f_frsize > 4 * 2**30


@pytest.fixture(scope="session")
def kafka() -> Iterator[Broker]:
    """A broker that a test may freeze and kill, if it starts it again. Topics of other tests are in it."""
    try:
        broker = Broker()
    except KafkaNotFound as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no Kafka: {str(missing).splitlines()[0]}")
    with broker:
        yield broker


@pytest.fixture
def database(postgres_server: EmbeddedPostgres) -> Iterator[Database]:
    with fresh_database(postgres_server) as database:
        yield database


@contextmanager
def fresh_database(server: EmbeddedPostgres, template: str = "template1") -> Iterator[Database]:
    """A copy of the template, by default empty; it is dropped at the end, whoever is connected."""
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(**server.conninfo, autocommit=True) as admin:
        admin.execute(
            SQL("CREATE DATABASE {} TEMPLATE {}").format(Identifier(name), Identifier(template)),
        )
    try:
        yield Database(name, {**server.conninfo, "dbname": name})
    finally:
        with psycopg.connect(**server.conninfo, autocommit=True) as admin:
            admin.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))
