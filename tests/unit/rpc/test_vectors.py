"""The golden bytes of the wire, and what lies beside them."""

from __future__ import annotations

import itertools
import json
import math
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from progressor import terms
from progressor.config import Dialect
from progressor.rpc import codec, values, woody
from progressor.rpc.codec import DecodeError
from progressor.rpc.gen.event_sink.ttypes import SinkEvent
from progressor.rpc.gen.lifecycle_sink.ttypes import LifecycleEvent
from progressor.rpc.gen.msgpack.ttypes import Nil, Value
from progressor.rpc.gen.state_processing import Automaton, Processor
from progressor.rpc.gen.state_processing.ttypes import Content, HistoryRange, MachineStatus
from progressor.rpc.woody import Call

VECTORS = json.loads(Path(__file__).with_name("vectors.json").read_text())
STRUCTS = {"event_sink.SinkEvent": SinkEvent, "lifecycle_sink.LifecycleEvent": LifecycleEvent}
MESSAGES = [v for v in VECTORS["thrift"] if v["kind"] == "message" and "unknown_method" not in v["name"]]
TERMS = {v["name"]: v for v in VECTORS["etf"]}


@pytest.mark.parametrize("vector", [v for v in VECTORS["thrift"] if v["kind"] != "message"], ids=lambda v: v["name"])
def test_structs(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    assert codec.encode(codec.decode(STRUCTS[vector["kind"].removeprefix("struct:")], data)) == data


@pytest.mark.parametrize("vector", MESSAGES, ids=lambda v: v["name"])
def test_messages(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    name, kind, seqid, body = codec.message_head(data)
    service = Processor if name.startswith("Process") else Automaton
    value = codec.decode(getattr(service, f"{name}_{'args' if kind == codec.CALL else 'result'}"), body)
    again = codec.encode_message(name, kind, seqid, value)
    if "erlang_field_order" in vector["name"] or "no_direction" in vector["name"]:
        assert codec.decode(type(value), codec.message_head(again)[3]) == value
    else:
        assert again == data


@pytest.mark.parametrize("form", ["hex", "hex_latin1_atoms"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("etf_mg_bin", Value(bin=b"\1\2\3")),
        ("etf_mg_nil", Value(nl=Nil())),
        ("etf_mg_str", Value(str="a")),
        ("etf_mg_arr", Value(arr=[Value(i=1), Value(b=True), Value(flt=1.5)])),
        ("etf_mg_arr_empty", Value(arr=[])),
        ("etf_mg_obj", Value(obj={Value(str="k"): Value(i=-1)})),
    ],
)
def test_terms(name: str, form: str, value: Value) -> None:
    data = bytes.fromhex(TERMS[name][form])
    assert values.load(data) == value
    if form == "hex":
        assert values.store(value, Dialect.HELLGATE) == data


SCALARS = st.one_of(
    st.just(Value(nl=Nil())),
    st.builds(Value, b=st.booleans()),
    st.builds(Value, i=st.integers(-(2**63), 2**63 - 1)),
    st.builds(Value, flt=st.floats(allow_nan=False, allow_infinity=False)),
    st.builds(Value, str=st.text()),
    st.builds(Value, bin=st.binary()),
)
ALL = st.recursive(
    SCALARS,
    lambda inner: st.builds(Value, arr=st.lists(inner)) | st.builds(Value, obj=st.dictionaries(SCALARS, inner)),
    max_leaves=10,
)


@given(ALL, st.sampled_from(Dialect))
def test_a_value_comes_back(value: Value, dialect: Dialect) -> None:
    assert values.load(values.store(value, dialect)) == value
    wrapped = Value(bin=values.store(value, Dialect.HELLGATE))
    assert values.load(values.store(wrapped, dialect)) == wrapped
    assert codec.decode(Value, codec.encode(value)) == value


@given(ALL)
def test_what_could_be_taken_for_a_state_of_hellgate_is_wrapped(value: Value) -> None:
    record = Value(bin=values.store_content(Content(7, value), Dialect.HELLGATE))
    for dialect in Dialect:
        assert values.load_content(values.store_content(Content(data=record), dialect)) == Content(data=record)


def test_terms_of_others_stay_as_they_are() -> None:
    for term in (b"h\2w\4initm\0\0\0\1x", b"h\2w\2okw\2ok", b"h\3w\3binm\0\0\0\1xj", b"w\3bin"):
        for stored in (b"\x83" + term, compressed(term)):
            assert values.store(Value(bin=stored)) == stored
            assert values.load(stored) == Value(bin=stored)


@given(st.binary().filter(lambda data: not data.startswith(b"\x83")))
def test_plain_bytes_stay_as_they_are(data: bytes) -> None:
    assert values.store(Value(bin=data)) == data
    assert values.load(data) == Value(bin=data)


@given(st.binary())
def test_any_bytes_can_be_read(data: bytes) -> None:
    for stored in (data, b"\x83" + data, b"\x83h\x02" + data, b"\x83P" + data):
        assert values.load(values.store(Value(bin=stored))) == Value(bin=stored)
        assert values.load_content(stored).data is not None


def compressed(term: bytes, size: int | None = None) -> bytes:
    return b"\x83P" + struct.pack(">I", len(term) if size is None else size) + zlib.compress(term)


def array(items: bytes, count: int) -> bytes:
    """The term of an `arr`, without its version."""
    return b"h\2w\3arrl" + struct.pack(">I", count) + items * count + b"j"


def test_compressed_terms_are_read_within_bounds() -> None:
    term = values.store(Value(str="x" * 1000), Dialect.HELLGATE)[1:]
    for each in (term, array(term, 3)):
        assert values.load(compressed(each)) == values.load(b"\x83" + each) != Value(bin=compressed(each))
        for size in (len(each) - 1, len(each) + 1):
            stored = compressed(each, size)
            assert values.load(values.store(Value(bin=stored))) == Value(bin=stored)
    number = b"h\2w\1ia\1"
    for bomb in (
        compressed(bytes(terms.MAX_INFLATED + 1), 2**31),
        compressed(array(b"j", 2_000_000)),
        compressed(array(number, values.MAX_COMPRESSED)),
    ):
        assert values.load(bomb) == Value(bin=bomb)
    assert len(values.load(compressed(array(number, 1000))).arr) == 1000


@contextmanager
def allocating_at_most(most: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] <= most
    finally:
        tracemalloc.stop()


def test_bombs_are_not_built() -> None:
    count = 2_000_000
    nils = b"l" + struct.pack(">I", count) + b"j" * (count + 1)
    bombs = [compressed(nils), compressed(array(b"j", count)), b"\x83" + nils, b"\x83" + array(b"j", count)]
    for bomb in bombs:
        with allocating_at_most(4 * count):  # inflated it has `count` bytes, as objects a hundred times as many
            assert terms.decode(bomb) is None
            assert values.load(bomb) == Value(bin=bomb)
        with allocating_at_most(2 * len(bomb) + 200_000):
            values.store(Value(bin=bomb))
    for content in (compressed(b"h\3w\x14mg_stateproc_Contentw\tundefined" + array(b"j", count)), *bombs):
        with allocating_at_most(4 * count):
            assert values.load_content(content) == Content(data=Value(bin=content))


def test_work_is_weighed_by_what_a_compressed_term_has() -> None:
    term = array(b"j", 100_000)
    assert terms.size(compressed(term)) == len(term)
    assert terms.size(compressed(term, 0)) == len(compressed(term))
    assert terms.size(b"\x83" + term) == 1 + len(term)


def test_what_is_stored_can_be_read_however_deep() -> None:
    value, stored = Value(i=1), b""
    with suppress(RecursionError):
        while True:
            stored = values.store(value, Dialect.HELLGATE)
            value = Value(arr=[value])
    assert values.load(stored).bin is None


def test_compressed_terms_inside_of_others_are_no_value() -> None:
    inner = values.store(Value(bin=b"x"), Dialect.HELLGATE)[1:]
    packed = b"P" + struct.pack(">I", len(inner)) + zlib.compress(inner)
    for stored in (b"\x83h\x02w\x03bin" + packed, b"\x83h\x02w\x03arrl\0\0\0\1" + packed + b"j"):
        assert values.load(stored) == Value(bin=stored)


def test_content() -> None:
    value = values.store(Value(bin=b"state"), Dialect.HELLGATE)[1:]
    tag = b"w\x14mg_stateproc_Content"
    assert values.load_content(b"\x83h\x03" + tag + b"w\tundefined" + value) == Content(data=Value(bin=b"state"))
    assert values.load_content(b"\x83h\x03" + tag + b"a\x07" + value) == Content(7, Value(bin=b"state"))
    assert values.load_content(None) == Content(data=Value(nl=Nil()))


@pytest.mark.parametrize(
    "value",
    [Value(), Value(flt=math.nan), Value(flt=math.inf), Value(arr=[Value()]), Value(obj={Value(i=1): Value()})],
)
def test_what_has_no_form_is_refused(value: Value) -> None:
    with pytest.raises(ValueError, match="one member"):
        values.store(value, Dialect.HELLGATE)


def number(member: int) -> bytes:
    """On the wire."""
    return b"\x0a\0\x03" + struct.pack(">q", member) + b"\0"


def obj(keys: Sequence[bytes]) -> bytes:
    flag = b"\x02\0\x02\1\0"
    return b"\x0d\0\x07\x0c\x0c" + struct.pack(">I", len(keys)) + b"".join(key + flag for key in keys) + b"\0"


def test_keys_have_different_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number's own hash is itself, but for a divisor, and -2 for -1."""
    same = sys.hash_info.modulus
    members = [-1, -2, *(n * same + m for n in range(-4, 4) for m in range(100, 200))]
    compared = 0

    def count(self: Value, other: Value) -> bool:
        nonlocal compared
        compared += 1
        return vars(self) == vars(other)

    monkeypatch.setattr(Value, "__eq__", count)
    assert len(codec.decode(Value, obj([number(member) for member in members])).obj) == len(members)
    assert compared < len(members) / 100
    assert hash(Value(flt=0.0)) == hash(Value(flt=-0.0))


def test_a_key_holds_no_other_values() -> None:
    """Of numbers in a list there are as many with one hash as one wants."""
    keys = [
        b"\x0f\0\x08\x0c" + struct.pack(">I", 10) + b"".join(map(number, members)) + b"\0"
        for members in itertools.product((-1, -2), repeat=10)
    ]
    for key in (*keys[:1], obj([number(1)])):
        with pytest.raises(DecodeError, match="a key of an obj holds"):
            codec.decode(Value, obj([key]))
    with pytest.raises(DecodeError, match="a key of an obj holds"):
        codec.decode(Value, obj(keys))
    term = b"\x83h\2w\3objt\0\0\0\1" + array(b"", 0) + b"h\2w\1ia\1"
    assert values.load(term) == Value(bin=term)


def test_texts_and_binaries_are_as_long_as_the_message() -> None:
    size = 17_000_000
    for value in (Value(bin=bytes(size)), Value(str=codec.REPLACEMENT * (size // 3 + 1))):
        assert codec.decode(Value, codec.encode(value)) == value


@pytest.mark.parametrize(
    ("cls", "data", "problem"),
    [
        (Value, b"\0", "exactly one member"),
        (Value, b"\x02\0\x02\1\x0a\0\x03\0\0\0\0\0\0\0\1\0", "exactly one member"),
        (Value, b"\x02\0\x02\1", "EOF"),
        (Value, b"\x02\0\x02\1\0\0", "trailing"),
        (Value, b"\x0b\0\x06\x7f\xff\xff\xff", "."),
        (Value, b"\x0f\0\x08\x0c\x7f\xff\xff\xff", "."),
        (Value, b"\x0f\0\x08\x0c\0\0\0\1" * 100_000, "."),
        (HistoryRange, b"\x08\0\x03\0\0\0\x09\0", "Direction"),
        (Content, b"\0", "Content"),
        (MachineStatus, b"\0", "exactly one"),
    ],
)
def test_bad_bytes_are_refused(cls: type, data: bytes, problem: str) -> None:
    with pytest.raises(DecodeError, match=problem):
        codec.decode(cls, data)


def test_a_context_says_where_a_task_came_from() -> None:
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    for call in (Call("t", "s", "p"), Call("t", "s", "p", meta={"user-identity.id": "me"}, traceparent=trace)):
        assert woody.from_context(call.context()) == call


def test_a_context_that_is_none_of_ours_begins_a_new_trace() -> None:
    inner = zlib.compress(b"j")
    bomb = b"\x83t\0\0\0\1m\0\0\0\5woodyP\0\0\0\1" + inner
    many = terms.encode({"woody": [1, ["s", "t", "p"], {str(n): "" for n in range(terms.MAX_TAGS)}], "otel": []})
    ids = [terms.encode({"woody": [1, [id_, "t", "p"]], "otel": []}) for id_ in ("", "a\r\nb", "x" * 65)]
    for context in (b"", b"text", b"\x83j", bomb, many, *ids):
        assert woody.from_context(context).parent_id == "undefined"


def test_the_bytes_of_a_header_are_those_of_a_context() -> None:
    user = "Иван".encode()
    headers = {
        "woody.trace-id": "t",
        "woody.span-id": "s",
        "woody.parent-id": "p",
        "woody.meta.user": user.decode("latin-1"),
    }
    context = woody.read_call(headers).context()
    assert user in context
    assert woody.from_context(context).headers()["woody.meta.user"].encode("latin-1") == user


def test_what_no_header_can_carry_is_left_out() -> None:
    meta = {"a b": "1", "a": "x\r\ny", "b": "\0", "": "2", "\xff": "3", "good": "4\t\xff"}
    otel: list[terms.Plain] = ["a\r\nb", "b", 1]
    context = terms.encode({"woody": [1, ["s", "t", "p"], dict(meta)], "otel": otel})
    headers = woody.from_context(context).headers()
    assert {name for name in headers if name.startswith(woody.META)} == {"woody.meta.good"}
    assert "traceparent" not in headers
