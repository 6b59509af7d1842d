"""What the flows of a process tell Kafka: messages of a real node, read by a consumer that knows the IDL alone."""

from __future__ import annotations

import json
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from kafka.broker import Broker

from progressor import Client, ProcessorError, rfc3339
from progressor.errors import ProcessNotFound, ProgressorError
from progressor.kafka.partitioner import phash2
from progressor.rpc.gen.msgpack.ttypes import Value
from tests.acceptance.nodes import NS, PATIENCE, NodeProcess, StartNode, Work
from tests.consumer import Record, read
from tests.eventually import eventually

PARTITIONS = 3
Story: TypeAlias = list[str]
"""What the messages of a process say, in the order of its partition."""


@pytest.fixture
def topic(kafka: Broker) -> str:
    """One for both streams, so that the order between them can be seen."""
    name = f"both-{secrets.token_hex(4)}"
    kafka.create(name, PARTITIONS)
    return name


@pytest.fixture
def start(start_node: StartNode, kafka: Broker, topic: str) -> StartNode:
    def start(**notifier: Any) -> NodeProcess:
        settings = {
            "processor": {"client": "tests.acceptance.processors:talk"},
            "worker_pool_size": 5,
            "retry_policy": {"non_retryable_errors": ["late"]},
            "notifier": {"client": "k", "topic": topic, "lifecycle_topic": topic, **notifier},
        }
        return start_node(namespace=settings, kafka=kafka.endpoint)

    return start


@pytest.fixture
def node(start: StartNode) -> NodeProcess:
    return start()


@pytest.fixture
def client(node: NodeProcess) -> Iterator[Client]:
    with Client(node.url) as client:
        yield client


def say(**what: Any) -> bytes:
    return json.dumps(what).encode()


def fails(verb: Any, id: str, why: str) -> None:
    with pytest.raises(ProcessorError, match=why):
        verb(ns=NS, id=id, args=say(fail=why))


def published(work: Work, kafka: Broker, topic: str) -> list[Record]:
    """All that is in the topic when nothing waits to be published."""
    eventually(lambda: work.query("select count(*) from {outbox}") == [(0,)], PATIENCE)
    return read(kafka.endpoint, topic)


def stories(records: list[Record]) -> dict[str, Story]:
    """By process."""
    found: dict[str, Story] = {}
    for record in records:
        ns, process_id, text = _read(record)
        assert ns == NS
        assert record.key == f"{NS} {process_id}".encode()
        assert record.partition == phash2(record.key) % PARTITIONS
        found.setdefault(process_id, []).append(text)
    return found


def _read(record: Record) -> tuple[str, str, str]:
    """The first field of a SinkEvent is a struct, that of a LifecycleEvent a string."""
    if record.value.startswith(b"\x0c"):
        event = record.event
        assert event.format_version in (1, None)
        return event.source_ns, event.source_id, f"event {event.event_id}"
    turn = record.turn
    machine = turn.data.machine
    if machine.status_changed is None:
        return turn.machine_ns, turn.machine_id, "removed" if machine.created is None else "created"
    failed = machine.status_changed.new_status.failed
    return turn.machine_ns, turn.machine_id, "working" if failed is None else f"failed: {failed.reason}"


def is_in(client: Client, id: str, status: str) -> bool:
    return client.get(ns=NS, id=id).status == status


def test_the_flows_of_a_process(client: Client, work: Work, kafka: Broker, topic: str) -> None:
    client.init(ns=NS, id="a", args=say(events=2))
    client.call(ns=NS, id="a", args=say(events=1))
    fails(client.call, "a", "no")
    fails(client.repair, "a", "not yet")
    client.repair(ns=NS, id="a", args=say(events=1))
    fails(client.call, "a", "again")
    client.simple_repair(ns=NS, id="a")
    client.call(ns=NS, id="a", args=say(events=0))
    client.notify(ns=NS, id="a", args=say(events=1))
    eventually(lambda: client.get(ns=NS, id="a").last_event_id == 5)
    client.remove(ns=NS, id="a")
    fails(client.init, "b", "bad")
    client.init(ns=NS, id="c", args=say(events=1))
    client.call(ns=NS, id="c", args=say(events=2, remove=True))
    assert stories(published(work, kafka, topic)) == {
        "a": [
            *("created", "event 1", "event 2", "event 3"),
            *("failed: no", "working", "event 4"),
            *("failed: again", "working", "event 5", "removed"),
        ],
        "b": ["failed: bad"],
        "c": ["created", "event 1", "event 2", "event 3", "removed"],
    }


def test_the_flows_of_timers(client: Client, work: Work, kafka: Broker, topic: str) -> None:
    client.init(ns=NS, id="a", args=say(events=1, timer=0, aux='{"events": 1}'))
    eventually(lambda: client.get(ns=NS, id="a").last_event_id == 2)
    client.call(ns=NS, id="a", args=say(timer=0, aux='{"fail": "late"}'))
    eventually(lambda: is_in(client, "a", "error"))
    client.repair(ns=NS, id="a", args=say(aux='{"events": 2}'))  # sets the timer again that failed
    eventually(lambda: client.get(ns=NS, id="a").last_event_id == 4)
    client.call(ns=NS, id="a", args=say(timer=0, remove=True))
    eventually(lambda: is_gone(client, "a"))
    assert stories(published(work, kafka, topic)) == {
        "a": [
            *("created", "event 1", "event 2"),
            *("failed: late", "working", "event 3", "event 4"),
            "removed",
        ],
    }


