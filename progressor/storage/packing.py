"""Columns of a batch in PostgreSQL's binary array format.

A batch passes one array for each column. Packing them here with `struct` costs a tenth of psycopg's list
dumpers, which matters at ten thousand items a second (docs/adr/0003-batches.md). The format: PostgreSQL
manual, "array_send": dimensions, null flag, element oid, length, lower bound, then length and bytes of each.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import cache, wraps
from typing import Any, ParamSpec

from psycopg.adapt import Buffer, Dumper
from psycopg.pq import Format

from progressor.errors import StorageRejected
from progressor.metadata import encode
from progressor.postgres import EPOCH, Connection

P = ParamSpec("P")
_HEADER = struct.Struct(">iiIii").pack
_LENGTH = struct.Struct(">i").pack
_NULL = _LENGTH(-1)
_CHUNK = 128
"""Items packed at once: one `struct` each size is kept, and a column may have any number of items."""


class Packed(bytes):
    """An array in binary format; each subclass is one array type."""

    __slots__ = ()


class _PackedDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Packed) -> Buffer:
        return obj


def _array_type(name: str, oid: int) -> type[Packed]:
    packed = type(name, (Packed,), {"__slots__": ()})
    _DUMPERS[packed] = type(f"{name}Dumper", (_PackedDumper,), {"oid": oid})
    return packed


_DUMPERS: dict[type[Packed], type[Dumper]] = {}
_Text = _array_type("_Text", 1009)
_Bigint = _array_type("_Bigint", 1016)
_Int = _array_type("_Int", 1007)
_Bytea = _array_type("_Bytea", 1001)
_Timestamptz = _array_type("_Timestamptz", 1185)
_Jsonb = _array_type("_Jsonb", 3807)


def register(connection: Connection) -> None:
    for packed, dumper in _DUMPERS.items():
        connection.adapters.register_dumper(packed, dumper)


def _rejecting(pack: Callable[P, Packed]) -> Callable[P, Packed]:
    """A value that does not fit its column is refused here as it would be by the database: no JSON, a number too big, a
    lone surrogate."""

    @wraps(pack)
    def checked(*args: P.args, **kwargs: P.kwargs) -> Packed:
        try:
            return pack(*args, **kwargs)
        except (TypeError, ValueError, AttributeError, OverflowError, RecursionError, struct.error) as error:
            raise StorageRejected(f"{StorageRejected.text}: {error}") from error

    return checked


@_rejecting
def text(values: Iterable[str | None]) -> Packed:
    return _pack(_Text, 25, [None if v is None else v.encode() for v in values])


@_rejecting
def bytea(values: Sequence[bytes | None]) -> Packed:
    return _pack(_Bytea, 17, values)


@_rejecting
def jsonb(values: Iterable[Any]) -> Packed:
    """JSON documents; None is SQL's null."""
    return _pack(_Jsonb, 3802, [None if v is None else b"\x01" + dump_json(v) for v in values])


@_rejecting
def bigint(values: Sequence[int | None]) -> Packed:
    return _fixed(_Bigint, 20, "q", values)


@_rejecting
def integer(values: Sequence[int | None]) -> Packed:
    return _fixed(_Int, 23, "i", values)


@_rejecting
def timestamptz(values: Iterable[datetime | None]) -> Packed:
    return _fixed(_Timestamptz, 1184, "q", [None if v is None else _microseconds(v) for v in values])


def dump_json(value: Any) -> bytes:
    return b"{}" if not value and isinstance(value, dict) else encode(value).encode()


def load_json(text: str | None) -> Any:
    """Metadata of an event; most have none."""
    return {} if text is None or text == "{}" else json.loads(text)


def _microseconds(value: datetime) -> int:
    delta = value - EPOCH
    return (delta.days * 86400 + delta.seconds) * 1_000_000 + delta.microseconds


def _pack(packed: type[Packed], oid: int, values: Sequence[bytes | None]) -> Packed:
    if not values:
        return packed(_HEADER(0, 0, oid, 0, 1)[:12])
    parts = [_HEADER(1, int(None in values), oid, len(values), 1)]
    append = parts.append
    for value in values:
        if value is None:
            append(_NULL)
        else:
            append(_LENGTH(len(value)))
            append(value)
    return packed(b"".join(parts))


def _fixed(packed: type[Packed], oid: int, code: str, values: Sequence[int | None]) -> Packed:
    size = struct.calcsize(f">{code}")
    if None in values:
        pack = struct.Struct(f">{code}").pack
        return _pack(packed, oid, [None if v is None else pack(v) for v in values])
    if not values:
        return _pack(packed, oid, ())
    flat: list[Any] = [size] * (2 * len(values))
    flat[1::2] = values
    parts = [flat[i : i + 2 * _CHUNK] for i in range(0, len(flat), 2 * _CHUNK)]
    return packed(_HEADER(1, 0, oid, len(values), 1) + b"".join(_many(code, len(p) // 2)(*p) for p in parts))


@cache
def _many(code: str, count: int) -> Callable[..., bytes]:
    return struct.Struct(">" + ("i" + code) * count).pack
