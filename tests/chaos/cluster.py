"""Nodes as processes of their own, to be killed, frozen and asked; and one in the test that lives on.

with Cluster(directory, database) as cluster:
    victim, live = cluster.start("victim"), cluster.live()
    cluster.hold("victim", "p", "call")
    ...
    victim.kill()
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import psycopg
from psycopg.rows import TupleRow

import progressor.errors
from progressor import Node
from progressor.errors import StorageUnavailable
from progressor.storage import sql
from tests.chaos.proxy import Proxy
from tests.eventually import eventually

ROOT = Path(__file__).parents[2]
PROGRESSOR_NODE = (sys.executable, "-W", "error", "-m", "progressor.node")
LEASE, HEARTBEAT = 2.0, 0.4
TAKEOVER = LEASE + 3
"""Within this time another node has taken over what a dead node ran."""
START_TIMEOUT = 30.0

NS, AGAIN, SINGLE = "chaos/ledger", "chaos/again", "chaos/single"
"""The namespaces: of the defaults; where interrupted tasks run again; with one worker."""
NAMESPACES: Mapping[str, Mapping[str, Any]] = {
    NS: {},
    AGAIN: {"retry_interrupted": ["init", "call", "repair"]},
    SINGLE: {"worker_pool_size": 1},
}
Connection: TypeAlias = psycopg.Connection[TupleRow]


class Verbs:
    """The client of a node process. Raises what the node's own client raised; ConnectionError when the node dies."""

    def __init__(self, control: Path) -> None:
        self._control = control

    def init(self, **arguments: Any) -> bytes | None:
        return self._response("init", arguments)

    def call(self, **arguments: Any) -> bytes | None:
        return self._response("call", arguments)

    def repair(self, **arguments: Any) -> bytes | None:
        return self._response("repair", arguments)

    def notify(self, **arguments: Any) -> object:
        return self._ask("notify", arguments)

    def _response(self, verb: str, arguments: Mapping[str, Any]) -> bytes | None:
        result = self._ask(verb, arguments)
        return result.encode("latin-1") if isinstance(result, str) else None

    def _ask(self, verb: str, arguments: Mapping[str, Any]) -> object:
        texts = {
            name: value.decode("latin-1") if isinstance(value, bytes) else value for name, value in arguments.items()
        }
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self._control))
            connection.sendall(json.dumps({"verb": verb, "arguments": texts}).encode() + b"\n")
            with connection.makefile("rb") as answers:
                line = answers.readline()
        if not line:
            raise ConnectionResetError("the node has died")
        answer = json.loads(line)
        if "error" in answer:
            raise _error(answer["error"], answer["text"])
        return answer["result"]


def _error(name: str, text: str) -> Exception:
    if name == "InvalidRequest":
        return progressor.errors.InvalidRequest("?", text)
    error: Exception = getattr(progressor.errors, name)(text)
    return error


