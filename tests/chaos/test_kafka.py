"""Publishing while everything it depends on dies: at the end the topic has what the database has, and nothing else.

PROGRESSOR_CHAOS_ROUNDS repeats the faults, PROGRESSOR_CHAOS_FREEZE says for how many seconds the broker stands still.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from functools import partial
from threading import Event as Signal

import pytest
from kafka.broker import Broker

from progressor import rfc3339
from progressor.storage.embedded import EmbeddedPostgres
from tests import invariants
from tests.chaos.cluster import NS, Cluster, NodeProcess, order, query, until_acknowledged
from tests.consumer import by_process, read, size, without_repeats
from tests.eventually import eventually

ROUNDS = int(os.environ.get("PROGRESSOR_CHAOS_ROUNDS", "1"))
FREEZE = float(os.environ.get("PROGRESSOR_CHAOS_FREEZE", "12"))
PROCESSES, PAUSE = 200, 0.5
"""Each makes a step, pauses, makes a step ..."""
FLOWS = 60
"""Seconds after a fault within which messages are published again."""


@pytest.fixture
def server(postgres_bin: str | None) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres.start(bin_dir=postgres_bin) as server:
        yield server


@pytest.fixture
def topics(kafka: Broker) -> tuple[str, str]:
    """For events, and for turns of life."""
    name = secrets.token_hex(4)
    for topic in (f"events-{name}", f"turns-{name}"):
        kafka.create(topic, 6)
    return f"events-{name}", f"turns-{name}"


class Faults:
    def __init__(self, cluster: Cluster, server: EmbeddedPostgres, kafka: Broker, nodes: list[NodeProcess]) -> None:
        self._cluster = cluster
        self._server = server
        self._kafka = kafka
        self._nodes = nodes

    def all(self) -> list[Callable[[], None]]:
        return [self.the_node_dies, self.the_broker_dies, self.both_die, self.the_database_dies, self.the_broker_stalls]

    def the_node_dies(self) -> None:
        self._cluster.restart(self._killed_publisher())

    def the_broker_dies(self) -> None:
        self._kafka.kill()
        self._kafka.start()

    def both_die(self) -> None:
        publisher = self._killed_publisher()
        self._kafka.kill()
        self._cluster.restart(publisher)
        self._kafka.start()

    def the_database_dies(self) -> None:
        self._server.kill()
        self._server.restart()

    def the_broker_stalls(self) -> None:
        with self._kafka.frozen():
            Signal().wait(FREEZE)

    def _killed_publisher(self) -> NodeProcess:
        publisher = eventually(lambda: next(filter(_publishes, self._nodes), None), FLOWS)
        assert publisher is not None
        publisher.kill()
        return publisher


def _publishes(node: NodeProcess) -> bool:
    return node.metric("progressor_outbox_publisher", prg_namespace=NS) == 1


@pytest.mark.timeout(300 + ROUNDS * 300)
def test_every_event_is_published_in_order_and_none_is_invented(
    server: EmbeddedPostgres, kafka: Broker, topics: tuple[str, str]
) -> None:
    events, turns = topics
    notifier = {"notifier": {"client": "kafka", "topic": events, "lifecycle_topic": turns}}
    with Cluster(server.conninfo, defaults=notifier, kafka=kafka.endpoint) as cluster:
        nodes = cluster.start("one", "two")
        for_all(cluster, nodes, "init", loop=PAUSE, until=10**6)
        for fault in ROUNDS * Faults(cluster, server, kafka, nodes).all():
            flows(kafka, events)
            fault()
        flows(kafka, events)
        for_all(cluster, nodes, "call", until=0)  # a loop that has reached its goal ends
        check(cluster, kafka, events, turns)
        assert [node.stop() for node in nodes] == [0, 0]


def for_all(cluster: Cluster, nodes: list[NodeProcess], verb: str, **told: float) -> None:
    """Each process is told the same, by a client who tries again."""

    def tell(number: int) -> None:
        client = nodes[number % len(nodes)].client
        key = f"{verb} {number}"
        ask = partial(getattr(client, verb), ns=NS, id=f"p{number}", args=order(**told), idempotency_key=key)
        until_acknowledged(ask, lambda: False)

    for work in [cluster.background(tell, number=number) for number in range(PROCESSES)]:
        work.result(60)


def flows(kafka: Broker, topic: str) -> None:
    """Waits until more messages have arrived than were on their way."""
    before = size(kafka.endpoint, topic)
    eventually(lambda: size(kafka.endpoint, topic) > before + 2 * PROCESSES, FLOWS, 0.5)


def check(cluster: Cluster, kafka: Broker, events: str, turns: str) -> None:
    connection = cluster.connect()
    invariants.settle(connection, NS, 60, one_event_a_task=True)
    eventually(lambda: query(connection, NS, "select count(*) from {outbox}") == [(0,)], FLOWS)
    stored = query(connection, NS, "select process_id, event_id, timestamp, payload from {events}")
    records = read(kafka.endpoint, events)
    for record in records:
        assert record.key == f"{NS} {record.event.source_id}".encode()
    published = without_repeats(records)
    assert {(e.source_id, e.event_id, rfc3339.read(e.created_at), e.data.bin) for e in published} == set(stored)
    assert all(ids == list(range(1, len(ids) + 1)) for ids in by_process(published).values())
    lives = [record.turn for record in read(kafka.endpoint, turns)]
    assert {turn.machine_id for turn in lives} == {f"p{n}" for n in range(PROCESSES)}
    assert all(turn.data.machine.created is not None for turn in lives)
    print(f"{len(stored)} events in the database; of {len(records)} records {len(records) - len(stored)} are repeats")
