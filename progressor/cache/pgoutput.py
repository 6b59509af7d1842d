"""What PostgreSQL sends of its WAL: messages of the plugin pgoutput, protocol version 1.

Pure functions of a message as it came (PostgreSQL manual, "Logical Replication Message Formats"); its first byte is its
kind. Of most rows nobody wants to know more than the process, so a row is never taken apart as a whole unless somebody
asks for its columns. They raise struct.error or IndexError for what is no such message.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

INSERT, UPDATE, DELETE, BEGIN, COMMIT, RELATION, TRUNCATE = b"IUDBCRT"
"""Kinds of messages; others (origins, types, logical messages) say nothing about rows."""
ROWS = (INSERT, UPDATE, DELETE)
_BEGIN_BODY = struct.Struct(">QqI").unpack_from
_COMMIT_BODY = struct.Struct(">QQq").unpack_from
_U32 = struct.Struct(">I").unpack_from
_I32 = struct.Struct(">i").unpack_from
_I16 = struct.Struct(">h").unpack_from
_IS_KEY = 1
_NEW_ROW = ord("N")

NULL, UNCHANGED, TEXT, BINARY = b"nutb"
"""Kinds of a column in a row. UNCHANGED: a value out of line (TOAST) that an update did not touch is not sent."""
_SENT = (BINARY, TEXT)
FIRST = 6
"""Where the first row of a message begins: the new one of an INSERT, the old one of a DELETE (its key, the other
columns are null), and of an UPDATE the old one (its key, or all) when that is sent, else the new one."""


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


class Column(NamedTuple):
    name: str
    type: int
    """The oid of its type."""
    is_key: bool


@dataclass(frozen=True, slots=True, eq=False)
class Relation:
    """A table as it is from now on. Columns are found by their names: a migration may change their order."""

    schema: str
    name: str
    columns: Sequence[Column]
    places: Mapping[str, int]
    """Where each column is in a row."""


def begin(message: bytes) -> Begin:
    return Begin(*_BEGIN_BODY(message, 1))


def commit(message: bytes) -> Commit:
    return Commit(*_COMMIT_BODY(message, 2))


def oid(message: bytes) -> bytes:
    """Of the relation that a row belongs to, or that is described."""
    return message[1:5]


def relation(message: bytes) -> Relation:
    schema, at = _text(message, 5)
    name, at = _text(message, at)
    (count,) = _I16(message, at + 1)  # behind the replica identity
    at += 3
    columns = []
    for _ in range(count):
        column, end = _text(message, at + 1)
        columns.append(Column(column, _U32(message, end)[0], bool(message[at] & _IS_KEY)))
        at = end + 8  # the oid, and the modifier of the type
    return Relation(schema, name, columns, {column.name: place for place, column in enumerate(columns)})


def truncated(message: bytes) -> Sequence[bytes]:
    """The oids of the relations."""
    return [message[at : at + 4] for at in range(6, len(message), 4)]


def second(message: bytes) -> int | None:
    """Where the new row of an UPDATE begins that has an old one too."""
    return None if message[FIRST - 1] == _NEW_ROW else _end(message, FIRST) + 1


def value(message: bytes, at: int, place: int) -> bytes:
    """What was sent of a column of the row that begins there; empty when nothing was."""
    at += 2
    for _ in range(place):
        at += 5 + _I32(message, at + 1)[0] if message[at] in _SENT else 1
    return message[at + 5 : at + 5 + _I32(message, at + 1)[0]] if message[at] in _SENT else b""


def columns(message: bytes, at: int) -> Sequence[tuple[int, bytes | None]]:
    """The kind of each column of the row that begins there, and what was sent of it."""
    found: list[tuple[int, bytes | None]] = []
    (count,) = _I16(message, at)
    at += 2
    for _ in range(count):
        kind = message[at]
        if kind in _SENT:
            end = at + 5 + _I32(message, at + 1)[0]
            found.append((kind, message[at + 5 : end]))
            at = end
        else:
            found.append((kind, None))
            at += 1
    return found


def _end(message: bytes, at: int) -> int:
    return at + 2 + sum(1 if value is None else 5 + len(value) for _, value in columns(message, at))


def _text(message: bytes, at: int) -> tuple[str, int]:
    end = message.index(0, at)
    return message[at:end].decode(), end + 1
