"""The storage of one database: reads, scans and imports over pools, by purpose.

`scan` serves the periodic looks of the engine, `pool` the steps, `front` the requests of clients, so that none of
them waits for another. Everything commits by itself: one statement is one round trip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, TypeVar

import psycopg
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb
from psycopg_pool import PoolClosed, PoolTimeout

from progressor.engine.ports import BrokenTask, Claimed, Hint, Reading, Refused, Selection, Task
from progressor.errors import ProcessAlreadyExists, RequestTimeout, StorageUnavailable
from progressor.model import (
    Action,
    Answered,
    Direction,
    Event,
    Page,
    Process,
    Range,
    SetTimer,
    TaskStatus,
    TaskType,
    TraceUnit,
)
from progressor.postgres import Connection, translated
from progressor.storage import packing, response, sql
from progressor.storage.committer import rows
from progressor.storage.pool import PATIENCE, Pool

T = TypeVar("T")
_LAST = 2**63 - 1
_TAKEOVER_PATIENCE = 2.0
"""Seconds. What the caller knows grows old: an outage must not come between."""
_PAST = datetime(1900, 1, 1, tzinfo=UTC)
_IN_DOUBT = "timeout: the connection was lost as the process was stored: get the process before you put it again"


@dataclass(frozen=True, slots=True)
class Pools:
    """Connections of one database by purpose; open while the storage is used."""

    steps: Pool
    scan: Pool
    front: Pool


class PostgresStorage:
    """Implements `ports.Storage`. Thread-safe."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools

    def events(self, ns: str, process_id: str, range: Range) -> Sequence[Event]:
        direction, parameters = _slice(process_id, range)
        found = self._query(self._pools.steps, sql.queries(ns)[direction], parameters)
        return [Event(payload, metadata or {}, event_id, at, task) for event_id, at, task, payload, metadata in found]

    def broken_task(self, ns: str, task_id: int) -> BrokenTask | None:
        found = self._query(self._pools.steps, sql.queries(ns)["broken_task"], {"task": task_id})
        for _, task_type, args, context in found:
            if task_type in (TaskType.TIMEOUT, TaskType.REMOVE):
                return BrokenTask(TaskType(task_type), args or b"", context or b"")
        return None

    def upcoming(self, ns: str, horizon: float, after: Hint | None, limit: int) -> Sequence[Hint]:
        parameters = {
            "horizon": timedelta(seconds=horizon),
            "after_time": _PAST if after is None else after.at,
            "after_task": 0 if after is None else after.task_id,
            "limit": limit,
        }
        return [Hint(*row) for row in self._query(self._pools.scan, sql.queries(ns)["upcoming"], parameters)]

    def waiting_calls(self, ns: str, limit: int) -> Sequence[Hint]:
        query = sql.queries(ns)["waiting_calls"]
        return [Hint(*row) for row in self._query(self._pools.scan, query, {"limit": limit})]

    def take_over(
        self, ns: str, epoch: int, stale: float, grace: float, known: Sequence[int], tokens: Sequence[int]
    ) -> Sequence[Claimed]:
        arguments = [
            epoch,
            timedelta(seconds=stale),
            timedelta(seconds=grace),
            packing.bigint(known),
            packing.bigint(tokens),
        ]
        patience = min(grace / 2, _TAKEOVER_PATIENCE)
        with translated(), self._pools.scan.connection(timeout=patience) as connection, connection.transaction():
            connection.execute("select progressor_hold_lease(%s)", [epoch])
            cursor = connection.cursor(binary=True)
            taken = cursor.execute(sql.call(ns, "takeover", len(arguments)), arguments)
            return [row.claimed(epoch, tokens[row.ord - 1]) for row in rows(taken)]

    def release(self, ns: str, epoch: int, tasks: Sequence[Task]) -> None:
        ordered = sorted(tasks, key=lambda task: task.process_id)
        arguments = [
            epoch,
            packing.text([t.process_id for t in ordered]),
            packing.bigint([t.token for t in ordered]),
        ]
        self._query(self._pools.scan, sql.call(ns, "release", len(arguments)), arguments)

    def results(self, ns: str, tasks: Sequence[int]) -> Mapping[int, Answered | Refused | None]:
        found = self._query(self._pools.scan, sql.queries(ns)["results"], {"tasks": packing.bigint(tasks)})
        return {task_id: response.decode(status, answer, task_id) for task_id, status, answer in found}

    def get(self, ns: str, process_id: str, range: Range, patience: float = PATIENCE) -> Process | None:
        direction, parameters = _slice(process_id, range)
        query = sql.queries(ns)[f"process_{direction}"]
        for row in self._query(self._pools.front, query, parameters, patience, ends=True):
            return _process_read(row, range)
        return None

    def reading(self, ns: str, process_id: str, range: Range, patience: float = PATIENCE) -> Reading:
        direction, parameters = _slice(process_id, range)
        query = sql.queries(ns)[f"reading_{direction}"]
        ((snapshot, lsn, *row),) = self._query(self._pools.front, query, parameters, patience, ends=True)
        return Reading(None if row[0] is None else _process_read(row, range), snapshot, lsn)

    def timer(self, ns: str, process_id: str) -> datetime | None:
        found: list[tuple[datetime]] = self._query(self._pools.front, sql.queries(ns)["timer"], {"id": process_id})
        return found[0][0] if found else None

    def modernize(self, ns: str, process_id: str, event: Event, newer: Event) -> None:
        parameters = {
            "id": process_id,
            "event": event.event_id,
            "old_payload": event.payload,
            "old_metadata": Jsonb(dict(event.metadata)),
            "payload": newer.payload,
            "metadata": Jsonb(dict(newer.metadata)),
        }
        self._query(self._pools.front, sql.queries(ns)["modernize"], parameters)

    def put(self, ns: str, process: Process, action: Action | None, context: bytes) -> Hint | None:
        queries = sql.queries(ns)
        with translated(), self._pools.front.connection() as connection, _transaction(connection):
            if connection.execute(queries["put_process"], _put_parameters(process)).rowcount == 0:
                raise ProcessAlreadyExists
            common = {"id": process.process_id, "context": context}
            (task,) = _one(connection.execute(queries["put_task"], common))
            if process.history:
                connection.execute(queries["put_events"], common | {"task": task} | _columns(process.history))
            if not isinstance(action, SetTimer):
                return None
            timer = {"type": TaskType.REMOVE if action.remove else TaskType.TIMEOUT, "at": action.at}
            (timer_id,) = _one(connection.execute(queries["put_timer"], common | timer))
            return Hint(timer_id, process.process_id, action.at)

    def trace(self, ns: str, process_id: str) -> Sequence[TraceUnit]:
        found = self._query(self._pools.front, sql.queries(ns)["trace"], {"id": process_id})
        return [_trace_unit(*row) for row in found]

    def page(self, ns: str, selection: Selection, limit: int, cursor: str | None) -> Page:
        parameters = {
            "cursor": cursor,
            "status": selection.status,
            "prefix": selection.id_prefix,
            "metadata": None if selection.metadata is None else Jsonb(dict(selection.metadata)),
            "created_from": selection.created[0],
            "created_to": selection.created[1],
            "changed_from": selection.changed[0],
            "changed_to": selection.changed[1],
            "limit": limit + 1,
        }
        found = self._query(self._pools.front, sql.queries(ns)["list"], parameters)
        items = [_process(row, (), Range(limit=0)) for row in found[:limit]]
        return Page(items, items[-1].process_id if len(found) > limit and items else None)

    def _query(
        self, pool: Pool, query: bytes, parameters: Any, patience: float = PATIENCE, *, ends: bool = False
    ) -> list[TupleRow]:
        def run(connection: Connection) -> list[TupleRow]:
            return connection.cursor(binary=True).execute(query, parameters).fetchall()

        return _with_connection(pool, run, patience, ends=ends)


