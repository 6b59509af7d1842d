"""A node as the storage sees it, driven by hand: an epoch, a committer, and steps that a test decides."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from threading import Barrier
from typing import Any, TypeAlias, TypeVar

import psycopg
from psycopg.rows import TupleRow, dict_row
from psycopg.sql import SQL, Composed

from progressor.config import RetryPolicy
from progressor.engine import lifecycle
from progressor.engine.lifecycle import Failure, Kind
from progressor.engine.ports import (
    Accepted,
    Batch,
    BatchResult,
    Claim,
    Claimed,
    Completed,
    Completion,
    Hint,
    Lost,
    Refused,
    Request,
    Streams,
    Timer,
    TimerChange,
)
from progressor.model import Intent, Op, TaskType, now
from progressor.storage import sql
from progressor.storage.committer import Committer

NS = "test/ns"
SECOND_NS = "second"
ORDER = {
    "processes": SQL("process_id"),
    "tasks": SQL("task_id"),
    "schedule": SQL("task_id"),
    "running": SQL("process_id"),
    "events": SQL("process_id, event_id"),
    "outbox": SQL("message_id"),
    "dead_letters": SQL("message_id"),
}
POLICY = RetryPolicy(3600, 1, 3600, 3, frozenset())
TRANSIENT = Failure(Kind.TRANSIENT, "later")
DEFECT = Failure(Kind.DEFECT, "bug")
BUSINESS = Failure(Kind.BUSINESS, "no")
Connection: TypeAlias = psycopg.Connection[TupleRow]
Tables: TypeAlias = dict[str, list[dict[str, Any]]]

T = TypeVar("T")

_tokens = itertools.count(1)


def next_token() -> int:
    return next(_tokens)


def request(op: Op | str, process_id: str, args: bytes = b"", key: str | None = None) -> Request:
    kind = {Op.REMOVE: {"kind": "request"}, Op.SIMPLE_REPAIR: {"kind": "simple_repair"}}.get(Op(op))
    return Request(Op(op), process_id, args, b"context", key, kind, next_token())


def step(claimed: Claimed, result: Intent | Failure | None = None) -> Completion:
    """What the engine would make of a result; of none at all, a step that changes nothing."""
    return lifecycle.decide(claimed, result or Intent(), POLICY, now(), next_token())


def timer_at(claimed: Claimed, at: datetime, task_type: TaskType = TaskType.TIMEOUT) -> Completion:
    """A step that sets a timer, in the schedule even when it is due."""
    return replace(step(claimed), timer=Timer(TimerChange.AT, at, task_type))


def soon(seconds: float = 3600) -> datetime:
    return now() + timedelta(seconds=seconds)


class Node:
    def __init__(self, conninfo: Mapping[str, Any], ns: str = NS, streams: Streams | None = None) -> None:
        self.ns = ns
        self.committer = Committer(conninfo, {ns: streams} if streams else {})
        self._conninfo = dict(conninfo)
        with psycopg.connect(**self._conninfo, autocommit=True) as connection:
            row = connection.execute(
                "insert into progressor_nodes (node_name, expires_at) "
                "values ('test', now() + interval '1 hour') returning epoch"
            ).fetchone()
        assert row is not None
        self.epoch: int = row[0]

    def close(self) -> None:
        self.committer.close()

    def die(self) -> None:
        """Another node declared this one dead."""
        with psycopg.connect(**self._conninfo, autocommit=True) as connection:
            connection.execute("delete from progressor_nodes where epoch = %s", [self.epoch])

    def commit(
        self,
        requests: Sequence[Request] = (),
        completions: Sequence[Completion] = (),
        claims: Sequence[Claim] = (),
        *,
        again: bool = False,
    ) -> BatchResult:
        batch = Batch(requests, completions, claims)
        return self.committer.commit(self.epoch, {self.ns: batch}, again=again)[self.ns]

    def ask(self, op: Op | str, process_id: str, args: bytes = b"", key: str | None = None) -> Any:
        """The answer to one request."""
        (answer,) = self.commit([request(op, process_id, args, key)]).requests
        return answer

    def start(self, op: Op | str, process_id: str, args: bytes = b"", key: str | None = None) -> Claimed:
        """A request whose task starts at once."""
        accepted = self.ask(op, process_id, args, key)
        assert isinstance(accepted, Accepted), accepted
        assert accepted.started is not None
        return accepted.started

    def queue(self, op: Op | str, process_id: str, args: bytes = b"", key: str | None = None) -> int:
        """The task id of a request that has to wait."""
        accepted = self.ask(op, process_id, args, key)
        assert isinstance(accepted, Accepted), accepted
        assert accepted.started is None
        return accepted.task_id

    def complete(self, completion: Completion, *, again: bool = False) -> Completed | Lost:
        (fate,) = self.commit(completions=[completion], again=again).completions
        return fate

    def finish(self, claimed: Claimed, result: Intent | Failure | None = None) -> Completed:
        fate = self.complete(step(claimed, result))
        assert isinstance(fate, Completed), fate
        return fate

    def claim(self, *hints: Hint, again: bool = False) -> Sequence[Claimed | Hint | None]:
        return self.commit(claims=[Claim(hint, next_token()) for hint in hints], again=again).claims

    def claim_one(self, hint: Hint) -> Claimed:
        (claimed,) = self.claim(hint)
        assert isinstance(claimed, Claimed), claimed
        return claimed

    def process(self, process_id: str, intent: Intent | None = None) -> None:
        """Makes a process that runs, idle unless the intent says otherwise."""
        self.finish(self.start("init", process_id), intent)

    def broken(self, process_id: str, task_type: TaskType = TaskType.CALL) -> int:
        """Makes a process in error; returns the task that broke it."""
        self.process(process_id)
        if task_type is TaskType.CALL:
            claimed = self.start("call", process_id)
        else:
            claimed = self.due_timer(process_id, task_type)
        self.finish(claimed, DEFECT)
        return claimed.task.task_id

    def due_timer(self, process_id: str, task_type: TaskType = TaskType.TIMEOUT) -> Claimed:
        """Brings a running process into a timer's step."""
        return self.claim_one(self.timer(process_id, now() - timedelta(seconds=1), task_type))

    def timer(self, process_id: str, at: datetime, task_type: TaskType = TaskType.TIMEOUT) -> Hint:
        """Sets a timer of a running process by a call."""
        fate = self.complete(timer_at(self.start("call", process_id), at, task_type))
        assert isinstance(fate, Completed)
        (hint,) = fate.hints
        return hint


