"""From the rows of a streamed transaction to what it did to each process.

Rows are kept as they came until the commit, and are turned into values only when somebody has the process in memory:
most of what is streamed nobody looks at. A transaction that is larger than `LARGEST` is not kept: it counts as one that
changed every process of the namespaces it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Final, TypeAlias

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
_PARTS = (PROCESSES, EVENTS)
_PROCESS_FIELDS = frozenset({
    "status", "detail", "aux_state", "metadata", "created_at", "previous_status", "status_changed_at", "corrupted_by",
})  # fmt: skip
_EVENT_FIELDS = frozenset({"event_id", "timestamp", "task_id", "payload", "metadata"})
_TEXTS = frozenset({"status", "previous_status", "detail"})
"""The same characters in both formats, enums too, whose oids differ from database to database."""
_Change: TypeAlias = Insert | Update | Delete


@dataclass(slots=True)
class Transaction:
    """What was streamed of it so far; complete at its commit."""

    mark: Mark
    changes: dict[tuple[str, str], list[_Change]] = field(default_factory=dict)
    """By namespace and process."""
    emptied: set[str] = field(default_factory=set)
    """Namespaces of which anything may have changed."""
    size: int = 0

    def add(self, message: Message) -> None:
        match message:
            case Insert(relation, new):
                self._add(message, relation, new)
            case Update(relation, old, new):
                self._add(message, relation, new)
                if old is not None and _value(relation, old, "process_id") != _value(relation, new, "process_id"):
                    self._add(message, relation, old)
            case Delete(relation, old):
                self._add(message, relation, old)
            case Truncate(relations):
                self.emptied.update(ns for ns, part in map(_parts, relations) if part in _PARTS)

    def by_process(self) -> Iterator[tuple[str, str, Callable[[], Change]]]:
        """Namespace, process, and how to get what became of it."""
        for (ns, process_id), changes in self.changes.items():
            if ns not in self.emptied:
                yield ns, process_id, partial(change, changes)

    def _add(self, message: _Change, relation: Relation, row: Row) -> None:
        ns, part = _parts(relation)
        if part not in _PARTS or ns in self.emptied:
            return
        process_id = _value(relation, row, "process_id").decode()
        self.changes.setdefault((ns, process_id), []).append(message)
        self.size += ROW_OVERHEAD + len(row)
        if self.size > LARGEST:
            self.emptied.update(ns for ns, _ in self.changes)
            self.changes.clear()
            self.size = 0


def change(messages: list[_Change]) -> Change:
    """What these rows of one process make of it."""
    made = Change()
    for message in messages:
        is_event = _parts(message.relation)[1] == EVENTS
        match message:
            case Insert(relation, new) if is_event:
                made.appended.append(_event(relation, new))
            case Update(relation, old, new) if old is None or _is_same(relation, old, new, is_event=is_event):
                if is_event:
                    fields = _event_fields(relation, new)
                    made.replaced.setdefault(fields["event_id"], {}).update(fields)
                else:
                    made.columns.update(_fields(relation, new, _PROCESS_FIELDS))
            case _:  # a process that is new or gone, events that are gone, another key
                made.ends = True
    return made


def _parts(relation: Relation) -> tuple[str, str]:
    """The namespace, and which of its tables this is."""
    ns, _, part = relation.name.rpartition("_")
    return ns, part


def _is_same(relation: Relation, old: Row, new: Row, *, is_event: bool) -> bool:
    """Whether an update leaves the key as it is."""
    key = ("process_id", "event_id") if is_event else ("process_id",)
    return all(_value(relation, old, name) == _value(relation, new, name) for name in key)


def _value(relation: Relation, row: Row, name: str) -> bytes:
    return row.value(relation.places[name])


def _event(relation: Relation, row: Row) -> Event:
    return Event(**_event_fields(relation, row))


def _event_fields(relation: Relation, row: Row) -> dict[str, Any]:
    fields = _fields(relation, row, _EVENT_FIELDS)
    if fields.get("metadata", ...) is None:
        fields["metadata"] = {}  # as the storage reads it
    return fields


def _fields(relation: Relation, row: Row, names: frozenset[str]) -> dict[str, Any]:
    """The columns that were sent, as Python's values."""
    return {
        name: None if value is None else load[kind](value)
        for (name, load), (kind, value) in zip(_loaders(relation), row, strict=True)
        if kind != UNCHANGED and name in names
    }


@lru_cache(64)
def _loaders(relation: Relation) -> Sequence[tuple[str, Mapping[int, Callable[[bytes], Any]]]]:
    """The name of each column, and how to make a value of what was sent of it."""
    return [(column.name, _loader(column)) for column in relation.columns]


def _loader(column: Column) -> Mapping[int, Callable[[bytes], Any]]:
    if column.name in _TEXTS:
        return {TEXT: bytes.decode, BINARY: bytes.decode}
    find = Transformer().get_loader
    return {TEXT: find(column.type, Format.TEXT).load, BINARY: find(column.type, Format.BINARY).load}
