"""Nodes inside a test, with processors that the test writes as functions.

    with stage.node(database, {"a/b": script}) as node:
        node.client.init(ns="a/b", id="p", args=b"...")

A script takes the StepRequest and the context and returns an Intent or raises. `steps(...)` makes one of a
list of functions, one for each step.

Tests that share a node have processes with a script each:

    play = theatre.play(does(b"born"), does(b"called", response=b"yes"))
    play.init()
    assert play.call() == b"yes"
    assert play.payloads == [b"born", b"called"]
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event as Flag
from typing import Any, Self, TypeAlias

import psycopg
from psycopg.sql import SQL, Identifier

from progressor import Event, Intent, LocalClient, Node, Process, StepRequest, TraceUnit
from progressor.model import Action, Metadata
from tests.conftest import Database
from tests.eventually import eventually

Script: TypeAlias = Callable[[StepRequest, bytes], Intent]
Step: TypeAlias = Callable[[StepRequest], Intent]
TABLES = ("processes", "tasks", "schedule", "running", "events")
PATIENCE = 30
"""Seconds that a test waits for what must come."""

_SCRIPTS: dict[str, Script] = {}
_NUMBERS = itertools.count()

FAST_RETRIES = {"initial_timeout": 0.1, "backoff_coefficient": 1.0, "max_timeout": 1, "max_attempts": 2}


def process(request: StepRequest, options: Mapping[str, Any], context: bytes) -> Intent:
    """The processor of all scripts: `tests.stage:process`."""
    return _SCRIPTS[options["script"]](request, context)


def config(
    database: Database,
    scripts: Mapping[str, Script],
    *,
    node: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
    namespaces: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """A configuration for a test: few workers, short timeouts. `namespaces`: more keys, by namespace."""
    pools = {"default_pool": 4, "default_scan_pool": 2, "default_front_pool": 4}
    return {
        "progressor": {
            "drain_timeout": 10,
            **(node or {}),
            "defaults": {
                "worker_pool_size": 5,
                "process_step_timeout": 10,
                "task_scan_timeout": 1,
                "call_scan_timeout": 0.5,
                "retry_policy": FAST_RETRIES,
                **(defaults or {}),
            },
            "namespaces": {
                ns: {"processor": _processor(script), **(namespaces or {}).get(ns, {})}
                for ns, script in scripts.items()
            },
        },
        "databases": {
            "progressor_db": {
                "host": database.conninfo["host"],
                "port": database.conninfo["port"],
                "database": database.conninfo["dbname"],
                "username": database.conninfo["user"],
                "password": database.conninfo["password"],
            }
        },
        "pools": {name: {"database": "progressor_db", "size": size} for name, size in pools.items()},
    }


@contextmanager
def node(database: Database, scripts: Mapping[str, Script], **settings: Any) -> Iterator[Node]:
    """A running node; `settings` as in `config`."""
    with Node.from_config(config(database, scripts, **settings)) as running:
        yield running


def steps(*answers: Step) -> Script:
    """A script that gives the n-th step of all to the n-th function; one step too many is a defect."""
    remaining = iter(answers)
    return lambda request, _: next(remaining)(request)


# Steps


def does(
    *payloads: bytes,
    response: bytes | None = None,
    action: Callable[[], Action] | Action | None = None,
    aux_state: bytes | None = None,
    metadata: Metadata | None = None,
) -> Step:
    """A step that succeeds with these events; `action` may be made when the step runs."""

    def step(_: StepRequest) -> Intent:
        events = [Event(payload) for payload in payloads]
        return Intent(events, aux_state, metadata, response, action() if callable(action) else action)

    return step


def fails(error: BaseException) -> Step:
    def step(_: StepRequest) -> Intent:
        raise error

    return step


def returns(result: Any) -> Step:
    """A step with a result that no processor should give."""
    return lambda _: result


class Gate:
    """Holds a step: it tells that it is there, and waits until the gate is opened."""

    def __init__(self) -> None:
        self._entered = Flag()
        self._opened = Flag()

    def holds(self, step: Step) -> Step:
        def held(request: StepRequest) -> Intent:
            self._entered.set()
            assert self._opened.wait(PATIENCE)
            return step(request)

        return held

    def wait_entered(self) -> None:
        assert self._entered.wait(PATIENCE)

    def open(self) -> None:
        self._opened.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.open()


# Processes that share a node


class Theatre:
    """A node whose processes have a script each; `play` makes such a process, not yet initialised."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.node: Node
        self._plays: dict[tuple[str, str], Play] = {}
        self._numbers = itertools.count(1)

    def __call__(self, request: StepRequest, context: bytes) -> Intent:
        return self._plays[request.namespace, request.process.process_id].perform(request, context)

    def play(self, *script: Step, ns: str = "a/b", id: str | None = None) -> Play:
        name = f"p{next(self._numbers)}" if id is None else id
        play = self._plays[ns, name] = Play(self.node.client, self.database, ns, name, steps(*script))
        return play