class Tap:
    """Looks at the tables of a namespace, and changes them behind the back of the nodes."""

    def __init__(self, connection: Connection, ns: str = NS) -> None:
        self.connection = connection
        self.ns = ns

    def fill(self, query: str) -> Composed:
        return sql.fill(query, sql.escaped(self.ns))

    def execute(self, query: str, *parameters: Any) -> None:
        self.connection.execute(self.fill(query), parameters)

    def rows(self, query: str, *parameters: Any) -> list[TupleRow]:
        return self.connection.execute(self.fill(query), parameters).fetchall()

    def value(self, query: str, *parameters: Any) -> Any:
        ((value,),) = self.rows(query, *parameters)
        return value

    def tables(self, *names: str) -> Tables:
        """All that the namespace holds."""
        return {name: list(self._table(name)) for name in names or ORDER}

    def _table(self, name: str) -> Iterable[dict[str, Any]]:
        with self.connection.cursor(row_factory=dict_row) as cursor:
            yield from cursor.execute(
                SQL("select * from {0} order by {1}").format(sql.names(self.ns)[name], ORDER[name])
            )

    def status(self, process_id: str) -> str | None:
        found = self.rows("select status::text from {processes} where process_id = %s", process_id)
        return str(found[0][0]) if found else None

    def task_status(self, task_id: int) -> str | None:
        found = self.rows("select status::text from {tasks} where task_id = %s", task_id)
        return str(found[0][0]) if found else None

    def schedule(self, process_id: str) -> list[tuple[int, str, str]]:
        """Task, type and status of what the schedule holds for a process."""
        query = "select task_id, task_type::text, status::text from {schedule} where process_id = %s order by task_id"
        return self.rows(query, process_id)

    def running(self, process_id: str) -> int | None:
        """The task that a process runs."""
        found = self.rows("select task_id from {running} where process_id = %s", process_id)
        return found[0][0] if found else None

    def due(self, task_id: int) -> None:
        """Time passes, until the task is due."""
        self.execute("update {schedule} set scheduled_time = now() - interval '1 s' where task_id = %s", task_id)

    def age(self, process_id: str, seconds: float) -> None:
        """The process runs its task for some time already."""
        query = "update {running} set running_time = now() - %s * interval '1 s' where process_id = %s"
        self.execute(query, seconds, process_id)

    @contextmanager
    def locked(self, process_id: str) -> Iterator[None]:
        """Holds the lock on a process, as a batch of another node does."""
        with self.connection.transaction():
            self.execute("select from {processes} where process_id = %s for update", process_id)
            yield


def race(*actions: Callable[[], T]) -> list[T]:
    """Does all of it at once, each in a thread of its own."""
    barrier = Barrier(len(actions))

    def run(action: Callable[[], T]) -> T:
        barrier.wait()
        return action()

    with ThreadPoolExecutor(len(actions)) as threads:
        return list(threads.map(run, actions))


def changes(before: Tables, after: Tables) -> Tables:
    """The rows that are new or different."""
    return {name: [row for row in after[name] if row not in before[name]] for name in after}


def started(answer: object) -> Claimed:
    assert isinstance(answer, Accepted), answer
    assert answer.started is not None
    return answer.started


def next_of(fate: Completed | Lost) -> Claimed:
    assert isinstance(fate, Completed), fate
    assert fate.next is not None
    return fate.next


def refusal(answer: object) -> type[Exception]:
    assert isinstance(answer, Refused), answer
    return type(answer.error)
