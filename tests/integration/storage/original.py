"""Databases as the original Progressor leaves them, and its ways of writing to them.

The forms differ as its versions did; a database is filled with a process in each state that an operator may find at the
moment of the move. Times are whole seconds, as all that the original writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg.rows import TupleRow
from psycopg.sql import SQL, Composable, Composed, Identifier, Literal
from psycopg.types.json import Jsonb

OK_OK = b"\x83h\x02w\x02okw\x02ok"
OK_OK_LATIN = b"\x83h\x02d\x00\x02okd\x00\x02ok"
OK_BINARY = b"\x83h\x02w\x02okm\x00\x00\x00\x05hello"
OK_BINARY_LATIN = b"\x83h\x02d\x00\x02okm\x00\x00\x00\x05hello"
ERROR_BINARY = b"\x83h\x02w\x05errorm\x00\x00\x00\x04nope"
ERROR_BINARY_LATIN = b"\x83h\x02d\x00\x05errorm\x00\x00\x00\x04nope"
ERROR_EXCEPTION = b"\x83h\x02w\x05errorh\x03w\x09exceptionw\x05errorw\x08badmatch"
ERROR_EXCEPTION_LATIN = b"\x83h\x02d\x00\x05errorh\x03d\x00\x09exceptiond\x00\x05errord\x00\x08badmatch"

RANGE = {"range": {"offset": 0, "limit": 10, "direction": "forward"}}
SIMPLE_REPAIR = {"kind": "simple_repair"}
LAST_SMALL_EVENT = 32_767


@dataclass(frozen=True)
class Form:
    """How old a database is."""

    name: str
    statuses: tuple[str, ...] = ("init", "running", "error")
    id_length: int = 256
    bare_index_names: bool = False
    status_changes: bool = True

    def __str__(self) -> str:
        return self.name


NEW = Form("new")
INIT_LAST = Form("init-last", statuses=("running", "error", "init"))
OLD = Form("old", statuses=("running", "error"), id_length=80, bare_index_names=True, status_changes=False)
FORMS = (NEW, INIT_LAST, OLD)

_TYPES = """
create type process_status as enum ({statuses});
create type task_status as enum ('waiting', 'running', 'blocked', 'error', 'finished', 'cancelled');
create type task_type as enum ('init', 'timeout', 'call', 'notify', 'repair', 'remove');
"""
_TABLES = """
create table {processes} (
  process_id varchar({id_length}) primary key,
  status process_status not null,
  detail text,
  aux_state bytea,
  created_at timestamp with time zone not null default now(),
  metadata jsonb,
  corrupted_by bigint
);
create table {tasks} (
  task_id bigserial primary key,
  process_id varchar({id_length}) not null,
  task_type task_type not null,
  status task_status not null,
  scheduled_time timestamp with time zone not null,
  running_time timestamp with time zone,
  finished_time timestamp with time zone,
  args bytea,
  metadata jsonb,
  idempotency_key varchar(80) unique,
  response bytea,
  blocked_task bigint references {tasks} (task_id),
  last_retry_interval integer not null,
  attempts_count smallint not null,
  context bytea,
  foreign key (process_id) references {processes} (process_id)
);
alter table {processes} add foreign key (corrupted_by) references {tasks} (task_id);
create table {schedule} (
  task_id bigint primary key,
  process_id varchar({id_length}) not null,
  task_type task_type not null,
  status task_status not null,
  scheduled_time timestamp with time zone not null,
  args bytea,
  metadata jsonb,
  last_retry_interval integer not null,
  attempts_count smallint not null,
  context bytea,
  foreign key (process_id) references {processes} (process_id),
  foreign key (task_id) references {tasks} (task_id)
);
create table {running} (
  process_id varchar({id_length}) primary key,
  task_id bigint not null,
  task_type task_type not null,
  status task_status not null,
  scheduled_time timestamp with time zone not null,
  running_time timestamp with time zone not null,
  args bytea,
  metadata jsonb,
  last_retry_interval integer not null,
  attempts_count smallint not null,
  context bytea,
  foreign key (process_id) references {processes} (process_id),
  foreign key (task_id) references {tasks} (task_id)
);
create table {events} (
  process_id varchar({id_length}) not null,
  task_id bigint not null,
  event_id smallint not null,
  timestamp timestamp with time zone default now(),
  metadata jsonb,
  payload bytea not null,
  primary key (process_id, event_id),
  foreign key (process_id) references {processes} (process_id),
  foreign key (task_id) references {tasks} (task_id)
);
"""
_STATUS_CHANGES = """
alter table {processes}
  add column previous_status process_status not null,
  add column status_changed_at timestamp with time zone not null;