@contextmanager
def _transaction(connection: Connection) -> Iterator[None]:
    """Raises RequestTimeout when the connection is lost in the moment of the commit."""
    is_complete = False
    try:
        with connection.transaction():
            yield
            is_complete = True
    except psycopg.OperationalError as error:
        if is_complete:
            raise RequestTimeout(_IN_DOUBT) from error
        raise


def _with_connection(pool: Pool, run: Callable[[Connection], T], patience: float, *, ends: bool) -> T:
    """Runs a read; when the connection turns out to be a dead one of the pool, once more on a live one."""
    deadline = monotonic() + patience
    try:
        with translated(), pool.connection(patience, ends=ends) as connection:
            return run(connection)
    except StorageUnavailable as error:
        if isinstance(error.__cause__, PoolTimeout | PoolClosed) or (ends and monotonic() >= deadline):
            raise
    with translated():
        pool.check()
        with pool.connection(deadline - monotonic() if ends else patience, ends=ends) as connection:
            return run(connection)


def _slice(process_id: str, range: Range) -> tuple[str, dict[str, Any]]:
    backward = range.direction == Direction.BACKWARD
    default = _LAST if backward else 0
    offset = default if range.offset is None else range.offset
    return str(Direction(range.direction)), {"id": process_id, "offset": offset, "limit": range.limit}


