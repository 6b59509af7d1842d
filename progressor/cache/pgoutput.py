"""What PostgreSQL sends of its WAL: messages of the plugin pgoutput, protocol version 1.

Pure: bytes in, values out (PostgreSQL manual, "Logical Replication Message Formats"). A decoder knows the relations
that the server has described to it, so each stream has one of its own. Columns are found by their names, since a
migration may change their order in the middle of a stream.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

_INSERT, _UPDATE, _DELETE, _BEGIN, _COMMIT, _RELATION, _TRUNCATE = b"IUDBCRT"
_BEGIN_BODY = struct.Struct(">QqI").unpack_from
_COMMIT_BODY = struct.Struct(">QQq").unpack_from
_U32 = struct.Struct(">I").unpack_from
_I32 = struct.Struct(">i").unpack_from
_I16 = struct.Struct(">h").unpack_from
_IS_KEY = 1

NULL, UNCHANGED, TEXT, BINARY = b"nutb"
"""Kinds of a column in a row. UNCHANGED: a value out of line (TOAST) that an update did not touch is not sent."""
_SENT = (BINARY, TEXT)
_NEW_ROW = ord("N")


class Column(NamedTuple):
    name: str
    type: int
    """The oid of its type."""
    is_key: bool


@dataclass(frozen=True, slots=True, eq=False)
class Relation:
    """A table as it is from now on."""

    oid: int
    schema: str
    name: str
    columns: Sequence[Column]
    places: Mapping[str, int]
    """Where each column is in a row."""


class Row:
    """The columns of a row, in the order of its relation's.

    Of most rows nobody wants to know more than the key, so they are taken apart when they are looked at.
    """

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at

    def __len__(self) -> int:
        """Bytes, roughly."""
        return len(self._data)

    def value(self, place: int) -> bytes:
        """What was sent of a column; empty when nothing was."""
        data, at = self._data, self._at + 2
        for _ in range(place):
            at += 5 + _I32(data, at + 1)[0] if data[at] in _SENT else 1
        return data[at + 5 : at + 5 + _I32(data, at + 1)[0]] if data[at] in _SENT else b""

    def columns(self) -> Sequence[tuple[int, bytes | None]]:
        """The kind of each column, and what was sent of it."""
        data, at = self._data, self._at
        columns: list[tuple[int, bytes | None]] = []
        (count,) = _I16(data, at)
        at += 2
        for _ in range(count):
            kind = data[at]
            if kind in _SENT:
                end = at + 5 + _I32(data, at + 1)[0]
                columns.append((kind, data[at + 5 : end]))
                at = end
            else:
                columns.append((kind, None))
                at += 1
        return columns

    @property
    def end(self) -> int:
        """Where it ends in the message."""
        return self._at + 2 + sum(1 if value is None else 5 + len(value) for _, value in self.columns())


class Begin(NamedTuple):
    """A transaction that was committed: the place of its commit in the WAL, microseconds since 2000, its 32-bit xid."""

    lsn: int
    at: int
    xid: int


class Commit(NamedTuple):
    lsn: int
    end_lsn: int
    """Where the WAL goes on behind it."""
    at: int


class Insert(NamedTuple):
    relation: Relation
    new: Row


class Update(NamedTuple):
    """`old` has the columns of the key (or all) as they were, when the key was changed."""

    relation: Relation
    old: Row | None
    new: Row


class Delete(NamedTuple):
    """`old` has the columns of the key; the others are null."""

    relation: Relation
    old: Row


class Truncate(NamedTuple):
    relations: Sequence[Relation]


Message: TypeAlias = Begin | Commit | Relation | Insert | Update | Delete | Truncate


class Decoder:
    """Of one stream. Raises struct.error, IndexError or KeyError for what is no such message."""

    def __init__(self) -> None:
        self._relations: dict[int, Relation] = {}

    def decode(self, data: bytes, at: int = 0) -> Message | None:
        """The message that begins at `at`; None when it says nothing about rows: origins, types, logical messages."""
        kind = data[at]
        if kind == _INSERT:
            return Insert(self._relation(data, at + 1), Row(data, at + 6))
        if kind == _UPDATE:
            return self._update(data, at)
        if kind == _DELETE:
            return Delete(self._relation(data, at + 1), Row(data, at + 6))
        if kind == _BEGIN:
            return Begin(*_BEGIN_BODY(data, at + 1))
        if kind == _COMMIT:
            return Commit(*_COMMIT_BODY(data, at + 2))
        if kind == _RELATION:
            return self._described(data, at)
        if kind == _TRUNCATE:
            (count,) = _I32(data, at + 1)
            return Truncate([self._relation(data, at + 6 + 4 * n) for n in range(count)])
        return None

    def _relation(self, data: bytes, at: int) -> Relation:
        return self._relations[_U32(data, at)[0]]

    def _update(self, data: bytes, at: int) -> Update:
        relation = self._relation(data, at + 1)
        if data[at + 5] == _NEW_ROW:
            return Update(relation, None, Row(data, at + 6))
        old = Row(data, at + 6)
        return Update(relation, old, Row(data, old.end + 1))

    def _described(self, data: bytes, at: int) -> Relation:
        (oid,) = _U32(data, at + 1)
        schema, at = _text(data, at + 5)
        name, at = _text(data, at)
        (count,) = _I16(data, at + 1)  # behind the replica identity
        at += 3
        columns = []
        for _ in range(count):
            column, end = _text(data, at + 1)
            columns.append(Column(column, _U32(data, end)[0], bool(data[at] & _IS_KEY)))
            at = end + 8  # the oid, and the modifier of the type
        self._relations[oid] = relation = Relation(oid, schema, name, columns, _places(columns))
        return relation


def _places(columns: Sequence[Column]) -> Mapping[str, int]:
    return {column.name: place for place, column in enumerate(columns)}


def _text(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(0, at)
    return data[at:end].decode(), end + 1