"""
_INDEXES = """
create index {events_process_idx} on {events} using hash (process_id);
create index {tasks_process_idx} on {tasks} using hash (process_id);
create index {schedule_process_idx} on {schedule} using hash (process_id);
create index {running_task_idx} on {running} using hash (task_id);
"""
_BARE_INDEXES = """
create index if not exists process_idx on {events} using hash (process_id);
create index if not exists task_idx on {running} using hash (task_id);
"""
_PUBLICATION = "create publication {namespace} for table {processes}, {events}"


def names(ns: str) -> dict[str, Composable]:
    parts = ("processes", "tasks", "schedule", "running", "events")
    indexes = ("events_process_idx", "tasks_process_idx", "schedule_process_idx", "running_task_idx")
    found: dict[str, Composable] = {part: Identifier(f"{ns}_{part}") for part in (*parts, *indexes)}
    return found | {"namespace": Identifier(ns)}


def create(conninfo: Mapping[str, Any], ns: str, form: Form, *, cached: bool = False) -> None:
    """An empty database of that age, with a publication when the namespace is `cached`."""
    create_types(conninfo, form)
    create_tables(conninfo, ns, form)
    if cached:
        _execute(conninfo, SQL(_PUBLICATION).format(**names(ns)))


def create_types(conninfo: Mapping[str, Any], form: Form) -> None:
    _execute(conninfo, SQL(_TYPES).format(statuses=SQL(", ").join(map(Literal, form.statuses))))


def create_tables(conninfo: Mapping[str, Any], ns: str, form: Form) -> None:
    script = _TABLES
    script += _STATUS_CHANGES if form.status_changes else ""
    script += _BARE_INDEXES if form.bare_index_names else _INDEXES
    _execute(conninfo, SQL(script).format(id_length=Literal(form.id_length), **names(ns)))


def _execute(conninfo: Mapping[str, Any], statements: Composed) -> None:
    with psycopg.connect(**conninfo, autocommit=True) as connection:
        connection.execute(statements)


@dataclass
class Original:
    """A node of the original: it writes processes and tasks as it does, and knows nothing of owners and tokens."""

    connection: psycopg.Connection[TupleRow]
    ns: str
    form: Form = NEW
    now: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))

    def execute(self, query: str, parameters: Mapping[str, Any]) -> psycopg.Cursor[TupleRow]:
        return self.connection.execute(SQL(query).format(**names(self.ns.replace("%", "%%"))), parameters)

    def process(self, process_id: str, status: str = "running", detail: str | None = None) -> None:
        row = {
            "process_id": process_id,
            "status": status,
            "detail": detail,
            "aux_state": b"aux of " + process_id.encode(),
            "created_at": self.ago(3600),
            "metadata": Jsonb({"owner": process_id, "é": [1, None]}),
        }
        if self.form.status_changes:
            previous = "running" if status == "error" else status
            row |= {"previous_status": previous, "status_changed_at": self.ago(3600)}
        self._insert("processes", row)

    def task(self, process_id: str, task_type: str, status: str, **values: Any) -> int:
        """A row of tasks, and with it the row of schedule or running that goes with the status."""
        task_id = self.save_task(process_id, task_type, status, **values)
        if status in ("waiting", "blocked"):
            self.schedule(task_id)
        elif status == "running":
            assert self.run(task_id, values.get("running_time", self.ago(0)))
        return task_id

    def save_task(self, process_id: str, task_type: str, status: str, **values: Any) -> int:
        defaults = {
            "scheduled_time": self.ago(60),
            "running_time": None,
            "finished_time": None,
            "args": b"args",
            "metadata": None,
            "idempotency_key": None,
            "response": None,
            "blocked_task": None,
            "last_retry_interval": 0,
            "attempts_count": 0,
            "context": b"",
        }
        row = defaults | values | {"process_id": process_id, "task_type": task_type, "status": status}
        row["metadata"] = None if row["metadata"] is None else Jsonb(row["metadata"])
        ((task_id,),) = self._insert("tasks", row, " returning task_id").fetchall()
        return int(task_id)

    def _insert(self, table: str, row: Mapping[str, Any], rest: str = "") -> psycopg.Cursor[TupleRow]:
        columns = ", ".join(row)
        markers = ", ".join(f"%({column})s" for column in row)
        return self.execute(f"insert into {{{table}}} ({columns}) values ({markers})" + rest, row)

    def schedule(self, task_id: int) -> None:
        self.execute(
            "insert into {schedule} (task_id, process_id, task_type, status, scheduled_time, args, metadata, "
            "last_retry_interval, attempts_count, context) "
            "select task_id, process_id, task_type, status, scheduled_time, args, metadata, "
            "last_retry_interval, attempts_count, context from {tasks} where task_id = %(task)s",
            {"task": task_id},
        )

    def run(self, task_id: int, at: datetime) -> bool:
        """Whether the process was free to run the task."""
        cursor = self.execute(
            "insert into {running} (process_id, task_id, task_type, status, scheduled_time, running_time, args, "
            "metadata, last_retry_interval, attempts_count, context) "
            "select process_id, task_id, task_type, 'running', scheduled_time, %(at)s, args, metadata, "
            "last_retry_interval, attempts_count, context from {tasks} where task_id = %(task)s "
            "on conflict (process_id) do nothing returning task_id",
            {"task": task_id, "at": at},
        )
        return cursor.fetchone() is not None

    def stop(self, process_id: str) -> None:
        """Takes what a process runs away, whoever runs it."""
        self.execute("delete from {running} where process_id = %(id)s", {"id": process_id})

    def events(self, process_id: str, task_id: int, first: int, last: int) -> None:
        self.execute(
            "insert into {events} (process_id, task_id, event_id, timestamp, metadata, payload) "
            "select %(id)s, %(task)s, n, %(at)s, '{{\"format_version\": 1}}', convert_to('event ' || n, 'UTF8') "
            "from generate_series(%(first)s::int, %(last)s::int) n",
            {"id": process_id, "task": task_id, "at": self.ago(50), "first": first, "last": last},
        )

    def break_process(self, process_id: str, task_id: int) -> None:
        self.execute(
            "update {processes} set corrupted_by = %(task)s where process_id = %(id)s",
            {"id": process_id, "task": task_id},
        )

    def finished_init(self, process_id: str, response: bytes = OK_OK, **values: Any) -> int:
        times = {"running_time": self.ago(59), "finished_time": self.ago(58)}
        return self.task(process_id, "init", "finished", response=response, **times, **values)

    def ago(self, seconds: float) -> datetime:
        return self.now - timedelta(seconds=seconds)


def fill(original: Original) -> dict[str, int]:
    """A process in each state. Returns the task of interest of each, by process id."""
    found: dict[str, int] = {}
    for make in (_idle, _timers, _calls, _errors, _zombies, _answers):
        make(original, found)
    if "init" in original.form.statuses:
        original.process("starting", "init")
        found["starting"] = original.task("starting", "init", "running", running_time=original.ago(1))
    return found


def _running(original: Original, process_id: str) -> int:
    original.process(process_id)
    return original.finished_init(process_id)


def _idle(original: Original, found: dict[str, int]) -> None:
    found["idle"] = _running(original, "idle")
    original.events("idle", found["idle"], 1, 3)
    found["long"] = _running(original, "long")
    original.events("long", found["long"], 1, LAST_SMALL_EVENT)


def _timers(original: Original, found: dict[str, int]) -> None:
    for process_id, task_type, due in [
        ("sleeping", "timeout", -3600),
        ("due", "timeout", 10),
        ("leaving", "remove", -3600),
        ("left", "remove", 10),
    ]:
        _running(original, process_id)
        at = original.ago(due)
        found[process_id] = original.task(process_id, task_type, "waiting", scheduled_time=at, args=b"")
    _running(original, "retrying")
    found["retrying"] = original.task(
        "retrying",
        "timeout",
        "waiting",
        scheduled_time=original.ago(5),
        attempts_count=2,
        last_retry_interval=30,
        context=b"context",
    )


def _calls(original: Original, found: dict[str, int]) -> None:
    """A call that runs over a blocked timer, with two calls postponed; and postponed calls that nobody is at."""
    for process_id in ("busy", "postponed"):
        init = _running(original, process_id)
        original.events(process_id, init, 1, 1)
        original.task(process_id, "timeout", "blocked", scheduled_time=original.ago(5), args=b"")
    found["busy"] = original.task("busy", "call", "running", metadata=RANGE, running_time=original.ago(1))
    for process_id in ("busy", "postponed"):
        for n in (1, 2):
            task = original.task(process_id, "call", "waiting", args=b"call %d" % n, metadata=RANGE, context=b"ctx")
            found.setdefault(process_id, task)


def _errors(original: Original, found: dict[str, int]) -> None:
    for process_id, task_type in [("broken timeout", "timeout"), ("broken call", "call"), ("repairing", "timeout")]:
        original.process(process_id, "error", detail="why")
        init = original.finished_init(process_id)
        original.events(process_id, init, 1, 2)
        times = {"running_time": original.ago(30), "finished_time": original.ago(29)}
        broken = original.task(process_id, task_type, "error", response=ERROR_BINARY, attempts_count=3, **times)
        original.break_process(process_id, broken)
        found[process_id] = broken
    found["repairing"] = original.task(
        "repairing", "timeout", "waiting", scheduled_time=original.ago(1), metadata=SIMPLE_REPAIR
    )


def _zombies(original: Original, found: dict[str, int]) -> None:
    for process_id, task_type in [("zombie timeout", "timeout"), ("zombie call", "call"), ("zombie remove", "remove")]:
        _running(original, process_id)
        found[process_id] = original.task(process_id, task_type, "running", running_time=original.ago(600))
    original.task("zombie call", "timeout", "blocked", scheduled_time=original.ago(500))


ANSWERS = {
    "ok": ("finished", OK_OK),
    "ok latin": ("finished", OK_OK_LATIN),
    "binary": ("finished", OK_BINARY),
    "binary latin": ("finished", OK_BINARY_LATIN),
    "error": ("error", ERROR_BINARY),
    "error latin": ("error", ERROR_BINARY_LATIN),
    "exception": ("error", ERROR_EXCEPTION),
    "exception latin": ("error", ERROR_EXCEPTION_LATIN),
}


def _answers(original: Original, found: dict[str, int]) -> None:
    """Finished calls with each form of answer, under the idempotency key of the same name."""
    found["answers"] = _running(original, "answers")
    for key, (status, response) in ANSWERS.items():
        original.task(
            "answers",
            "call",
            status,
            args=key.encode(),
            metadata=RANGE,
            idempotency_key=key,
            response=response,
            running_time=original.ago(40),
            finished_time=original.ago(39),
        )
    original.task("answers", "timeout", "cancelled", scheduled_time=original.ago(20))