@dataclass(frozen=True)
class Seen:
    """What a step was given."""

    request: StepRequest
    context: bytes

    @property
    def payloads(self) -> Sequence[bytes]:
        return [event.payload for event in self.request.process.history]


@dataclass
class Play:
    """A process with a script of its own: the verbs for it, what it looks like, and what its steps have seen."""

    client: LocalClient
    database: Database
    ns: str
    id: str
    script: Script
    seen: list[Seen] = field(default_factory=list)

    def perform(self, request: StepRequest, context: bytes) -> Intent:
        self.seen.append(Seen(request, context))
        return self.script(request, context)

    def at(self, node: Node) -> Play:
        """The same process, asked through another node."""
        return Play(node.client, self.database, self.ns, self.id, self.script, self.seen)

    def init(self, args: bytes = b"", **options: Any) -> bytes | None:
        return self.client.init(ns=self.ns, id=self.id, args=args, **options)

    def call(self, args: bytes = b"", **options: Any) -> bytes | None:
        return self.client.call(ns=self.ns, id=self.id, args=args, **options)

    def repair(self, args: bytes = b"", **options: Any) -> bytes | None:
        return self.client.repair(ns=self.ns, id=self.id, args=args, **options)

    def simple_repair(self, **options: Any) -> None:
        self.client.simple_repair(ns=self.ns, id=self.id, **options)

    def notify(self, args: bytes = b"", **options: Any) -> int:
        return self.client.notify(ns=self.ns, id=self.id, args=args, **options)

    def remove(self, **options: Any) -> None:
        self.client.remove(ns=self.ns, id=self.id, **options)

    def put(self, action: Action | None = None, context: bytes = b"", **fields: Any) -> None:
        self.client.put(ns=self.ns, id=self.id, process=Process(self.id, **fields), action=action, context=context)

    def get(self, **options: Any) -> Process:
        return self.client.get(ns=self.ns, id=self.id, **options)

    def trace(self) -> Sequence[TraceUnit]:
        return self.client.trace(ns=self.ns, id=self.id)

    def later(self, verb: str, **options: Any) -> Future[Any]:
        """The verb as a future."""
        future: Future[Any] = getattr(self.client.future, verb)(ns=self.ns, id=self.id, **options)
        return future

    @property
    def payloads(self) -> Sequence[bytes]:
        return [event.payload for event in self.get().history]

    @property
    def tasks(self) -> Sequence[str]:
        """Type and status of each task: `call finished`."""
        return [f"{unit.task_type} {unit.status}" for unit in self.trace()]

    @property
    def types(self) -> Sequence[str]:
        """The task types of the steps that the processor has seen."""
        return [str(seen.request.task_type) for seen in self.seen]

    @property
    def rows(self) -> Mapping[str, int]:
        """In which tables there is something of this process, and how many rows."""
        count = SQL("select count(*) from {} where process_id = %s")
        ns = self.ns.replace("%", "%%")
        with psycopg.connect(**self.database.conninfo) as connection:
            found = {
                table: connection.execute(count.format(Identifier(f"{ns}_{table}")), [self.id]).fetchone()
                for table in TABLES
            }
        return {table: row[0] for table, row in found.items() if row is not None and row[0]}

    def becomes(self, *payloads: bytes) -> None:
        """Waits until this is the history."""
        eventually(lambda: self.payloads == list(payloads))

    def rests(self) -> None:
        """Waits until nothing runs or is due."""
        eventually(lambda: not [unit for unit in self.trace() if unit.status in ("running", "blocked")])

    def breaks(self, detail: str | None = None) -> None:
        """Waits until the process is in error, for this reason."""
        eventually(lambda: self.get().status == "error")
        assert detail is None or self.get().detail == detail


def _processor(script: Script) -> dict[str, Any]:
    name = f"script {next(_NUMBERS)}"
    _SCRIPTS[name] = script
    return {"client": "tests.stage:process", "options": {"script": name}}
