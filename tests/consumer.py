"""Reads topics with what any consumer has: Confluent's client, the code generated from the IDL, Apache's Thrift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from confluent_kafka import Consumer, TopicPartition
from thrift.protocol.TBinaryProtocol import TBinaryProtocol
from thrift.transport.TTransport import TMemoryBuffer

from progressor.rpc.gen.event_sink.ttypes import MachineEvent, SinkEvent
from progressor.rpc.gen.lifecycle_sink.ttypes import LifecycleEvent

T = TypeVar("T")
PATIENCE = 30
"""Seconds that a broker may take to answer."""


@dataclass(frozen=True)
class Record:
    partition: int
    offset: int
    key: bytes
    value: bytes

    @property
    def event(self) -> MachineEvent:
        return _decode(SinkEvent, self.value).event  # type: ignore[no-any-return]

    @property
    def turn(self) -> LifecycleEvent:
        return _decode(LifecycleEvent, self.value)


def read(endpoint: str, topic: str) -> list[Record]:
    """All that is in the topic now, each partition in its order."""
    consumer = Consumer({"bootstrap.servers": endpoint, "group.id": "tests", "enable.auto.commit": False})
    try:
        return _read(consumer, topic)
    finally:
        consumer.close()


def without_repeats(records: Sequence[Record]) -> list[MachineEvent]:
    """The events as a consumer keeps them: each (process, event_id) where it is seen first."""
    first: dict[tuple[str, int], MachineEvent] = {}
    for record in records:
        event = record.event
        first.setdefault((event.source_id, event.event_id), event)
    return list(first.values())


def by_process(events: Sequence[MachineEvent]) -> dict[str, list[int]]:
    """The event ids of each process, in the order of the topic."""
    found: dict[str, list[int]] = {}
    for event in events:
        found.setdefault(event.source_id, []).append(event.event_id)
    return found


def _read(consumer: Consumer, topic: str) -> list[Record]:
    partitions = consumer.list_topics(topic, PATIENCE).topics[topic].partitions
    ends = {number: consumer.get_watermark_offsets(TopicPartition(topic, number), PATIENCE)[1] for number in partitions}
    consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
    left = sum(ends.values())
    records: list[Record] = []
    while len(records) < left:
        messages = consumer.consume(min(left, 10_000), PATIENCE)
        assert messages, f"{len(records)} of {left} records of {topic}"
        records += [_record(message) for message in messages]
    return sorted(records, key=lambda record: (record.partition, record.offset))


def _record(message: Any) -> Record:
    assert message.error() is None, message.error()
    return Record(message.partition(), message.offset(), message.key(), message.value())


def _decode(cls: type[T], data: bytes) -> T:
    """The whole of the bytes, by the protocol that is written in Python."""
    struct: Any = cls()
    buffer = TMemoryBuffer(data)
    struct.read(TBinaryProtocol(buffer))
    struct.validate()
    assert not buffer.cstringio_buf.read(), "bytes behind the struct"
    found: T = struct
    return found
