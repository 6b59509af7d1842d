"""The publisher loses its session, or its node stands still: nothing is lost, nothing gets out of order."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from threading import Event as Flag

import pytest
from kafka.broker import Broker as Kafka

from progressor.engine.ports import Message, Published
from tests.chaos.cluster import NS, Cluster, Connection, order, query
from tests.chaos.proxy import Proxy, Way
from tests.conftest import Database
from tests.consumer import by_process, read, without_repeats
from tests.eventually import eventually
from tests.integration.engine.broker import Broker
from tests.stage import Theatre, does

PUBLISHER = "progressor publisher"


@pytest.fixture
def proxy(database: Database) -> Iterator[Proxy]:
    proxy = Proxy((database.conninfo["host"], database.conninfo["port"]))
    yield proxy
    proxy.close()


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    with Cluster(database.conninfo) as cluster:
        yield cluster.connect()


def left(connection: Connection) -> int:
    return len(query(connection, "a/b", "select 1 from {outbox}"))


def once(first: Callable[[], object]) -> Callable[[Sequence[Message], Flag], Published]:
    """Acknowledges everything; before the first acknowledgement is given something happens."""
    pending = [first]

    def receive(messages: Sequence[Message], stop: Flag) -> Published:
        while pending:
            pending.pop()()
        return Published([m.message_id for m in messages])

    return receive


def test_what_the_broker_has_but_the_database_does_not_know_of_is_sent_again(
    database: Database, proxy: Proxy, connection: Connection
) -> None:
    broker, theatre = Broker(), Theatre(database)
    through_proxy = replace(database, conninfo={**database.conninfo, "port": proxy.port})
    with broker.node(through_proxy, {"a/b": theatre}) as theatre.node:
        play = theatre.play(does(b"1", b"2"), does(b"3"))
        broker.receive = once(partial(proxy.cut, PUBLISHER))
        play.init()
        eventually(lambda: len(broker.told(play.id)) == 6)
        play.call()
        broker.awaits(play.id, *2 * ("created", "event 1", "event 2"), "event 3")
        eventually(lambda: left(connection) == 0)


def test_what_was_deleted_though_nobody_was_told_so_is_not_sent_again(
    database: Database, proxy: Proxy, connection: Connection
) -> None:
    broker, theatre = Broker(), Theatre(database)
    through_proxy = replace(database, conninfo={**database.conninfo, "port": proxy.port})
    with broker.node(through_proxy, {"a/b": theatre}) as theatre.node:
        play = theatre.play(does(b"1", b"2"), does(b"3"))
        broker.receive = once(partial(proxy.freeze, PUBLISHER, Way.DOWN))
        play.init()
        broker.awaits(play.id, "created", "event 1", "event 2")
        eventually(lambda: left(connection) == 0)
        proxy.cut(PUBLISHER)
        proxy.thaw(PUBLISHER)
        play.call()
        broker.awaits(play.id, "created", "event 1", "event 2", "event 3")


def test_another_node_publishes_while_the_publisher_stands_still(database: Database, kafka: Kafka) -> None:
    topic = f"events-{secrets.token_hex(4)}"
    kafka.create(topic, 3)
    notifier = {"notifier": {"client": "kafka", "topic": topic}}
    with Cluster(database.conninfo, defaults=notifier, kafka=kafka.endpoint) as cluster:
        (frozen,) = cluster.start("frozen")
        eventually(lambda: frozen.metric("progressor_outbox_publisher", prg_namespace=NS) == 1)
        (other,) = cluster.start("other")
        for n in range(10):
            frozen.client.init(ns=NS, id=f"p{n}", args=order(loop=0.02, until=60))
        frozen.freeze()
        eventually(lambda: other.metric("progressor_outbox_publisher", prg_namespace=NS) == 1, 30)
        connection = cluster.connect()
        eventually(lambda: query(connection, NS, "select count(*) from {events}") == [(600,)], 60)
        frozen.thaw()
        eventually(lambda: frozen.metric("progressor_outbox_publisher", prg_namespace=NS) == 0)
        eventually(lambda: frozen.get("/health")[0] == 200)
        eventually(lambda: query(connection, NS, "select count(*) from {outbox}") == [(0,)])
        assert [node.stop() for node in (frozen, other)] == [0, 0]
    published = by_process(without_repeats(read(kafka.endpoint, topic)))
    assert published == {f"p{n}": list(range(1, 61)) for n in range(10)}
