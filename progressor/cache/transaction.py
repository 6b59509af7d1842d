"""From the rows of a streamed transaction to what it did to each process.

Rows are kept as they came until the commit, and are turned into values only when somebody has the process in memory:
most of what is streamed nobody looks at. A transaction that is larger than `LARGEST` is not kept: it counts as one that
changed every process of the namespaces it touches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple, TypeAlias

from psycopg.adapt import Transformer
from psycopg.pq import Format

from progressor.cache.entry import Change
from progressor.cache.pgoutput import (
    BINARY,
    TEXT,
    UNCHANGED,
    Column,
    Delete,
    Insert,
    Message,
    Relation,
    Row,
    Truncate,
    Update,
)
from progressor.cache.snapshot import Mark
from progressor.model import Event

LARGEST = 64 * 1024 * 1024
"""Bytes of rows, roughly, that a transaction may hold in memory."""
ROW_OVERHEAD = 400

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
_Change: TypeAlias = Insert | Update | Delete
Rows: TypeAlias = list[_Change]
"""Of one process, as they came."""


@dataclass(slots=True)
class Transaction:
    """What was streamed of it so far; complete at its commit."""

    mark: Mark
    changes: defaultdict[str, defaultdict[str, Rows]] = field(default_factory=lambda: defaultdict(_by_process))
    """By namespace and process."""
    emptied: set[str] = field(default_factory=set)
    """Namespaces of which anything may have changed; these are not in `changes`."""
    size: int = 0

    def add(self, message: Message) -> None:
        match message:
            case Insert():
                self._add(message, message.new)
            case Update():
                self._add(message, message.new)
                if message.old is not None and not _is_same(message, _KEYS[PROCESSES]):
                    self._add(message, message.old)
            case Delete():
                self._add(message, message.old)
            case Truncate():
                self._empty({table.ns for table in map(_table, message.relations) if table.part in _FIELDS})

    def _add(self, message: _Change, row: Row) -> None:
        table = _table(message.relation)
        if table.part not in _FIELDS or table.ns in self.emptied:
            return
        self.changes[table.ns][row.value(table.process_id).decode()].append(message)
        self.size += ROW_OVERHEAD + len(row)
        if self.size > LARGEST:
            self._empty(set(self.changes))
            self.size = 0

    def _empty(self, namespaces: AbstractSet[str]) -> None:
        self.emptied |= namespaces
        for ns in namespaces:
            self.changes.pop(ns, None)


def _by_process() -> defaultdict[str, Rows]:
    return defaultdict(list)


def change(messages: Rows) -> Change:
    """What these rows of one process make of it."""
    made = Change()
    for message in messages:
        table = _table(message.relation)
        is_event = table.part == EVENTS
        match message:
            case Insert() if is_event:
                made.appended.append(Event(**_fields(table, message.new)))
            case Update() if message.old is None or _is_same(message, _KEYS[table.part]):
                fields = _fields(table, message.new)
                if is_event:
                    made.replaced.setdefault(fields["event_id"], {}).update(fields)
                else:
                    made.columns.update(fields)
            case _:  # a process that is new or gone, events that are gone, another key
                made.ends = True
    return made


def _is_same(update: Update, key: Sequence[str]) -> bool:
    """Whether it leaves these columns as they were; `old` has them."""
    old, new, places = update.old, update.new, update.relation.places
    return old is not None and all(old.value(places[name]) == new.value(places[name]) for name in key)


def _fields(table: _Table, row: Row) -> dict[str, Any]:
    """The columns that were sent, as Python's values."""
    return {
        field.name: field.null() if value is None else field.load[kind](value)
        for field, (kind, value) in zip(table.fields, row.columns(), strict=True)
        if field is not None and kind != UNCHANGED
    }


class _Field(NamedTuple):
    """A column that is wanted, and how to make a value of what was sent of it."""

    name: str
    load: Mapping[int, Callable[[bytes], Any]]
    null: Callable[[], Any]


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """What a relation is to a cache."""

    ns: str
    part: str
    process_id: int
    """The place of this column."""
    fields: Sequence[_Field | None]
    """Of each column."""


@lru_cache(64)
def _table(relation: Relation) -> _Table:
    ns, _, part = relation.name.rpartition("_")
    wanted = _FIELDS.get(part, frozenset())
    fields = [_field(part, column) if column.name in wanted else None for column in relation.columns]
    return _Table(ns, part, relation.places.get("process_id", 0), fields)


def _field(part: str, column: Column) -> _Field:
    null = dict if (part, column.name) == (EVENTS, "metadata") else _none  # as the storage reads it
    return _Field(column.name, _loads(column), null)


def _loads(column: Column) -> Mapping[int, Callable[[bytes], Any]]:
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
