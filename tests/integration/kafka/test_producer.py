"""What the publisher promises, with a real broker that stalls, dies, and has its topics changed."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, NewPartitions, ResourceType
from kafka.broker import Broker

from progressor.config import KafkaClientConfig, NotifierConfig
from progressor.engine.ports import Message, Notice, Published
from progressor.errors import ConfigError
from progressor.kafka import producer
from progressor.kafka.partitioner import phash2
from progressor.kafka.producer import KafkaPublisher, check
from tests.consumer import by_process, read, without_repeats
from tests.eventually import eventually

NS = "default/default"
AT = datetime(2026, 1, 2, 3, 4, 5, 678_900, UTC)


@pytest.fixture
def topic(kafka: Broker) -> str:
    name = f"events-{secrets.token_hex(4)}"
    kafka.create(name, 3)
    return name


@pytest.fixture
def publisher(kafka: Broker, topic: str) -> Iterator[KafkaPublisher]:
    publisher = connect(kafka, topic)
    yield publisher
    publisher.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producer, "PATIENCE", 1.0)


def connect(kafka: Broker, topic: str | None, lifecycle_topic: str | None = None, **settings: int) -> KafkaPublisher:
    client = KafkaClientConfig("k", (kafka.endpoint,), {name.replace("_", "."): n for name, n in settings.items()})
    return KafkaPublisher(NS, client, NotifierConfig("k", topic, lifecycle_topic))


def events(count: int, *, processes: int = 10, size: int = 20, first: int = 0) -> list[Message]:
    """In the order of an outbox: the first event of each process, then the second ..."""
    return [
        Message(n + 1, f"p{n % processes}", Notice.EVENT, AT, n // processes + 1, {"format": 1}, bytes(size))
        for n in range(first, first + count)
    ]


def publish(publisher: KafkaPublisher, messages: Sequence[Message]) -> Published:
    return publisher.publish(messages, threading.Event())


def until_sent(publisher: KafkaPublisher, messages: Sequence[Message]) -> None:
    """As a notifier does, which gives again what was not acknowledged."""
    left = list(messages)

    def is_done() -> bool:
        published = publish(publisher, left)
        assert not published.refused
        left[:] = [message for message in left if message.message_id not in published.sent]
        return not left

    eventually(is_done, 60, 0.1)


def alter(kafka: Broker, topic: str, **settings: str) -> None:
    told = set(settings.values())
    entries = [
        ConfigEntry(name.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
        for name, value in settings.items()
    ]
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
    asked = ConfigResource(ResourceType.TOPIC, topic)
    with kafka.admin() as admin:
        admin.incremental_alter_configs([resource])[resource].result()
        eventually(lambda: {entry.value for entry in admin.describe_configs([asked])[asked].result().values()} >= told)


def test_messages_arrive_in_order_with_the_key_and_partition_of_their_process(
    kafka: Broker, publisher: KafkaPublisher, topic: str
) -> None:
    published = publish(publisher, events(200))
    assert sorted(published.sent) == list(range(1, 201))
    assert published.unavailable is None
    records = read(kafka.endpoint, topic)
    assert {record.key for record in records} == {f"{NS} p{n}".encode() for n in range(10)}
    assert all(record.partition == phash2(record.key) % 3 for record in records)
    assert by_process([record.event for record in records]) == {f"p{n}": list(range(1, 21)) for n in range(10)}


def test_events_and_turns_have_topics_of_their_own(kafka: Broker, topic: str) -> None:
    kafka.create(turns := f"turns-{topic}", 2)
    publisher = connect(kafka, topic, turns)
    messages = [
        Message(1, "p", Notice.CREATED, AT),
        Message(2, "p", Notice.EVENT, AT, 1, {}, b"1"),
        Message(3, "p", Notice.FAILED, AT, reason="why"),
    ]
    assert set(publish(publisher, messages).sent) == {1, 2, 3}
    publisher.close()
    assert [record.event.data.bin for record in read(kafka.endpoint, topic)] == [b"1"]
    created, failed = (record.turn.data.machine for record in read(kafka.endpoint, turns))
    assert created.created is not None
    assert failed.status_changed.new_status.failed.reason == "why"


def test_a_stream_without_a_topic_is_not_sent_and_does_not_wait(kafka: Broker, topic: str) -> None:
    publisher = connect(kafka, None, topic)
    assert publish(publisher, events(3)).sent == (1, 2, 3)
    publisher.close()
    assert read(kafka.endpoint, topic) == []


def test_a_message_that_is_too_large_is_refused_and_nothing_of_its_process_goes_behind_it(
    kafka: Broker, topic: str
) -> None:
    alter(kafka, topic, max_message_bytes="5000")
    publisher = connect(kafka, topic)
    one, large, behind, other = *events(1), *events(1, size=5000, first=10), *events(1, first=20), *events(1, first=1)
    published = publish(publisher, [one, large, behind, other])
    publisher.close()
    assert set(published.sent) == {one.message_id, other.message_id}
    assert set(published.refused) == {large.message_id}
    assert f"at most 4900 may go to the topic {topic!r}" in published.refused[large.message_id]


def test_a_limit_that_was_raised_is_known_when_it_matters(kafka: Broker, publisher: KafkaPublisher, topic: str) -> None:
    alter(kafka, topic, max_message_bytes="5000")
    assert publish(publisher, events(1, size=6000)).refused
    alter(kafka, topic, max_message_bytes="50000")
    assert publish(publisher, events(1, size=6000)) == Published((1,))


@pytest.mark.parametrize("limit", ["120", "2147483647"])
def test_a_topic_may_have_any_limit(kafka: Broker, publisher: KafkaPublisher, topic: str, limit: str) -> None:
    alter(kafka, topic, max_message_bytes=limit)
    published = publish(publisher, events(1))
    assert published.unavailable is None
    assert published.sent or published.refused


def test_the_largest_message_that_is_not_refused_is_taken(kafka: Broker, topic: str) -> None:
    alter(kafka, topic, max_message_bytes="5000")
    publisher = connect(kafka, topic)
    sizes = range(4700, 4900, 5)
    messages = [Message(n, f"p{n}", Notice.EVENT, AT, 1, {}, bytes(size)) for n, size in enumerate(sizes)]
    published = publish(publisher, messages)
    publisher.close()
    assert {*published.sent, *published.refused} == set(range(len(messages)))
    assert published.sent
    assert published.unavailable is None


def test_what_the_broker_finds_too_large_is_found_out_and_all_others_are_sent(
    kafka: Broker, publisher: KafkaPublisher, topic: str
) -> None:
    publish(publisher, events(10))
    alter(kafka, topic, max_message_bytes="2000")  # the publisher does not know
    messages = events(90, first=10)
    messages[40] = large = events(1, size=2000, first=50)[0]
    behind = {m.message_id for m in messages[41:] if m.process_id == large.process_id}
    published = publish(publisher, messages)
    assert published.refused == {large.message_id: "Broker: Message size too large"}
    assert set(published.sent) == {m.message_id for m in messages} - {large.message_id} - behind
    ids = by_process(without_repeats(read(kafka.endpoint, topic)))
    assert ids.pop(large.process_id) == list(range(1, large.event_id or 0))
    assert all(found == list(range(1, 11)) for found in ids.values())


def test_more_messages_than_the_queue_of_librdkafka_holds(kafka: Broker, topic: str) -> None:
    publisher = connect(kafka, topic, queue_buffering_max_messages=10)
    assert len(publish(publisher, events(200)).sent) == 200
    publisher.close()
    assert by_process([r.event for r in read(kafka.endpoint, topic)]) == {
        f"p{n}": list(range(1, 21)) for n in range(10)
    }


def test_a_missing_topic_is_named_and_used_when_it_is_there(kafka: Broker) -> None:
    name = f"late-{secrets.token_hex(4)}"
    publisher = connect(kafka, name)
    published = publish(publisher, events(1))
    assert published.sent == ()
    assert published.unavailable == f"the topic '{name}' does not exist: create it, Progressor makes none"
    kafka.create(name)
    until_sent(publisher, events(5))
    publisher.close()
    assert len(read(kafka.endpoint, name)) == 5


def test_a_topic_that_was_made_anew_gets_what_comes_then(
    kafka: Broker, publisher: KafkaPublisher, topic: str, impatient: None
) -> None:
    publish(publisher, events(10))
    with kafka.admin() as admin:
        admin.delete_topics([topic])[topic].result()
        eventually(lambda: topic not in admin.list_topics().topics)
    kafka.create(topic, 2)
    until_sent(publisher, events(40, first=10))
    ids = by_process(without_repeats(read(kafka.endpoint, topic)))
    assert ids == {f"p{n}": [2, 3, 4, 5] for n in range(10)}


def test_new_partitions_are_used(
    kafka: Broker, publisher: KafkaPublisher, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producer, "REFRESH", 0.0)
    publish(publisher, events(20, processes=20))
    with kafka.admin() as admin:
        admin.create_partitions([NewPartitions(topic, 7)])[topic].result()
        eventually(lambda: len(admin.list_topics().topics[topic].partitions) == 7)
    until_sent(publisher, events(20, processes=20, first=20))
    for record in read(kafka.endpoint, topic):
        assert record.partition == phash2(record.key) % (3 if record.event.event_id == 1 else 7)


def test_a_broker_that_stalls_is_away_and_what_it_had_is_repeated_in_order(
    kafka: Broker, publisher: KafkaPublisher, topic: str, impatient: None
) -> None:
    publish(publisher, events(10))
    with kafka.frozen():
        published = publish(publisher, events(50, first=10))
        assert published.unavailable is not None
        assert kafka.endpoint in published.unavailable
        assert "no broker answers" in str(publish(publisher, events(50, first=10)).unavailable)
    until_sent(publisher, events(90, first=10))
    ids = by_process(without_repeats(read(kafka.endpoint, topic)))
    assert ids == {f"p{n}": list(range(1, 11)) for n in range(10)}


def test_a_broker_that_died_is_used_again_when_it_is_back(
    kafka: Broker, publisher: KafkaPublisher, topic: str, impatient: None
) -> None:
    until_sent(publisher, events(10))
    kafka.kill()
    published = publish(publisher, events(10, first=10))
    kafka.start()
    assert "Connection refused" in str(published.unavailable)
    until_sent(publisher, events(40, first=10))
    ids = by_process(without_repeats(read(kafka.endpoint, topic)))
    assert ids == {f"p{n}": list(range(1, 6)) for n in range(10)}


def test_a_stop_ends_the_wait_for_a_broker(kafka: Broker, publisher: KafkaPublisher, topic: str) -> None:
    """In PATIENCE, which is longer than this test takes, the broker would be given up."""
    publish(publisher, events(10))
    stop = threading.Event()
    with kafka.frozen(), ThreadPoolExecutor(1) as thread:
        known = thread.submit(publisher.publish, events(10, first=10), stop)
        fresh = connect(kafka, topic)
        stop.set()
        assert known.result(5) == Published()
        assert fresh.publish(events(10), stop) == Published()
        fresh.close()


@pytest.mark.timeout(180)
def test_under_faults_everything_arrives_in_order(
    kafka: Broker, publisher: KafkaPublisher, topic: str, impatient: None
) -> None:
    over = threading.Event()
    sent: list[Message] = []

    def send() -> None:
        while not over.is_set():
            batch = events(500, processes=100, first=len(sent))
            until_sent(publisher, batch)
            sent.extend(batch)

    def flows() -> None:
        before = len(sent)
        eventually(lambda: len(sent) > before + 1000, 30)

    with ThreadPoolExecutor(1) as thread:
        sending = thread.submit(send)
        try:
            for _ in range(2):
                flows()
                with kafka.frozen():
                    threading.Event().wait(1.5)  # PATIENCE ends meanwhile
                flows()
                kafka.kill()
                kafka.start()
            flows()
        finally:
            over.set()
        sending.result(60)
    records = read(kafka.endpoint, topic)
    assert by_process(without_repeats(records)) == {f"p{n}": list(range(1, len(sent) // 100 + 1)) for n in range(100)}
    print(f"{len(records) - len(sent)} of {len(records)} records are repeats")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"no.such.setting": "x"}, 'No such configuration property: "no.such.setting"'),
        ({"socket.timeout.ms": "soon"}, "socket.timeout.ms"),
        ({"security.protocol": "SSL", "ssl.ca.location": "/nowhere"}, "ssl.ca.location"),
    ],
)
def test_settings_that_librdkafka_does_not_take_are_named(settings: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError, match=r"kafka\.clients\.k\.config: ") as found:
        check([KafkaClientConfig("k", ("127.0.0.1:1",), {"sasl.password": "s3cret", **settings})])
    assert problem in str(found.value)
    assert "s3cret" not in str(found.value)


def test_settings_that_librdkafka_takes_are_fine() -> None:
    settings: Mapping[str, str | int | float | bool] = {
        "compression.type": "zstd",
        "socket.keepalive.enable": True,
        "batch.size": 100_000,
    }
    check([KafkaClientConfig("k", ("127.0.0.1:1",), settings)])
