"""Messages are byte for byte those of the Erlang original (vectors.json)."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from progressor import rfc3339
from progressor.config import Dialect
from progressor.engine.ports import Message, Notice
from progressor.kafka.codec import Unencodable, encode, key, show_time
from progressor.rpc import codec, values
from progressor.rpc.gen.event_sink.ttypes import MachineEvent, SinkEvent
from progressor.rpc.gen.lifecycle_sink.ttypes import LifecycleEvent
from progressor.rpc.gen.msgpack.ttypes import Nil, Value

GOLDEN = json.loads(Path(__file__).parent.with_name("rpc").joinpath("vectors.json").read_text())
VECTORS = {vector["name"]: vector["hex"] for vector in GOLDEN["thrift"]}
NS = "default/default"
AT = datetime(2024, 1, 1, tzinfo=UTC)


def stored(value: Value) -> bytes:
    return values.store(value, Dialect.HELLGATE)


@pytest.mark.parametrize("payload", [b"\1\2\3", stored(Value(bin=b"\1\2\3"))], ids=["plain", "term"])
def test_an_event(payload: bytes) -> None:
    message = Message(1, "p1", Notice.EVENT, AT, 1, {"format_version": 1}, payload)
    assert encode(NS, message).hex() == VECTORS["sink_event_bin"]


@pytest.mark.parametrize(
    ("name", "event_id", "metadata", "value"),
    [
        ("sink_event_bin_no_format_version", 1, {}, Value(bin=b"\1\2\3")),
        ("sink_event_bin_no_format_version", 1, None, Value(bin=b"\1\2\3")),
        ("sink_event_nil", 2, {}, Value(nl=Nil())),
        ("sink_event_obj_one_key", 5, {"format": 1}, Value(obj={Value(str="k"): Value(i=-1)})),
    ],
)
def test_an_event_whose_payload_is_a_value(name: str, event_id: int, metadata: Any, value: Value) -> None:
    message = Message(1, "p1", Notice.EVENT, AT, event_id, metadata, stored(value))
    assert encode(NS, message).hex() == VECTORS[name]


@pytest.mark.parametrize(
    ("name", "notice"),
    [
        ("lifecycle_created", Notice.CREATED),
        ("lifecycle_repaired", Notice.WORKING),
        ("lifecycle_removed", Notice.REMOVED),
    ],
)
def test_a_turn_of_life(name: str, notice: Notice) -> None:
    assert encode(NS, Message(1, "p1", notice, AT)).hex() == VECTORS[name]


@pytest.mark.parametrize("reason", ["zombie detected", "причина", "", None])
def test_a_failure_says_why(reason: str | None) -> None:
    encoded = encode(NS, Message(1, "p1", Notice.FAILED, AT, reason=reason))
    failed = codec.decode(LifecycleEvent, encoded).data.machine.status_changed.new_status.failed
    assert failed.reason == reason


@pytest.mark.parametrize(
    ("metadata", "version"),
    [
        ({"format_version": 2, "format": 1}, 2),
        ({"format": 3}, 3),
        ({"format_version": "2", "format": 1}, 1),
        ({"format_version": "2"}, None),
        ({"format_version": True}, None),
        ({"format_version": 1.0}, None),
        ({"format_version": 2**31}, None),
        ({"format_version": None}, None),
    ],
)
def test_a_version_is_an_integer_of_32_bits_or_absent(metadata: Any, version: int | None) -> None:
    encoded = encode(NS, Message(1, "p1", Notice.EVENT, AT, 1, metadata, b""))
    assert codec.decode(SinkEvent, encoded).event.format_version == version


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (AT, "2024-01-01T00:00:00Z"),
        (AT.replace(microsecond=120_000), "2024-01-01T00:00:00.120Z"),
        (AT.replace(microsecond=1), "2024-01-01T00:00:00.000001Z"),
        (datetime(2024, 1, 1, 3, tzinfo=timezone(timedelta(hours=3))), "2024-01-01T00:00:00Z"),
    ],
)
def test_times_are_utc_without_needless_digits(at: datetime, text: str) -> None:
    assert show_time(at) == text


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_lose_nothing(at: datetime) -> None:
    assert rfc3339.read(show_time(at)) == at


PAYLOADS = st.binary() | st.builds(stored, st.builds(Value, str=st.text(st.characters(codec="utf-8"))))


@given(
    st.text(st.characters(codec="utf-8"), min_size=1),
    st.integers(-(2**63), 2**63 - 1),
    st.none() | st.integers(-(2**31), 2**31 - 1),
    PAYLOADS,
)
def test_an_event_is_written_as_the_generated_code_writes_it(
    process_id: str, event_id: int, version: int | None, payload: bytes
) -> None:
    message = Message(1, process_id, Notice.EVENT, AT, event_id, {"format_version": version}, payload)
    event = MachineEvent(NS, process_id, event_id, show_time(AT), version, values.load(payload))
    assert encode(NS, message) == codec.encode(SinkEvent(event))


@pytest.mark.parametrize(
    "message",
    [
        Message(1, "p1", Notice.EVENT, AT, 1, {}, None),
        Message(1, "p1", Notice.EVENT, AT, None, {}, b""),
        Message(1, "p1", Notice.EVENT, AT, 2**63, {}, b""),
        Message(1, "\ud800", Notice.CREATED, AT),
        Message(1, "p1", Notice.FAILED, AT, reason="\ud800"),
    ],
    ids=["no payload", "no event id", "event id beyond 64 bits", "id that is no text", "reason that is no text"],
)
def test_what_cannot_be_said_is_refused(message: Message) -> None:
    with pytest.raises(Unencodable, match=r"\w+: "):
        encode(NS, message)


def nested(depth: int) -> bytes:
    """A list in a list in a list."""
    return b"\x83" + b"h\2w\3arrl\0\0\0\1" * depth + b"h\2w\1ia\1" + b"j" * depth


@pytest.mark.parametrize("depth", [0, 10, 100_000])
def test_a_nested_payload_is_sent_as_the_value_it_is_read_as(depth: int) -> None:
    encoded = encode(NS, Message(1, "p1", Notice.EVENT, AT, 1, {}, nested(depth)))
    assert codec.decode(SinkEvent, encoded).event.data == values.load(nested(depth))


def test_a_payload_deeper_than_thrift_writes_is_refused() -> None:
    with pytest.raises(Unencodable, match=r"(?i)recursion"):
        encode(NS, Message(1, "p1", Notice.EVENT, AT, 1, {}, nested(100)))


def test_the_key_is_the_namespace_and_the_process() -> None:
    assert key(NS, "p1") == b"default/default p1"