@dataclass
class NodeProcess:
    """A `progressor-node` of its own."""

    name: str
    command: Sequence[str]
    log: Path
    control: Path
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        self.control.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            log.truncate(0)
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def wait_ready(self) -> None:
        eventually(lambda: self.process.poll() is not None or "progressor-node: ready" in self.output, START_TIMEOUT)
        assert self.is_alive, self.output

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    @property
    def client(self) -> Verbs:
        return Verbs(self.control)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait()

    def freeze(self) -> None:
        self.signal(signal.SIGSTOP)
        eventually(lambda: _state(self.process.pid) == "T")

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def stop(self, timeout: float = 30) -> int:
        """SIGTERM; the exit status."""
        self.signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def close(self) -> None:
        if self.is_alive:
            self.signal(signal.SIGCONT)
            self.kill()

    # HTTP

    def get(self, path: str) -> tuple[int, bytes]:
        found = re.search(r"http://(127\.0\.0\.1:\d+)/", self.output)
        assert found is not None, self.output
        try:
            with urllib.request.urlopen(f"http://{found[1]}{path}", timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name that have these labels."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        lines = self.get("/metrics")[1].decode().splitlines()
        samples = [line.rpartition(" ") for line in lines if re.match(rf"{re.escape(name)}[ {{]", line)]
        return sum(float(value) for head, _, value in samples if all(label in head for label in wanted))


class Cluster:
    """Nodes on one database. `settings`: more keys of `[progressor]`; `defaults`: of `[progressor.defaults]`; `kafka`:
    the endpoint of a client "kafka".

    The processes have a control socket and a client, unless they are `plain`: then they are `progressor-node` itself.
    """

    def __init__(
        self,
        conninfo: Mapping[str, Any],
        *,
        settings: Mapping[str, Any] | None = None,
        defaults: Mapping[str, Any] | None = None,
        kafka: str | None = None,
        plain: bool = False,
    ) -> None:
        self.conninfo = dict(conninfo)
        self._kafka = {} if kafka is None else {"clients": {"kafka": {"endpoints": [kafka]}}}
        self._plain = plain
        self._settings = {
            "lease_timeout": LEASE,
            "heartbeat_interval": HEARTBEAT,
            "drain_timeout": 15,
            **(settings or {}),
        }
        self._defaults = {
            "worker_pool_size": 12,
            "process_step_timeout": 20,
            "task_scan_timeout": 1,
            "call_scan_timeout": 0.5,
            "retry_policy": {
                "initial_timeout": 0.1,
                "backoff_coefficient": 1.0,
                "max_timeout": 1,
                "max_attempts": 1000,
            },
            **(defaults or {}),
        }
        self._stack = ExitStack()
        self.nodes: dict[str, NodeProcess] = {}

    def __enter__(self) -> Self:
        # Not tmp_path: the name of a socket is short.
        self.directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        self._background = self._stack.enter_context(ThreadPoolExecutor(64, "client"))
        self._stack.callback(self._close_nodes)  # before the clients, who wait for them
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for node in self.nodes.values():
                print(f"--- {node.name}\n{node.output[-20000:]}")
        self._stack.close()

    def start(self, *names: str, conninfo: Mapping[str, Any] | None = None) -> list[NodeProcess]:
        """Node processes, ready to work."""
        started = [self._launch(name, conninfo or self.conninfo) for name in names]
        for node in started:
            node.wait_ready()
        return started

    def restart(self, node: NodeProcess) -> None:
        node.start()
        node.wait_ready()

    def live(self, name: str = "live", conninfo: Mapping[str, Any] | None = None) -> Node:
        """A node in the test."""
        return self._stack.enter_context(Node.from_config(self.config(name, conninfo or self.conninfo, http=False)))

    def proxy(self) -> tuple[Proxy, dict[str, Any]]:
        """A proxy before the database, and the conninfo that leads through it."""
        proxy = Proxy((self.conninfo["host"], self.conninfo["port"]))
        self._stack.callback(proxy.close)
        return proxy, {**self.conninfo, "port": proxy.port}

    def connect(self) -> Connection:
        return self._stack.enter_context(psycopg.connect(**self.conninfo, autocommit=True))

    def background(self, action: Callable[..., Any], /, **arguments: Any) -> Future[Any]:
        """Does it in another thread."""
        return self._background.submit(action, **arguments)

    def config(self, name: str, conninfo: Mapping[str, Any], *, http: bool = True) -> dict[str, Any]:
        options = {"directory": str(self.directory), "node": name}
        pools = {"default_pool": 6, "default_scan_pool": 2, "default_front_pool": 6}
        return {
            "progressor": {
                "node_name": name,
                **self._settings,
                "defaults": self._defaults,
                "namespaces": {
                    ns: {"processor": {"client": "tests.chaos.processors:ledger", "options": options}, **more}
                    for ns, more in NAMESPACES.items()
                },
            },
            "databases": {
                "progressor_db": {
                    "host": conninfo["host"],
                    "port": conninfo["port"],
                    "database": conninfo["dbname"],
                    "username": conninfo["user"],
                    "password": conninfo["password"],
                }
            },
            "pools": {pool: {"database": "progressor_db", "size": size} for pool, size in pools.items()},
            "listen": {"http": "127.0.0.1:0"} if http else {},
            "kafka": self._kafka,
        }

    # Gates of the processor

    def hold(self, node: str, process_id: str, task_type: str) -> None:
        (self.directory / f"hold {node} {process_id} {task_type}").touch()

    def let_go(self, node: str, process_id: str, task_type: str) -> None:
        (self.directory / f"hold {node} {process_id} {task_type}").unlink()

    def began(self, node: str, process_id: str, task_type: str) -> int:
        """How many steps of this kind began on this node."""
        try:
            return len((self.directory / f"began {node} {process_id} {task_type}").read_text().splitlines())
        except FileNotFoundError:
            return 0

    def await_step(self, node: str, process_id: str, task_type: str) -> None:
        eventually(lambda: self.began(node, process_id, task_type), 15)

    def _launch(self, name: str, conninfo: Mapping[str, Any]) -> NodeProcess:
        config, control = self.directory / f"{name}.toml", self.directory / f"{name}.sock"
        config.write_text(toml(self.config(name, conninfo)))
        controlled = [sys.executable, "-W", "error", "-m", "tests.chaos.controlled_node", str(control)]
        command = [*(PROGRESSOR_NODE if self._plain else controlled), "--config", str(config)]
        node = NodeProcess(name, command, self.directory / f"{name}.log", control)
        node.start()
        self.nodes[name] = node
        return node

    def _close_nodes(self) -> None:
        for node in self.nodes.values():
            node.close()


def toml(tables: Mapping[str, Any]) -> str:
    """Nested dictionaries as a TOML file. JSON's strings, numbers, truth values and lists are TOML's too."""
    return "".join(_lines((), tables))


def _lines(path: tuple[str, ...], table: Mapping[str, Any]) -> Iterator[str]:
    if path:
        yield f"[{'.'.join(map(json.dumps, path))}]\n"
    for key, value in table.items():
        if not isinstance(value, Mapping):
            yield f"{json.dumps(key)} = {json.dumps(value)}\n"
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _lines((*path, key), value)


def order(**parts: Any) -> bytes:
    """The args of a step (`processors.ledger`)."""
    return json.dumps(parts).encode()


def query(connection: Connection, ns: str, text: str, *parameters: Any) -> list[TupleRow]:
    """A query with the namespace's tables, as {tasks}, {running} ..."""
    return connection.execute(sql.fill(text, ns), parameters).fetchall()


def said(connection: Connection, ns: str, process_id: str) -> list[tuple[str, str]]:
    """Task type and text of each event of a process, in order."""
    text = "select payload from {events} where process_id = %s order by event_id"
    events = [json.loads(payload) for (payload,) in query(connection, ns, text, process_id)]
    return [(event["type"], event["say"]) for event in events]


def status(connection: Connection, ns: str, process_id: str) -> tuple[str, str | None] | None:
    """Status and detail of a process."""
    for row in query(connection, ns, "select status::text, detail from {processes} where process_id = %s", process_id):
        return row[0], row[1]
    return None


def until_acknowledged(action: Callable[[], bytes | None], is_over: Callable[[], bool]) -> bytes | None:
    """Tries as a client does who has an idempotency key; raises what the node answers in the end."""
    while True:
        try:
            return action()
        except (StorageUnavailable, progressor.errors.RequestTimeout, ConnectionError, FileNotFoundError):
            if is_over():
                raise


@contextmanager
def frozen_server(postmaster: int) -> Iterator[None]:
    """A server that stalls: no process of it runs, no connection breaks."""
    processes = [postmaster, *_children(postmaster)]
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in processes:
            os.kill(pid, signal.SIGCONT)


def _children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in found.split()]


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
