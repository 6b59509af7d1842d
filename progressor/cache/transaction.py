"""From the rows of a streamed transaction to what it did to each process.

Rows are kept as they came until the commit, and are turned into values only when somebody has the process in memory:
most of what is streamed nobody looks at. A transaction that is larger than `LARGEST` is not kept: it counts as one that
changed every process of the namespaces it touches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

from psycopg.adapt import Transformer
from psycopg.pq import Format

from progressor.cache import pgoutput
from progressor.cache.entry import Change
from progressor.cache.pgoutput import (
    BEGIN,
    BINARY,
    COMMIT,
    DELETE,
    FIRST,
    INSERT,
    RELATION,
    ROWS,
    TEXT,
    TRUNCATE,
    UNCHANGED,
    UPDATE,
)
from progressor.cache.snapshot import Mark
from progressor.model import Event

LARGEST = 64 * 1024 * 1024
"""Bytes of rows, roughly, that a transaction may hold in memory."""
ROW_OVERHEAD = 300
"""Bytes that a row takes in memory beyond what was sent; a rough figure."""

PROCESSES: Final = "processes"
EVENTS: Final = "events"
_FIELDS: Final = {
    PROCESSES: frozenset({"status", "detail", "aux_state", "metadata", "created_at", "previous_status",
                          "status_changed_at", "corrupted_by"}),
    EVENTS: frozenset({"event_id", "timestamp", "task_id", "payload", "metadata"}),
}  # fmt: skip
_KEYS: Final = {PROCESSES: ["process_id"], EVENTS: ["process_id", "event_id"]}
_TEXTS = frozenset({"status", "previous_status", "detail"})
"""The same characters in both formats, enums too, whose oids differ from database to database."""
_EMPTY_JSON = b"\x01{}"


class Field(NamedTuple):
    """A column that is wanted, and how to make a value of what was sent of it."""

    name: str
    load: Mapping[int, Callable[[bytes], Any]]
    null: Callable[[], Any]


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """What a relation is to a cache."""

    ns: str
    part: str
    places: Mapping[str, int]
    process_id: int
    """The place of this column."""
    fields: Sequence[Field | None]
    """Of each column."""


class Rows(list[tuple[Table, bytes]]):
    """Of one process, as they came. See `entry.Streamed`."""

    __slots__ = ()

    @property
    def size(self) -> int:
        return ROW_OVERHEAD * len(self) + sum(len(message) for _, message in self)

    @property
    def ends(self) -> bool:
        return any(_ends(table, message) for table, message in self)

    def change(self) -> Change:
        made = Change()
        for table, message in self:
            if message[0] == INSERT:
                made.appended.append(Event(**_fields(table, message, FIRST)))
                continue
            fields = _fields(table, message, pgoutput.second(message) or FIRST)
            if table.part == EVENTS:
                made.replaced.setdefault(fields["event_id"], {}).update(fields)
            else:
                made.columns.update(fields)
        return made


@dataclass(slots=True, eq=False)
class Transaction:
    """What was committed."""

    mark: Mark
    at: int
    """Microseconds since 2000, by the server's clock."""
    end: int = 0
    """Where the WAL goes on behind it."""
    changes: defaultdict[str, defaultdict[str, Rows]] = field(default_factory=lambda: defaultdict(_by_process))
    """By namespace and process."""
    emptied: set[str] = field(default_factory=set)
    """Namespaces of which anything may have changed; these are not in `changes`."""


