"""`progressor-node` as its users start it: a command with arguments, two streams, signals and an HTTP port."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import psycopg
from psycopg.rows import TupleRow
from thrift.protocol.TBinaryProtocol import TBinaryProtocol
from thrift.transport.THttpClient import THttpClient
from thrift.transport.TSocket import TSocket
from thrift.transport.TTransport import TFramedTransport

from progressor.rpc.gen.native import Progressor as Native
from progressor.rpc.gen.state_processing import Automaton
from progressor.storage import sql
from tests.eventually import eventually

WOODY_IDS = {"woody.trace-id": "t", "woody.span-id": "s", "woody.parent-id": "undefined"}
ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-W", "error", "-m", "progressor.node")
NS = "acceptance/gate"
FREE_PORT = "127.0.0.1:0"
PATIENCE = 30
"""Seconds that a test waits for what must come."""


def config(
    conninfo: Mapping[str, Any],
    gates: Path,
    *,
    node: Mapping[str, Any] | None = None,
    namespace: Mapping[str, Any] | None = None,
    http: str = FREE_PORT,
    kafka: str | None = None,
) -> dict[str, Any]:
    """One namespace, `NS`, with one worker that passes the gates of `processors.gated`. `kafka` is the client "k"."""
    return {
        "progressor": {
            "lease_timeout": 2,
            "heartbeat_interval": 0.3,
            **(node or {}),
            "namespaces": {
                NS: {
                    "processor": {
                        "client": "tests.acceptance.processors:gated",
                        "options": {"directory": str(gates)},
                    },
                    "worker_pool_size": 1,
                    "process_step_timeout": 60,
                    "task_scan_timeout": 0.5,
                    "call_scan_timeout": 0.5,
                    "retry_policy": {"initial_timeout": 0.1},
                    **(namespace or {}),
                }
            },
        },
        "databases": {
            "db": {
                "host": conninfo["host"],
                "port": conninfo["port"],
                "database": conninfo["dbname"],
                "username": conninfo["user"],
                "password": conninfo["password"],
            }
        },
        "pools": {
            n: {"database": "db", "size": 3} for n in ("default_pool", "default_scan_pool", "default_front_pool")
        },
        "listen": {"http": http},
        **({} if kafka is None else {"kafka": {"clients": {"k": {"endpoints": [kafka]}}}}),
    }


def as_toml(table: Mapping[str, Any], path: str = "") -> str:
    """Enough of TOML for these files: JSON writes strings, numbers, truth values and lists as TOML does."""
    plain = [f"{json.dumps(k)} = {json.dumps(v)}" for k, v in table.items() if not isinstance(v, Mapping)]
    nested = [as_toml(v, f"{path}.{json.dumps(k)}".strip(".")) for k, v in table.items() if isinstance(v, Mapping)]
    return "\n".join(([f"[{path}]"] if path else []) + plain + nested)


def run(*arguments: str | Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The command, when it ends by itself."""
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@dataclass(frozen=True)
class Page:
    status: int
    content_type: str
    body: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class NodeProcess:
    """A node that runs until it is told to stop. Its log is in the file `log`."""

    def __init__(self, log: Path, *arguments: str | Path, env: Mapping[str, str] | None = None) -> None:
        self.log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [*COMMAND, *arguments],
                cwd=ROOT,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    @property
    def errors(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "progressor-node: ready\n", self.errors

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """The exit status."""
        return self._process.wait(PATIENCE)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.send(number)
        return self.wait()

    def engine_processes(self) -> list[int]:
        return [int(pid) for pid in re.findall(r"engine process \d: pid (\d+)", self.errors)]

    def close(self) -> None:
        for pid in self.engine_processes():
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    # HTTP

    @property
    def url(self) -> str:
        found = re.search(r"(https?://\S+)/metrics", self.errors)
        assert found is not None, self.errors
        return found[1]

    @property
    def thrift_url(self) -> str:
        found = re.search(r"(thrifts?://\S+)", self.errors)
        assert found is not None, self.errors
        return found[1]

    def get(self, path: str) -> Page:
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=PATIENCE) as answer:
                return Page(answer.status, answer.headers["Content-Type"], answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return Page(error.code, error.headers["Content-Type"], error.read().decode())

    @property
    def refuses_connections(self) -> bool:
        host, port = self.url.partition("://")[2].split(":")
        try:
            socket.create_connection((host, int(port))).close()
        except ConnectionRefusedError:
            return True
        return False

    def metric(self, name: str) -> float:
        """The sum of the samples of this name."""
        samples = re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", self.get("/metrics").body, re.MULTILINE)
        return sum(map(float, samples))


StartNode: TypeAlias = Callable[..., NodeProcess]


@contextmanager
def automaton(node: NodeProcess, **headers: str) -> Iterator[Automaton.Client]:
    """The generated client over Apache's HTTP transport."""
    transport = THttpClient(f"{node.url}/v1/automaton")
    transport.setCustomHeaders({**WOODY_IDS, **headers})
    try:
        yield Automaton.Client(TBinaryProtocol(transport))
    finally:
        transport.close()


@contextmanager
def native(node: NodeProcess, transport: str) -> Iterator[Native.Client]:
    """The generated client of the native service over a transport of Apache's library: `http` or `thrift`."""
    if transport == "http":
        stream = THttpClient(f"{node.url}/v1/progressor")
    else:
        host, port = node.thrift_url.removeprefix("thrift://").split(":")
        stream = TFramedTransport(TSocket(host, int(port)))
    stream.open()
    try:
        yield Native.Client(TBinaryProtocol(stream))
    finally:
        stream.close()


@contextmanager
def started(log: Path, *arguments: str | Path, env: Mapping[str, str] | None = None) -> Iterator[NodeProcess]:
    """A node, not necessarily ready; it is killed at the end."""
    node = NodeProcess(log, *arguments, env=env)
    try:
        yield node
    finally:
        node.close()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def servers_in(directory: Path) -> list[int]:
    """The PostgreSQL processes whose data are somewhere in this directory."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal() and _is_in(entry, directory)]


def _is_in(process: Path, directory: Path) -> bool:
    try:
        return (process / "cwd").readlink().is_relative_to(directory)
    except OSError:  # it has ended
        return False


class Work:
    """What a node finds in the database, put there by nobody's client."""

    def __init__(self, conninfo: Mapping[str, Any]) -> None:
        self._conninfo = conninfo

    def query(self, text: str, *parameters: Any) -> list[TupleRow]:
        """A query with the tables of NS, as {tasks}, {running} ..."""
        with psycopg.connect(**self._conninfo, autocommit=True) as connection:
            return connection.execute(sql.fill(text, NS), parameters).fetchall()

    def add(self, *process_ids: str) -> None:
        """Processes with a timer that is due."""
        for process_id in process_ids:
            self.query(
                """
                with process as (
                  insert into {processes} (process_id, status, previous_status) values (%s, 'running', 'running')
                  returning process_id
                ), task as (
                  insert into {tasks}
                    (process_id, task_type, status, scheduled_time, last_retry_interval, attempts_count)
                  select process_id, 'timeout', 'waiting', now(), 0, 0 from process
                  returning task_id, process_id, task_type, status, scheduled_time, last_retry_interval, attempts_count
                )
                insert into {schedule}
                  (task_id, process_id, task_type, status, scheduled_time, last_retry_interval, attempts_count)
                select * from task
                returning 1
                """,
                process_id,
            )

    def done(self) -> list[str]:
        """The processes that have made their step, which is committed."""
        return self._ids("select process_id from {events} order by task_id")

    def running(self) -> list[str]:
        return self._ids("select process_id from {running} order by process_id")

    def waiting(self) -> list[str]:
        return self._ids("select process_id from {schedule} where status = 'waiting' order by process_id")

    def statuses(self) -> dict[str, str]:
        """Of the tasks, by process."""
        return dict(self.query("select process_id, status::text from {tasks} order by task_id"))

    def nodes(self) -> int:
        return len(self.query("select epoch from progressor_nodes"))

    def _ids(self, text: str) -> list[str]:
        return [process_id for (process_id,) in self.query(text)]


class Gates:
    """Holds steps of `processors.gated`, by process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def hold(self, process_id: str) -> None:
        os.mkfifo(self.directory / f"gate {process_id}")

    def await_step(self, process_id: str) -> None:
        """Until a held step of this process waits at its gate."""
        eventually((self.directory / f"began {process_id}").exists, PATIENCE)

    def remove(self, process_id: str) -> None:
        """For those that come; the step that waits there hangs for ever."""
        (self.directory / f"gate {process_id}").unlink()

    def open(self, process_id: str) -> None:
        """Lets go the step that waits there, and those that come."""
        gate = self.directory / f"gate {process_id}"
        waiting = gate.open("wb")  # the other end is open by then
        gate.unlink()
        waiting.close()
