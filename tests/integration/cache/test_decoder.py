"""What PostgreSQL really sends, in both formats, against what is in the tables afterwards."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Any, TypeAlias

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.rows import TupleRow

from progressor.cache import pgoutput, publication, session
from progressor.cache.entry import Entry
from progressor.cache.pgoutput import RELATION, Column
from progressor.cache.snapshot import Snapshot
from progressor.cache.transaction import Decoder, Transaction
from progressor.model import Range
from progressor.storage import migrate, sql
from progressor.storage.pool import Pool
from progressor.storage.postgres import Pools, PostgresStorage
from tests.conftest import Database

NS = "shop/päy'%\"ments"
SEEN = Snapshot(0, frozenset(), 0)
IDS = ("p", "q", "ü'\"%")
Connection: TypeAlias = psycopg.Connection[TupleRow]


class Tape:
    """The messages of one publication, recorded by a slot of this session."""

    def __init__(self, connection: Connection, *, binary: bool) -> None:
        self._connection = connection
        self._binary = "true" if binary else "false"
        self._decoder = Decoder()
        self._slot = f"tape_{secrets.token_hex(4)}"
        connection.execute("select pg_create_logical_replication_slot(%s, 'pgoutput', true)", [self._slot])

    def messages(self) -> list[bytes]:
        """Those since the last time."""
        query = (
            "select data from pg_logical_slot_get_binary_changes(%s, null, null,"
            " 'proto_version', '1', 'publication_names', %s, 'binary', %s)"
        )
        publications = '"' + publication.name(NS).replace('"', '""') + '"'
        found = self._connection.execute(query, [self._slot, publications, self._binary]).fetchall()
        return [data for (data,) in found]

    def transactions(self) -> list[Transaction]:
        decoded = [self._decoder.add(message) for message in self.messages()]
        return [transaction for transaction in decoded if transaction is not None]


@pytest.fixture
def published(database: Database) -> Database:
    migrate.migrate(database.conninfo, [NS])
    publication.publish(database.conninfo, [NS])
    return database


@contextmanager
def tape(database: Database, *, binary: bool) -> Iterator[tuple[Tape, Connection]]:
    with session.connect(database.conninfo) as connection:
        yield Tape(connection, binary=binary), connection


def execute(connection: Connection, statement: str, *parameters: Any) -> None:
    connection.execute(sql.fill(statement, sql.escaped(NS)).as_bytes(), parameters)


# The messages


@pytest.mark.parametrize("binary", [True, False])
def test_messages(published: Database, binary: bool) -> None:
    with tape(published, binary=binary) as (recorded, connection):
        execute(connection, "insert into {events} values ('p', 7, 1, null, null, '')")
        execute(connection, "update {events} set event_id = 2")
        execute(connection, "delete from {events}")
        execute(connection, "truncate {events}, {processes}, {tasks}")
        messages = recorded.messages()
    kinds = bytes(message[0] for message in messages).replace(b"Y", b"")  # types of columns, of which we read nothing
    assert kinds == b"BRICBUCBDCBRRTC"
    described = [message for message in messages if message[0] == RELATION]
    relation = pgoutput.relation(described[0])
    assert relation.name == f"{NS}_events"
    assert [column.name for column in relation.columns if column.is_key] == ["process_id", "event_id"]
    assert relation.columns[0] == Column("process_id", psycopg.adapters.types["varchar"].oid, True)
    begin, commit = pgoutput.begin(messages[0]), pgoutput.commit(messages[3])
    assert begin.lsn == commit.lsn < commit.end_lsn
    assert begin.at == commit.at
    assert pgoutput.truncated(messages[-2]) == [pgoutput.oid(message) for message in described[1:]]


def test_a_relation_may_change_in_the_middle_of_a_transaction(published: Database) -> None:
    with tape(published, binary=True) as (recorded, connection):
        with connection.transaction():
            execute(connection, "insert into {events} values ('p', 7, 1, null, null, 'one')")
            execute(connection, "alter table {events} add column more text")
            execute(connection, "alter table {events} drop column metadata")
            execute(connection, "alter table {events} add column metadata jsonb default '{{\"b\": 2}}'")
            execute(connection, "insert into {events} values ('p', 7, 2, null, 'two', 'more', '{{\"a\": 1}}')")
        (transaction,) = recorded.transactions()
    assert list(transaction.changes) == [NS]
    ((process_id, rows),) = transaction.changes[NS].items()
    assert process_id == "p"
    assert [(event.payload, event.metadata) for event in rows.change().appended] == [(b"one", {}), (b"two", {"a": 1})]


def test_what_was_rolled_back_is_not_there(published: Database) -> None:
    with tape(published, binary=True) as (recorded, connection):
        with connection.transaction():
            execute(connection, "insert into {events} values ('p', 7, 1, null, null, 'one')")
            with connection.transaction(force_rollback=True):
                execute(connection, "insert into {events} values ('p', 7, 2, null, null, 'two')")
        with connection.transaction(force_rollback=True):
            execute(connection, "insert into {events} values ('p', 7, 3, null, null, 'three')")
        (transaction,) = recorded.transactions()
    (rows,) = transaction.changes[NS].values()
    assert [event.payload for event in rows.change().appended] == [b"one"]


def test_a_large_transaction_changes_everything(published: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("progressor.cache.transaction.LARGEST", 10_000)
    with tape(published, binary=True) as (recorded, connection):
        execute(connection, "insert into {events} select 'p' || n, 7, 1, null, null, '' from generate_series(1, 100) n")
        (transaction,) = recorded.transactions()
    assert (transaction.emptied, transaction.changes) == ({NS}, {})


# Any operations

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
BYTES = st.binary(max_size=50) | st.integers(2000, 9000).map(lambda n: bytes(n % 251 for n in range(n)))
OBJECTS = st.none() | st.dictionaries(TEXTS, st.none() | st.booleans() | st.integers() | TEXTS, max_size=3)
TIMES = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001
STATUSES = st.sampled_from(["init", "running", "error"])
COLUMNS: dict[str, st.SearchStrategy[Any]] = {
    "status": STATUSES,
    "previous_status": STATUSES,
    "detail": st.none() | TEXTS,
    "aux_state": st.none() | BYTES,
    "metadata": OBJECTS,
    "created_at": TIMES,
    "status_changed_at": TIMES,
    "corrupted_by": st.none() | st.integers(-(2**63), 2**63 - 1),
}


@st.composite
def updates(draw: st.DrawFn) -> tuple[str, str, dict[str, Any]]:
    names = draw(st.sets(st.sampled_from(sorted(COLUMNS)), min_size=1))
    return "update", draw(st.sampled_from(IDS)), {name: draw(COLUMNS[name]) for name in sorted(names)}


@st.composite
def appends(draw: st.DrawFn) -> tuple[str, str, dict[str, Any]]:
    event = {"payload": draw(BYTES), "metadata": draw(OBJECTS), "timestamp": draw(TIMES)}
    return "append", draw(st.sampled_from(IDS)), event


@st.composite
def rewrites(draw: st.DrawFn) -> tuple[str, str, dict[str, Any]]:
    """An event that is changed in place."""
    name, value = draw(st.tuples(st.just("payload"), BYTES) | st.tuples(st.just("metadata"), OBJECTS))
    return "rewrite", draw(st.sampled_from(IDS)), {"event_id": draw(st.integers(1, 3)), name: value}


OTHERS: st.SearchStrategy[tuple[str, str, dict[str, Any]]] = st.tuples(
    st.sampled_from(["remove", "make", "truncate", "alter"]), st.sampled_from(IDS), st.just({})
)
OPERATIONS = updates() | appends() | rewrites() | OTHERS


def run(connection: Connection, kind: str, process_id: str, values: dict[str, Any]) -> None:
    values = {name: psycopg.types.json.Jsonb(v) if isinstance(v, dict) else v for name, v in values.items()}
    match kind:
        case "make":
            execute(
                connection,
                "insert into {processes} (process_id, status, previous_status) values (%s, 'init', 'init')"
                " on conflict do nothing",
                process_id,
            )
        case "update":
            assignments = ", ".join(f"{name} = %s" for name in values)
            execute(
                connection,
                f"update {{processes}} set {assignments} where process_id = %s",
                *values.values(),
                process_id,
            )
        case "append":
            execute(
                connection,
                "insert into {events} (payload, metadata, timestamp, process_id, task_id, event_id)"
                " select %s, %s, %s, process_id, 7, (select coalesce(max(event_id), 0) + 1 from {events} e"
                " where e.process_id = p.process_id) from {processes} p where process_id = %s",
                *values.values(),
                process_id,
            )
        case "rewrite":
            event_id = values.pop("event_id")
            ((name, value),) = values.items()
            change = f"update {{events}} set {name} = %s where process_id = %s and event_id = %s"
            execute(connection, change, value, process_id, event_id)
        case "remove":
            execute(connection, "delete from {events} where process_id = %s", process_id)
            execute(connection, "delete from {processes} where process_id = %s", process_id)
        case "truncate":
            execute(connection, "truncate {events}, {processes}")
        case "alter":
            execute(connection, "alter table {processes} add column if not exists more text default 'x'")
            execute(connection, "alter table {processes} rename column more to less")
            execute(connection, "alter table {processes} drop column less")


@pytest.mark.parametrize("binary", [True, False])
@given(steps=st.lists(st.lists(OPERATIONS, min_size=1, max_size=5), max_size=8))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_entries_that_follow_the_stream_are_what_is_in_the_tables(
    published: Database, binary: bool, steps: list[list[tuple[str, str, dict[str, Any]]]]
) -> None:
    pool = Pool(published.conninfo, 1, "test")
    pool.open()
    with closing(pool), tape(published, binary=binary) as (recorded, connection):
        storage = PostgresStorage(Pools(pool, pool, pool))
        execute(connection, "truncate {events}, {processes}")
        for process_id in IDS[:2]:
            run(connection, "make", process_id, {})
        recorded.messages()
        entries = {process_id: read(storage, process_id) for process_id in IDS}
        for operations in steps:
            with connection.transaction():
                for operation in operations:
                    run(connection, *operation)
            for transaction in recorded.transactions():
                follow(entries, transaction)
            for process_id, entry in entries.items():
                if entry is not None:
                    assert entry.process(Range()) == storage.get(NS, process_id, Range())
                else:
                    entries[process_id] = read(storage, process_id)


def read(storage: PostgresStorage, process_id: str) -> Entry | None:
    process = storage.get(NS, process_id, Range())
    return None if process is None else Entry.read(process, SEEN, 0.0)


def follow(entries: dict[str, Entry | None], transaction: Transaction) -> None:
    for process_id, rows in transaction.changes.get(NS, {}).items():
        entry = entries.get(process_id)
        entries[process_id] = None if entry is None or rows.ends else entry.after([rows.change()])
    if NS in transaction.emptied:
        entries.update(dict.fromkeys(entries))
