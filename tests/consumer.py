"""Reads topics with what any consumer has: Confluent's client, the code generated from the IDL, Apache's Thrift."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from thrift.protocol.TBinaryProtocol import TBinaryProtocol
from thrift.transport.TTransport import TMemoryBuffer

from progressor.rpc.gen.event_sink.ttypes import MachineEvent, SinkEvent
from progressor.rpc.gen.lifecycle_sink.ttypes import LifecycleEvent
from tests.eventually import eventually

T = TypeVar("T")
WITHOUT_LEADER = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE)
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


@contextmanager
def _consumer(endpoint: str) -> Iterator[Consumer]:
    consumer = Consumer({"bootstrap.servers": endpoint, "group.id": "tests", "enable.auto.commit": False})
    try:
        yield consumer
    finally:
        consumer.close()


def read(endpoint: str, topic: str) -> list[Record]:
    """All that is in the topic now, each partition in its order."""
    with _consumer(endpoint) as consumer:
        ends = _ends(consumer, topic)
        consumer.assign([TopicPartition(topic, number, 0) for number in ends])
        records: list[Record] = []
        while len(records) < sum(ends.values()):
            messages = consumer.consume(min(10_000, sum(ends.values()) - len(records)), PATIENCE)
            assert messages, f"{len(records)} of {sum(ends.values())} records of {topic}"
            records += [_record(message) for message in messages]
    return sorted(records, key=lambda record: (record.partition, record.offset))


def size(endpoint: str, topic: str) -> int:
    """How many records the topic has."""
    with _consumer(endpoint) as consumer:
        return sum(_ends(consumer, topic).values())


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


def _ends(consumer: Consumer, topic: str) -> dict[int, int]:
    """Behind the last record of each partition."""
    partitions = consumer.list_topics(topic, PATIENCE).topics[topic].partitions
    found = {number: eventually(partial(_watermarks, consumer, TopicPartition(topic, number))) for number in partitions}
    return {number: watermarks[1] for number, watermarks in found.items() if watermarks is not None}


def _watermarks(consumer: Consumer, partition: TopicPartition) -> tuple[int, int] | None:
    """None while the partition has no leader, as for a moment after its making or a broker's start."""
    try:
        return consumer.get_watermark_offsets(partition, PATIENCE)
    except KafkaException as failure:
        if failure.args[0].code() not in WITHOUT_LEADER:
            raise
        return None


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