def test_a_timer_that_a_simple_repair_runs_again(client: Client, work: Work, kafka: Broker, topic: str) -> None:
    """The process is at work again when the timer has run, not before."""
    client.init(ns=NS, id="a", args=say(timer=0, aux='{"fail": "late"}'))
    eventually(lambda: is_in(client, "a", "error"))
    client.simple_repair(ns=NS, id="a")
    eventually(lambda: len(work.query("select 1 from {tasks} where status = 'error'")) == 2)
    assert stories(published(work, kafka, topic)) == {"a": ["created", "failed: late", "failed: late"]}


def test_a_step_whose_node_dies(start: StartNode, work: Work, kafka: Broker, topic: str, tmp_path: Path) -> None:
    node = start()
    with Client(node.url) as client:
        client.init(ns=NS, id="a", args=say(events=1))
        hanging = tmp_path / "hangs"
        future = client.future.call(ns=NS, id="a", args=say(hang=str(hanging)))
        eventually(hanging.exists, PATIENCE)
        node.stop(signal.SIGKILL)
        assert isinstance(future.exception(PATIENCE), ProgressorError)
    with Client(start().url) as client:
        eventually(lambda: is_in(client, "a", "error"), PATIENCE)
    assert stories(published(work, kafka, topic)) == {"a": ["created", "event 1", "failed: zombie detected"]}


def test_what_an_event_says(client: Client, work: Work, kafka: Broker, topic: str) -> None:
    client.init(ns=NS, id="a", args=say(events=1))
    client.call(ns=NS, id="a", args=b"plain bytes")
    client.call(ns=NS, id="a", args=b"\x83h\x02w\x03strm\0\0\0\x04text")
    events = [record.event for record in published(work, kafka, topic) if record.value.startswith(b"\x0c")]
    stored = [at for (at,) in work.query("select timestamp from {events} order by event_id")]
    assert [event.format_version for event in events] == [1, None, None]
    assert [event.data for event in events] == [Value(bin=b"event"), Value(bin=b"plain bytes"), Value(str="text")]
    assert [rfc3339.read(event.created_at) for event in events] == stored


def test_a_missing_topic_is_seen_in_health_and_metrics_and_stops_no_step(
    start: StartNode, work: Work, kafka: Broker, topic: str
) -> None:
    node = start(topic=(late := f"late-{topic}"), max_age=0.5)
    with Client(node.url) as client:
        client.init(ns=NS, id="a", args=say(events=1))
        health = eventually(lambda: page if (page := node.get("/health")).status == 503 else None, PATIENCE)
        assert health is not None
        assert f"the topic '{late}' does not exist: create it" in str(health.json["details"][NS]["problems"])
        assert node.metric("progressor_publications_failed_total") > 0
        eventually(lambda: node.metric("progressor_outbox_depth") == 2)
        client.call(ns=NS, id="a", args=say(events=1))
        kafka.create(late)
        eventually(lambda: node.get("/health").status == 200, PATIENCE)
    published(work, kafka, topic)
    assert [record.event.event_id for record in read(kafka.endpoint, late)] == [1, 2]
    assert node.metric("progressor_messages_published_total") == 3


def test_a_message_that_is_too_large_is_parked_until_it_is_dropped(
    client: Client, node: NodeProcess, work: Work, kafka: Broker, topic: str
) -> None:
    client.init(ns=NS, id="a", args=say(events=1, size=300_000))
    client.call(ns=NS, id="a", args=say(events=1))
    client.init(ns=NS, id="b", args=say(events=1))
    assert stories(published(work, kafka, topic)) == {"a": ["created"], "b": ["created", "event 1"]}
    ((letter, refusal),) = work.query("select message_id, refusal from {dead_letters} where refusal is not null")
    assert "bytes, at most" in refusal
    assert node.metric("progressor_messages_parked_total") == 1
    eventually(lambda: node.get("/health").json["details"][NS]["outbox"]["dead_letters"] == 1)
    work.query("select {drop_dead_letter}(%s)", letter)
    eventually(lambda: work.query("select count(*) from {dead_letters}") == [(0,)], PATIENCE)
    assert stories(published(work, kafka, topic))["a"] == ["created", "event 2"]


def test_kafka_away_is_nothing_to_steps_and_what_they_told_is_sent_when_it_is_back(
    client: Client, work: Work, kafka: Broker, topic: str
) -> None:
    client.init(ns=NS, id="a", args=say(events=1))
    published(work, kafka, topic)
    kafka.kill()
    try:
        for _ in range(20):
            client.call(ns=NS, id="a", args=say(events=5))
        assert work.query("select count(*) from {outbox}") == [(100,)]
    finally:
        kafka.start()
    assert stories(published(work, kafka, topic)) == {"a": ["created", *(f"event {n}" for n in range(1, 102))]}


def is_gone(client: Client, id: str) -> bool:
    try:
        client.get(ns=NS, id=id)
    except ProcessNotFound:
        return True
    return False
