"""What we pack, psycopg reads, and packs itself to the same bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from types import MappingProxyType, SimpleNamespace
from typing import Any, cast

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.adapt import AdaptersMap, PyFormat, Transformer
from psycopg.pq import Format
from psycopg.types.json import Jsonb
from psycopg.types.numeric import Int4, Int8

from progressor.errors import StorageRejected
from progressor.storage import packing

INT4 = (-(2**31), 2**31 - 1)
INT8 = (-(2**63), 2**63 - 1)
FIRST = datetime(1, 1, 1, tzinfo=UTC)
LAST = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
ZONES = [UTC, *(timezone(timedelta(minutes=m)) for m in (-1439, -210, 1, 345, 840, 1439))]


def instants() -> st.SearchStrategy[datetime]:
    """In any zone, and so that they exist in UTC too: PostgreSQL knows nothing else."""
    naive = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30, 23, 59, 59, 999999))  # noqa: DTZ001
    return st.builds(lambda at, zone: at.replace(tzinfo=zone), naive, st.sampled_from(ZONES))


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)
OBJECTS = st.dictionaries(TEXTS, JSON, max_size=4)


def same(value: Any) -> Any:
    return value


def compact(value: Any) -> Jsonb:
    return Jsonb(value, dumps=lambda v: json.dumps(v, ensure_ascii=False))


@dataclass(frozen=True)
class Column:
    """`oid` is that of the array type; `wrap` makes psycopg choose that type, too."""

    pack: Callable[[Sequence[Any]], packing.Packed]
    oid: int
    values: st.SearchStrategy[Any]
    edges: Sequence[Any]
    wrap: Callable[[Any], Any] = same


COLUMNS = {
    "text": Column(
        packing.text,
        1009,
        TEXTS,
        ["", "a", "Ärger", "платёж", "支払い", "👩\u200d🚀", "{,}\"\\'", "NULL", "x" * 9999],
    ),
    "bytea": Column(packing.bytea, 1001, st.binary(), [b"", b"\0", bytes(range(256)), b"x" * 99999]),
    "jsonb": Column(
        packing.jsonb,
        3807,
        OBJECTS,
        [{}, {"format_version": 1}, {"ключ": [None, True, 1.5, "ß", {}]}, [], 0, "", False, 2**70],
        compact,
    ),
    "bigint": Column(packing.bigint, 1016, st.integers(*INT8), [*INT8, 0, -1, 2**31, 2**32 - 1], Int8),
    "integer": Column(packing.integer, 1007, st.integers(*INT4), [*INT4, 0, -1, 65536], Int4),
    "timestamptz": Column(
        packing.timestamptz,
        1185,
        instants(),
        [
            FIRST,
            LAST,
            datetime(2000, 1, 1, tzinfo=UTC),
            datetime(1999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
            datetime(1970, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
            datetime(2026, 3, 29, 2, 30, tzinfo=timezone(timedelta(hours=5, minutes=45))),
        ],
    ),
}
each_column = pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS.keys())


def unpacked(column: Column, packed: bytes) -> Any:
    return Transformer().get_loader(column.oid, Format.BINARY).load(packed)


def packed_by_psycopg(values: list[Any]) -> Any:
    dumper = Transformer().get_dumper(values, PyFormat.BINARY)
    return dumper.dump(values)


@each_column
@given(data=st.data())
def test_what_is_packed_can_be_read(column: Column, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.none() | column.values))
    assert unpacked(column, column.pack(values)) == values


@each_column
@given(data=st.data())
def test_it_is_what_psycopg_packs(column: Column, data: st.DataObject) -> None:
    values = [*data.draw(st.lists(st.none() | column.values)), data.draw(column.values)]
    assert column.pack(values) == packed_by_psycopg([None if v is None else column.wrap(v) for v in values])


@each_column
def test_the_edges_of_each_type(column: Column) -> None:
    for values in (list(column.edges), [*column.edges, None], [None, *column.edges]):
        assert unpacked(column, column.pack(values)) == values
    for value in column.edges:
        assert unpacked(column, column.pack([value])) == [value]
        assert unpacked(column, column.pack((value,))) == [value]


@each_column
def test_an_empty_array_has_no_dimension(column: Column) -> None:
    assert unpacked(column, column.pack([])) == []
    assert bytes(column.pack([])) == b"\0" * 8 + bytes(column.pack([None]))[8:12]


@each_column
def test_an_array_of_nothing_but_nulls(column: Column) -> None:
    assert unpacked(column, column.pack([None])) == [None]
    assert unpacked(column, column.pack([None] * 3)) == [None] * 3


@pytest.mark.parametrize("count", [1, 127, 128, 129, 256, 1000, 5000])
def test_columns_of_any_length(count: int) -> None:
    values = [*range(count - 1), -1]
    for column in (COLUMNS["bigint"], COLUMNS["integer"]):
        assert unpacked(column, column.pack(values)) == values
        assert unpacked(column, column.pack([*values, None])) == [*values, None]


def test_columns_of_many_lengths_leave_little_behind() -> None:
    for count in range(1000):
        packing.bigint([0] * count)
        packing.integer([0] * count)
    assert packing._many.cache_info().currsize <= 2 * packing._CHUNK


def test_instants_are_kept_to_the_microsecond_whatever_their_zone() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=-3, minutes=-30)))
    (found,) = unpacked(COLUMNS["timestamptz"], packing.timestamptz([at]))
    assert found == at
    assert found.isoformat() == "2026-01-02T06:34:05.678901+00:00"


def test_arrays_carry_the_type_of_their_column() -> None:
    connection = SimpleNamespace(adapters=AdaptersMap(psycopg.adapters))
    packing.register(cast("psycopg.Connection[Any]", connection))
    transformer = Transformer(cast("psycopg.Connection[Any]", SimpleNamespace(**vars(connection), connection=None)))
    for column in COLUMNS.values():
        packed = column.pack(list(column.edges))
        dumper = transformer.get_dumper(packed, PyFormat.AUTO)
        assert (dumper.oid, dumper.format) == (column.oid, Format.BINARY)
        assert dumper.dump(packed) == packed


# JSON


@given(OBJECTS)
def test_json_is_read_as_it_was_written(value: dict[str, Any]) -> None:
    assert packing.load_json(packing.dump_json(value).decode()) == value


def test_json_is_not_escaped() -> None:
    assert packing.dump_json({"ключ": "é"}) == '{"ключ": "é"}'.encode()


def test_an_event_without_metadata_has_an_empty_object() -> None:
    assert packing.load_json(None) == {}
    assert packing.load_json("{}") == {}
    assert packing.load_json("{}") is not packing.load_json("{}")


def test_metadata_may_be_any_mapping() -> None:
    value = MappingProxyType({"a": MappingProxyType({}), "b": [MappingProxyType({"c": 1})]})
    assert unpacked(COLUMNS["jsonb"], packing.jsonb([value])) == [{"a": {}, "b": [{"c": 1}]}]
    assert packing.dump_json(MappingProxyType({})) == b"{}"


# What does not fit


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


MISFITS: list[tuple[str, Any]] = [
    ("text", "\ud800"),
    ("text", 1),
    ("bytea", "text"),
    ("bytea", 1),
    ("jsonb", {"a": object()}),
    ("jsonb", {"a": b"bytes"}),
    ("jsonb", {"a": {1, 2}}),
    ("jsonb", {"a": "\ud800"}),
    ("jsonb", {(1, 2): 3}),
    ("jsonb", endless()),
    ("bigint", INT8[0] - 1),
    ("bigint", INT8[1] + 1),
    ("bigint", 1.5),
    ("bigint", "1"),
    ("integer", INT4[0] - 1),
    ("integer", INT4[1] + 1),
    ("timestamptz", datetime(2026, 1, 1)),  # noqa: DTZ001
    ("timestamptz", "2026-01-01"),
    ("timestamptz", math.inf),
]


@pytest.mark.parametrize(("name", "value"), MISFITS, ids=[f"{n} {v!r}" for n, v in MISFITS])
def test_what_does_not_fit_is_rejected_like_by_the_database(name: str, value: Any) -> None:
    column = COLUMNS[name]
    for values in ([value], [None, value], [column.edges[0], value]):
        with pytest.raises(StorageRejected, match=r"^storage refuses the data: ") as caught:
            column.pack(values)
        str(caught.value).encode()