class Decoder:
    """Of one stream. Rows are sorted when their transaction ends: many at once cost less than each when it comes, as
    other threads want to run meanwhile."""

    def __init__(self) -> None:
        self._tables: dict[bytes, Table | None] = {}
        """What the server has described so far, by its oid; None: nothing to a cache."""
        self._transaction: Transaction | None = None
        self._messages: list[bytes] = []
        self._size = 0

    @property
    def in_transaction(self) -> bool:
        return self._transaction is not None

    def add(self, message: bytes) -> Transaction | None:
        """The transaction that this message of pgoutput completes."""
        kind = message[0]
        if kind == BEGIN:
            lsn, at, xid = pgoutput.begin(message)
            self._transaction = Transaction(Mark(lsn, xid), at)
            return None
        transaction = self._transaction
        if transaction is None:
            return None
        if kind != COMMIT:
            self._messages.append(message)
            self._size += ROW_OVERHEAD + len(message)
            if self._size > LARGEST:
                self._sort(transaction)
                transaction.emptied.update(transaction.changes)
                transaction.changes.clear()
            return None
        self._transaction = None
        self._sort(transaction)
        for ns in transaction.emptied:
            transaction.changes.pop(ns, None)
        transaction.end = pgoutput.commit(message).end_lsn
        return transaction

    def _sort(self, transaction: Transaction) -> None:
        for message in self._messages:
            kind = message[0]
            if kind in ROWS:
                table = self._tables[pgoutput.oid(message)]
                if table is not None:
                    _put(transaction.changes[table.ns], table, message)
            elif kind == RELATION:
                self._tables[pgoutput.oid(message)] = _table(pgoutput.relation(message))
            elif kind == TRUNCATE:
                tables = map(self._tables.__getitem__, pgoutput.truncated(message))
                transaction.emptied.update(table.ns for table in tables if table is not None)
        self._messages.clear()
        self._size = 0


def _put(rows: defaultdict[str, Rows], table: Table, message: bytes) -> None:
    process_id = pgoutput.value(message, FIRST, table.process_id)
    rows[process_id.decode()].append((table, message))
    if message[0] == UPDATE and (new := pgoutput.second(message)) is not None:
        renamed = pgoutput.value(message, new, table.process_id)
        if renamed != process_id:
            rows[renamed.decode()].append((table, message))


def _by_process() -> defaultdict[str, Rows]:
    return defaultdict(Rows)


def _ends(table: Table, message: bytes) -> bool:
    """Whether the row makes a process that is new or gone, events that are gone, or another key."""
    if message[0] == INSERT:
        return table.part == PROCESSES
    if message[0] == DELETE:
        return True
    new = pgoutput.second(message)  # an old row is sent when the key is another one, or when it always is
    places = [table.places[name] for name in _KEYS[table.part]]
    return new is not None and any(
        pgoutput.value(message, FIRST, place) != pgoutput.value(message, new, place) for place in places
    )


def _fields(table: Table, message: bytes, at: int) -> dict[str, Any]:
    """The columns that were sent, as Python's values."""
    return {
        field.name: field.null() if value is None else field.load[kind](value)
        for field, (kind, value) in zip(table.fields, pgoutput.columns(message, at), strict=True)
        if field is not None and kind != UNCHANGED
    }


def _table(relation: pgoutput.Relation) -> Table | None:
    ns, _, part = relation.name.rpartition("_")
    if part not in _FIELDS or "process_id" not in relation.places:
        return None
    fields = [_field(part, column) if column.name in _FIELDS[part] else None for column in relation.columns]
    return Table(ns, part, relation.places, relation.places["process_id"], fields)


def _field(part: str, column: pgoutput.Column) -> Field:
    null = dict if (part, column.name) == (EVENTS, "metadata") else _none  # as the storage reads it
    return Field(column.name, _loads(column), null)


def _loads(column: pgoutput.Column) -> Mapping[int, Callable[[bytes], Any]]:
    if column.name in _TEXTS:
        return {TEXT: bytes.decode, BINARY: bytes.decode}
    find = Transformer().get_loader
    load = {TEXT: find(column.type, Format.TEXT).load, BINARY: find(column.type, Format.BINARY).load}
    if column.name == "metadata":
        load[BINARY] = partial(_json, load[BINARY])
    return load


def _json(load: Callable[[bytes], Any], data: bytes) -> Any:
    """Most metadata is empty, which costs more to find out in the usual way than all other columns."""
    return {} if data == _EMPTY_JSON else load(data)


def _none() -> None:
    return None
