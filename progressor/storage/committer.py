"""The write side: one transaction for the work of many processes, over a connection of its own.

The answer to a commit can get lost. Then the session of the lost connection is ended before anything else
is sent, so that its transaction is either committed or gone, and the same batch is sent once more, marked
`again`: requests find the task they made, completions the fence they moved (docs/adr/0003-batches.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias
from uuid import uuid4

import psycopg
from psycopg.rows import TupleRow

from progressor.engine.ports import (
    Accepted,
    Batch,
    BatchResult,
    Claim,
    Claimed,
    Completed,
    Completion,
    Ended,
    Hint,
    Lost,
    Refused,
    Request,
    Streams,
    Task,
    TimerChange,
)
from progressor.errors import (
    ClientError,
    IdempotencyConflict,
    ProcessAlreadyExists,
    ProcessInError,
    ProcessInInit,
    ProcessNotFound,
    ProcessRunning,
    RequestTimeout,
    StorageUnavailable,
)
from progressor.model import Answered, Op, Process, Range, TaskType
from progressor.postgres import Connection, connect, may_be_to_blame, translate, translated
from progressor.storage import packing, response, session, sql

_REFUSALS: Mapping[str, type[ClientError]] = {
    e.text: e for e in (ProcessAlreadyExists, ProcessNotFound, ProcessInError, ProcessInInit, ProcessRunning)
}
_REMOVED_OR_NOT = (
    "timeout: the connection was lost as the process was removed: get the process before you remove it again"
)
_TERMINATION_PATIENCE_MS = 5000
NO_STREAMS = Streams()
Cursor: TypeAlias = psycopg.Cursor[TupleRow]
_Call: TypeAlias = tuple[bytes, tuple[Any, ...]]
"""A query and its parameters."""


class Row(NamedTuple):
    """A progressor_outcome (migrations/0001_database.sql)."""

    ord: int
    fate: str
    task_id: int
    task_type: str
    task_status: str | None
    scheduled_time: datetime
    args: bytes | None
    context: bytes | None
    task_metadata: dict[str, Any] | None
    attempts: int
    response: bytes | None
    process_id: str
    status: str
    detail: str | None
    aux_state: bytes | None
    metadata: dict[str, Any] | None
    created_at: datetime | None
    previous_status: str | None
    status_changed_at: datetime | None
    corrupted_by: int | None
    last_event_id: int

    def task(self, owner: int, token: int) -> Task:
        return Task(
            self.process_id,
            self.task_id,
            TaskType(self.task_type),
            self.args or b"",
            self.context or b"",
            self.task_metadata,
            self.scheduled_time,
            self.attempts,
            owner,
            token,
        )

    def process(self) -> Process:
        return Process(
            self.process_id,
            self.status,
            self.detail,
            self.aux_state,
            self.metadata,
            (),
            self.last_event_id,
            Range(),
            self.created_at,
            self.previous_status,
            self.status_changed_at,
            self.corrupted_by,
        )

    def claimed(self, owner: int, token: int) -> Claimed:
        last_writer = None if self.response is None else int.from_bytes(self.response)
        return Claimed(self.task(owner, token), self.process(), last_writer=last_writer)


def rows(cursor: Cursor) -> Iterator[Row]:
    return map(Row._make, cursor.fetchall())


class Committer:
    """Commits batches. Used by one thread."""

    def __init__(self, conninfo: Mapping[str, Any], streams: Mapping[str, Streams]) -> None:
        """`streams`: what goes into the outbox, by namespace; nothing where nothing is said."""
        self._conninfo = dict(conninfo)
        self._streams = streams
        self._connection: Connection | None = None
        self._session: tuple[int, str] | None = None
        self._lost_session: tuple[int, str] | None = None
        self.in_doubt = self.is_suspect = False

    def commit(self, epoch: int, batches: Mapping[str, Batch], *, again: bool) -> Mapping[str, BatchResult]:
        """See `ports.Committer`."""
        self.in_doubt = self.is_suspect = False
        with translated():
            connection = self._connected()
            # Packed first, so that nothing is sent of a batch that cannot be packed: up to the end of the pipeline
            # all statements are one transaction, and one round trip.
            calls = {
                ns: _calls(ns, batches[ns], epoch, self._streams.get(ns, NO_STREAMS), again) for ns in sorted(batches)
            }
            self.in_doubt = True
            try:
                with connection.pipeline():
                    connection.execute("select progressor_hold_lease(%s)", [epoch])
                    sent = {ns: _send(connection, calls[ns]) for ns in calls}
            except BaseException as error:
                connection.close()  # psycopg takes statements for prepared that a broken pipeline did not reach
                if isinstance(error, psycopg.Error):
                    self.in_doubt = isinstance(translate(error), StorageUnavailable)
                    self.is_suspect = may_be_to_blame(error)
                raise
            return {ns: _receive(sent[ns], batches[ns], epoch) for ns in sent}

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _connected(self) -> Connection:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        if self._connection is not None:
            self._lost_session = self._session
            self._connection = None
        name = f"{session.WRITER} {uuid4().hex}"
        connection = connect({**self._conninfo, "application_name": name})
        if self._lost_session is not None:
            _end_session(connection, *self._lost_session)
            self._lost_session = None
        session.prepare(connection)
        session.configure(connection, session.PLANNING)
        self._connection = connection
        self._session = (connection.info.backend_pid, name)  # libpq forgets the pid of a lost connection
        return connection


def _end_session(connection: Connection, pid: int, name: str) -> None:
    ended = connection.execute(
        "select pg_terminate_backend(pid, %s) from pg_stat_activity where pid = %s and application_name = %s",
        [_TERMINATION_PATIENCE_MS, pid, name],
    ).fetchone()
    if ended == (False,):
        connection.close()
        raise StorageUnavailable("storage unavailable: a session of a lost connection does not end")


def _calls(ns: str, batch: Batch, epoch: int, streams: Streams, again: bool) -> Mapping[str, _Call]:
    """The functions to call for the work of one namespace, in their order."""
    ids = sorted({r.process_id for r in batch.requests} | {c.task.process_id for c in batch.completions})
    calls: dict[str, tuple[Any, ...]] = {}
    if ids:
        calls["lock"] = (packing.text(ids),)
    if batch.requests:
        calls["prepare"] = (epoch, again, streams.lifecycle, *_pack_requests(batch.requests))
    if batch.completions:
        calls["complete"] = (epoch, streams.events, streams.lifecycle, *_pack_completions(batch.completions))
    if batch.claims:
        calls["claim"] = (epoch, *_pack_claims(batch.claims))
    return {name: (sql.call(ns, name, len(arguments)), arguments) for name, arguments in calls.items()}


def _send(connection: Connection, calls: Mapping[str, _Call]) -> Mapping[str, Cursor]:
    return {name: connection.cursor(binary=True).execute(query, given) for name, (query, given) in calls.items()}


def _pack_requests(requests: Sequence[Request]) -> tuple[packing.Packed, ...]:
    return (
        packing.text([r.op for r in requests]),
        packing.text([r.process_id for r in requests]),
        packing.bytea([r.args for r in requests]),
        packing.bytea([r.context for r in requests]),
        packing.text([r.idempotency_key for r in requests]),
        packing.jsonb([r.metadata for r in requests]),
        packing.bigint([r.token for r in requests]),
    )


def _pack_completions(completions: Sequence[Completion]) -> tuple[packing.Packed, ...]:
    events = [(n, e) for n, c in enumerate(completions, 1) for e in c.events]
    processes = [c.process for c in completions]
    tasks = [c.task for c in completions]
    timers = [c.timer for c in completions]
    return (
        packing.text([t.process_id for t in tasks]),
        packing.bigint([t.task_id for t in tasks]),
        packing.bigint([t.token for t in tasks]),
        packing.bigint([c.next_token for c in completions]),
        packing.text([c.outcome for c in completions]),
        packing.bytea([None if c.answer is None else response.encode(c.answer) for c in completions]),
        packing.text([p.status for p in processes]),
        packing.text([p.detail for p in processes]),
        packing.bigint([p.corrupted_by for p in processes]),
        packing.text([c.notice for c in completions]),
        packing.bytea([c.aux_state for c in completions]),
        packing.jsonb([c.metadata for c in completions]),
        packing.text([t.change for t in timers]),
        packing.text([t.task_type for t in timers]),
        packing.timestamptz([t.at for t in timers]),
        packing.bytea([t.args for t in timers]),
        packing.bytea([t.context for t in timers]),
        packing.integer([c.attempts for c in completions]),
        packing.integer([round(c.retry_interval) for c in completions]),
        packing.integer([n for n, _ in events]),
        packing.bigint([e.event_id for _, e in events]),
        packing.timestamptz([e.timestamp for _, e in events]),
        packing.bytea([e.payload for _, e in events]),
        packing.jsonb([e.metadata for _, e in events]),
    )


def _pack_claims(claims: Sequence[Claim]) -> tuple[packing.Packed, ...]:
    return (
        packing.bigint([c.hint.task_id for c in claims]),
        packing.text([c.hint.process_id for c in claims]),
        packing.bigint([c.token for c in claims]),
    )


def _receive(sent: Mapping[str, Cursor], batch: Batch, epoch: int) -> BatchResult:
    ended: list[Ended] = []
    return BatchResult(
        _prepared(sent["prepare"], batch.requests, epoch, ended) if batch.requests else [],
        _completed(sent["complete"], batch.completions, epoch, ended) if batch.completions else [],
        _claimed(sent["claim"], batch.claims, epoch) if batch.claims else [],
        ended,
    )


_GONE = Refused(ProcessNotFound())


def _prepared(
    cursor: Cursor, requests: Sequence[Request], epoch: int, ended: list[Ended]
) -> list[Refused | Answered | Accepted]:
    found: list[Refused | Answered | Accepted] = []
    for row in sorted(rows(cursor), key=lambda row: row.ord):
        if row.fate == "gone":
            ended.append(Ended(row.task_id, _GONE))
        else:
            found.append(_fate(row, requests[row.ord - 1], epoch))
    return found


def _fate(row: Row, request: Request, epoch: int) -> Refused | Answered | Accepted:
    match row.fate:
        case "started":
            return Accepted(row.task_id, row.claimed(epoch, request.token))
        case "removed" | "repaired":
            return Answered(None, row.task_id)
        case "conflict":
            return Refused(IdempotencyConflict())
        case "in doubt":
            return Refused(RequestTimeout(_REMOVED_OR_NOT))
        case "answered" if request.op in (Op.NOTIFY, Op.SIMPLE_REPAIR):  # these were answered when accepted
            return Accepted(row.task_id)
        case "answered":
            known = response.decode(row.task_status or "", row.response, row.task_id)
            return Accepted(row.task_id) if known is None else known
        case "queued" | "joined":
            return Accepted(row.task_id)
        case refusal:
            return Refused(_REFUSALS[refusal]())


def _completed(
    cursor: Cursor, completions: Sequence[Completion], epoch: int, ended: list[Ended]
) -> list[Completed | Lost]:
    fates: list[Completed | Lost | None] = [None] * len(completions)
    hints: dict[str, list[Hint]] = {}
    for row in rows(cursor):
        match row.fate:
            case "timer":
                if row.task_status != "blocked":
                    hints.setdefault(row.process_id, []).append(Hint(row.task_id, row.process_id, row.scheduled_time))
            case "gone":
                ended.append(Ended(row.task_id, _GONE))
            case "failed":
                ended.append(Ended(row.task_id, Refused(ProcessInError())))
            case "obsolete":
                ended.append(Ended(row.task_id, Refused(ProcessRunning())))
            case _:
                completion = completions[row.ord - 1]
                fates[row.ord - 1] = _completion_fate(row, completion, epoch, hints.get(row.process_id, ()))
    return [Lost(None) if fate is None else fate for fate in fates]


def _completion_fate(row: Row, completion: Completion, epoch: int, hints: Sequence[Hint]) -> Completed | Lost:
    if row.fate == "next":
        return Completed(_next(row, completion, epoch), hints)
    if row.fate == "done":
        return Completed(None, hints, removed=row.status == "gone")
    if row.status == "gone" and completion.timer.change is TimerChange.REMOVE:
        return Completed(None, removed=True)  # it was applied when this was sent first
    return Lost(response.decode(row.task_status or "", row.response, row.task_id))


def _next(row: Row, completion: Completion, epoch: int) -> Claimed:
    if row.task_type is not None:
        task = row.task(epoch, completion.next_token)
    else:  # the timer that the step itself set to now
        timer = completion.timer
        task = Task(
            row.process_id,
            row.task_id,
            timer.task_type,
            timer.args,
            timer.context,
            None,
            timer.at or row.scheduled_time,
            0,
            epoch,
            completion.next_token,
        )
    return Claimed(task, completion.process)


def _claimed(cursor: Cursor, claims: Sequence[Claim], epoch: int) -> list[Claimed | Hint | None]:
    found: list[Claimed | Hint | None] = [None] * len(claims)
    for row in rows(cursor):
        place = row.ord - 1
        if row.fate == "early":
            found[place] = Hint(row.task_id, row.process_id, row.scheduled_time)
        else:
            found[place] = row.claimed(epoch, claims[place].token)
    return found