def _process_read(row: Sequence[Any], range: Range) -> Process:
    *process, ids, times, tasks, payloads, metadatas = row
    return _process(process, _events(ids, times, tasks, payloads, metadatas), range)


def _process(row: Sequence[Any], history: Sequence[Event], range: Range) -> Process:
    process_id, status, detail, aux_state, metadata, created, previous, changed, corrupted_by, last = row
    return Process(
        process_id,
        status,
        detail,
        aux_state,
        metadata,
        history,
        last,
        range,
        created,
        previous,
        changed,
        corrupted_by,
    )


def _events(ids: Iterable[int] | None, *columns: Iterable[Any]) -> list[Event]:
    if ids is None:
        return []
    return [
        Event(payload, packing.load_json(metadata), event_id, at, task)
        for event_id, at, task, payload, metadata in zip(ids, *columns, strict=True)
    ]


def _put_parameters(process: Process) -> dict[str, Any]:
    return {
        "id": process.process_id,
        "status": process.status,
        "detail": process.detail,
        "aux_state": process.aux_state,
        "metadata": None if process.metadata is None else Jsonb(dict(process.metadata)),
        "created_at": process.created_at,
        "previous_status": process.previous_status,
        "status_changed_at": process.status_changed_at,
    }


def _columns(history: Sequence[Event]) -> dict[str, packing.Packed]:
    return {
        "ids": packing.bigint([e.event_id for e in history]),
        "times": packing.timestamptz([e.timestamp for e in history]),
        "payloads": packing.bytea([e.payload for e in history]),
        "metadatas": packing.jsonb([e.metadata for e in history]),
    }


def _one(cursor: psycopg.Cursor[TupleRow]) -> TupleRow:
    (row,) = cursor.fetchall()
    return row


def _trace_unit(
    task_id: int,
    task_type: str,
    status: str,
    scheduled: datetime,
    running: datetime | None,
    finished: datetime | None,
    args: bytes | None,
    metadata: dict[str, Any] | None,
    context: bytes | None,
    idempotency_key: str | None,
    answer: bytes | None,
    retry_interval: int,
    retry_attempts: int,
    *events: Any,
) -> TraceUnit:
    result = None if answer is None else response.decode(status, answer, task_id)
    ids, times, payloads, metadatas = events
    return TraceUnit(
        task_id=task_id,
        task_type=TaskType(task_type),
        status=TaskStatus(status),
        scheduled=scheduled,
        running=running,
        finished=finished,
        args=args or b"",
        metadata=metadata,
        context=context or b"",
        idempotency_key=idempotency_key,
        response=result.response if isinstance(result, Answered) else None,
        error=str(result.error) if isinstance(result, Refused) else None,
        retry_interval=float(retry_interval),
        retry_attempts=retry_attempts,
        events=_events(ids, times, [task_id] * len(ids or ()), payloads, metadatas),
    )
