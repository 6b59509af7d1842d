"""What steps make known is published: once or more often, in order, whatever the broker does."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from threading import Event as Flag
from threading import Lock

import psycopg
import pytest

from progressor import Event, Health, Intent, Node, ProcessorError, Remove, SetTimer, StepRequest, now, seconds
from progressor.engine import notifier as module
from progressor.engine.directory import Role
from progressor.engine.ports import Message, Published
from progressor.metrics import NS
from progressor.otp import Ref
from progressor.storage import sql
from tests import invariants
from tests.conftest import Database
from tests.eventually import eventually
from tests.integration.engine.broker import TOPICS, Broker
from tests.stage import Gate, Theatre, does, fails, node


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def theatre(database: Database, broker: Broker) -> Iterator[Theatre]:
    """`a/b` on a node that publishes."""
    theatre = Theatre(database)
    with broker.node(database, {"a/b": theatre}) as theatre.node:
        yield theatre


def query(database: Database, text: str, *parameters: object) -> list[tuple[object, ...]]:
    with psycopg.connect(**database.conninfo, autocommit=True) as connection:
        cursor = connection.execute(sql.fill(text, "a/b"), parameters)
        return cursor.fetchall() if cursor.description else []


def metric(node: Node, name: str, **labels: str) -> float:
    return node.metrics.registry.get_sample_value(name, {NS: "a/b", **labels}) or 0.0


def health(node: Node) -> tuple[Health, dict[str, object], Sequence[str]]:
    """The word, the outbox and the problems."""
    word, details = node.health(["a/b"])
    return word, details["a/b"]["outbox"], details["a/b"]["problems"]


def is_published(database: Database) -> bool:
    return not query(database, "select 1 from {outbox} limit 1")


# What is published


def test_the_life_of_a_process(theatre: Theatre, broker: Broker) -> None:
    play = theatre.play(
        does(b"1", b"2"),
        does(b"3"),
        fails(ProcessorError("no")),
        does(b"4"),
        does(b"5", action=SetTimer(now())),
        does(b"6"),
        does(b"7", action=Remove()),
    )
    play.init()
    play.call()
    with pytest.raises(ProcessorError):
        play.call()
    play.repair()
    play.call()
    play.becomes(*b"1 2 3 4 5 6".split())
    play.call()
    expected = "created|event 1|event 2|event 3|failed: no|working|event 4|event 5|event 6|event 7|removed"
    broker.awaits(play.id, *expected.split("|"))
    assert [m.payload for m in broker.messages(play.id) if m.payload] == b"1 2 3 4 5 6 7".split()
    eventually(lambda: is_published(theatre.database))


def test_a_commit_wakes_the_publisher(database: Database, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait for its next look."""
    theatre = Theatre(database)
    with broker.node(database, {"a/b": theatre}) as theatre.node:
        eventually(lambda: health(theatre.node)[1]["publisher"])
        monkeypatch.setattr(module, "POLL", 3600)
        find_notifier(theatre.node).stop(5)
        eventually(lambda: health(theatre.node)[1]["publisher"])
        play = theatre.play(does(b"1"), does(b"2"))
        play.init()
        broker.awaits(play.id, "created", "event 1")
        play.call()
        broker.awaits(play.id, "created", "event 1", "event 2")


def find_notifier(node: Node) -> Ref:
    """Of the moment; waits for one that is being restarted."""
    return eventually(lambda: node._directory.find(Role.NOTIFIER, "a/b"))  # type: ignore[return-value]


def test_only_what_has_a_topic_is_published(database: Database, broker: Broker) -> None:
    theatre = Theatre(database)
    with broker.node(database, {"a/b": theatre}, notifier={"lifecycle_topic": "l"}) as theatre.node:
        play = theatre.play(does(b"1"), does(b"2", action=Remove()))
        play.init()
        play.call()
        broker.awaits(play.id, "created", "removed")


def test_nothing_is_written_without_a_notifier(database: Database) -> None:
    theatre = Theatre(database)
    with node(database, {"a/b": theatre}) as theatre.node:
        play = theatre.play(does(b"1"))
        play.init()
        play.remove()
        assert query(database, "select last_value, is_called from " + _SEQUENCE) == [(1, False)]


_SEQUENCE = '"a/b_outbox_message_id_seq"'


def test_a_stop_publishes_what_is_committed(database: Database, broker: Broker, gate: Gate) -> None:
    theatre = Theatre(database)
    with broker.node(database, {"a/b": theatre}) as theatre.node:
        play = theatre.play(does(b"1"), gate.holds(does(b"2")))
        play.init()
        play.later("call")
        gate.wait_entered()
        gate.open()
    assert broker.told(play.id) == ["created", "event 1", "event 2"]
    assert is_published(database)
    assert broker.closed


# The broker fails


def test_steps_do_not_notice_that_the_broker_is_away(
    database: Database, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, module.logger.name)
    broker.goes_away()
    theatre = Theatre(database)
    with broker.node(database, {"a/b": theatre}, notifier={**TOPICS, "max_age": 0.5}) as theatre.node:
        play = theatre.play(*[does(b"%d" % n) for n in range(20)])
        play.init()
        for _ in range(19):
            play.call()
        eventually(lambda: health(theatre.node)[1].get("depth") == 21)
        eventually(lambda: health(theatre.node)[0] is Health.CRITICAL)
        _, outbox, problems = health(theatre.node)
        assert outbox["trouble"] == "no broker answers"
        assert problems[0].startswith("messages have been waiting for ")
        assert problems[0].endswith(" s: no broker answers")
        eventually(lambda: metric(theatre.node, "progressor_publications_failed_total") >= 3)
        theatre.node.scrape()
        assert metric(theatre.node, "progressor_outbox_depth") == 21
        broker.comes_back()
        broker.awaits(play.id, "created", *[f"event {n}" for n in range(1, 21)])
        eventually(lambda: health(theatre.node)[0] is Health.PASSING)
    assert [record.getMessage() for record in caplog.records if record.name == module.logger.name] == [
        "a/b: nothing is published: no broker answers",
        "a/b: messages are published again",
    ]


def test_a_publisher_that_raises_is_an_outage(theatre: Theatre, broker: Broker) -> None:
    def fail(messages: Sequence[Message], stop: Flag) -> Published:
        raise RuntimeError("a bug")

    broker.receive = fail
    play = theatre.play(does(b"1"))
    play.init()
    eventually(lambda: health(theatre.node)[1]["trouble"] == "RuntimeError: a bug")
    broker.comes_back()
    broker.awaits(play.id, "created", "event 1")


def test_a_notifier_that_dies_takes_no_step_with_it(theatre: Theatre, broker: Broker, gate: Gate) -> None:
    play = theatre.play(does(b"1"), gate.holds(does(b"2", response=b"yes")))
    play.init()
    call = play.later("call")
    gate.wait_entered()
    before = find_notifier(theatre.node)
    before.cast("what it does not understand")
    eventually(lambda: find_notifier(theatre.node) is not before)
    gate.open()
    assert call.result() == b"yes"
    broker.awaits(play.id, "created", "event 1", "event 2")


def test_what_was_not_acknowledged_is_sent_again(theatre: Theatre, broker: Broker) -> None:
    def half(messages: Sequence[Message], stop: Flag) -> Published:
        return Published([m.message_id for m in messages[: len(messages) // 2]], unavailable="busy")

    broker.receive = half
    play = theatre.play(does(b"1", b"2", b"3", b"4", b"5", b"6", b"7"))
    play.init()
    eventually(lambda: len(broker.told(play.id)) >= 4)
    broker.comes_back()
    broker.awaits(play.id, "created", *[f"event {n}" for n in range(1, 8)])


def test_a_node_stops_while_the_broker_hangs(database: Database, broker: Broker) -> None:
    waited_for = broker.hangs()
    theatre = Theatre(database)
    with broker.node(database, {"a/b": theatre}, node={"drain_timeout": 0.1}) as theatre.node:
        play = theatre.play(does(b"1"))
        play.init()
        assert waited_for.wait(10)
    assert not is_published(database)
    broker.comes_back()
    with broker.node(database, {"a/b": theatre}):
        broker.awaits(play.id, "created", "event 1")


# Two nodes


def test_one_node_publishes_for_all(database: Database, broker: Broker) -> None:
    theatre = Theatre(database)
    other_broker = Broker()
    with broker.node(database, {"a/b": theatre}, node={"node_name": "first"}) as first:
        eventually(lambda: health(first)[1]["publisher"])
        with other_broker.node(database, {"a/b": theatre}, node={"node_name": "second"}) as second:
            theatre.node = second
            play = theatre.play(does(b"1"))
            play.init()
            broker.awaits(play.id, "created", "event 1")
            assert health(second)[1] == {"publisher": False, "trouble": None}
            assert other_broker.received == []


def test_the_other_node_takes_over_when_the_publisher_stops(database: Database, broker: Broker) -> None:
    theatre = Theatre(database)
    other_broker = Broker()
    with other_broker.node(database, {"a/b": theatre}) as other:
        eventually(lambda: health(other)[1]["publisher"])
        with broker.node(database, {"a/b": theatre}) as theatre.node:
            other.stop()
            eventually(lambda: health(theatre.node)[1]["publisher"])
            play = theatre.play(does(b"1"))
            play.init()
            broker.awaits(play.id, "created", "event 1")


def test_a_publisher_whose_session_is_ended_goes_on(theatre: Theatre, broker: Broker) -> None:
    play = theatre.play(does(b"1"), does(b"2"))
    play.init()
    broker.awaits(play.id, "created", "event 1")
    end_sessions(theatre.database)
    play.call()
    broker.awaits(play.id, "created", "event 1", "event 2")


def end_sessions(database: Database) -> None:
    pids = "select pid from pg_stat_activity where application_name like 'progressor publisher%%' and datname = %s"
    for (pid,) in query(database, pids, database.name):
        query(database, "select pg_terminate_backend(%s)", pid)


def test_a_publisher_that_wakes_up_late_reorders_nothing(database: Database, broker: Broker) -> None:
    """Its session was ended while it was sending, and another node has published all since."""
    theatre = Theatre(database)
    entered, go_on, once = Flag(), Flag(), Lock()

    def late(messages: Sequence[Message], stop: Flag) -> Published:
        if once.acquire(blocking=False):
            entered.set()
            assert go_on.wait(20)
        return Published([m.message_id for m in messages])

    broker.receive = late
    with broker.node(database, {"a/b": theatre}) as frozen:
        eventually(lambda: health(frozen)[1]["publisher"])
        with broker.node(database, {"a/b": theatre}) as theatre.node:
            play = theatre.play(*[does(b"%d" % n) for n in range(4)])
            play.init()
            assert entered.wait(10)
            end_sessions(database)
            for _ in range(3):
                play.call()
            eventually(lambda: is_published(database))
            go_on.set()
            eventually(lambda: len(broker.told(play.id)) > 5)
            assert list(dict.fromkeys(broker.told(play.id))) == ["created", *[f"event {n}" for n in range(1, 5)]]


# Dead letters


def test_a_message_that_is_refused_holds_its_process_up_and_nobody_else(theatre: Theatre, broker: Broker) -> None:
    broker.refuses(b"bad")
    play, other = theatre.play(does(b"1"), does(b"bad", b"3"), does(b"4")), theatre.play(does(b"5"))
    play.init()
    play.call()
    play.call()
    other.init()
    broker.awaits(other.id, "created", "event 1")
    assert broker.told(play.id) == ["created", "event 1"]
    eventually(lambda: health(theatre.node)[1].get("waiting") == 2)
    word, outbox, _ = health(theatre.node)
    assert (word, outbox["dead_letters"], outbox["depth"]) == (Health.PASSING, 1, 0)
    theatre.node.scrape()
    assert (
        metric(theatre.node, "progressor_dead_letters") == metric(theatre.node, "progressor_messages_parked_total") == 1
    )
    assert query(theatre.database, "select process_id, event_id, refusal from {dead_letters} where refusal <> ''") == [
        (play.id, 2, "too large")
    ]


@pytest.mark.parametrize("function", ["retry_dead_letter", "drop_dead_letter"])
def test_an_operator_releases_a_dead_letter(theatre: Theatre, broker: Broker, function: str) -> None:
    broker.refuses(b"bad")
    play = theatre.play(does(b"bad", b"2"), does(b"3"), does(b"4"))
    play.init()
    play.call()
    eventually(lambda: health(theatre.node)[1].get("waiting") == 2)
    broker.comes_back()
    query(theatre.database, f"select {{{function}}}(message_id) from {{dead_letters}} where refusal is not null")
    play.call()
    first = ["event 1"] if function == "retry_dead_letter" else []
    broker.awaits(play.id, "created", *first, "event 2", "event 3", "event 4")


def test_the_rest_follows_where_that_is_configured(database: Database, broker: Broker) -> None:
    broker.refuses(b"bad")
    theatre = Theatre(database)
    with broker.node(database, {"a/b": theatre}, notifier={**TOPICS, "on_dead_letter": "follow"}) as theatre.node:
        play = theatre.play(does(b"1", b"bad", b"3"), does(b"4"))
        play.init()
        play.call()
        broker.awaits(play.id, "created", "event 1", "event 3", "event 4")
        eventually(lambda: health(theatre.node)[1].get("dead_letters") == 1)


# Under load


def test_the_order_holds_whatever_fails(database: Database, broker: Broker) -> None:
    """Two nodes, processes that step without pause, a broker that drops what it likes, and sessions that break."""
    processes, steps = 20, 40
    chance = random.Random(7)

    def flaky(messages: Sequence[Message], stop: Flag) -> Published:
        count = len(messages) if chance.random() < 0.7 else chance.randrange(len(messages) + 1)
        return Published(
            [m.message_id for m in messages[:count]], unavailable=None if count == len(messages) else "flaky"
        )

    def script(request: StepRequest, _: bytes) -> Intent:
        last = request.process.last_event_id + 1 >= steps
        return Intent([Event(b"e")], action=None if last else SetTimer(now() + seconds(0.001)))

    broker.receive = flaky
    with (
        broker.node(database, {"a/b": script}, node={"node_name": "first"}) as first,
        broker.node(database, {"a/b": script}, node={"node_name": "second"}),
    ):
        for n in range(processes):
            first.client.init(ns="a/b", id=f"p{n}")
        for _ in range(3):
            end_sessions(database)
        with psycopg.connect(**database.conninfo, autocommit=True) as connection:
            invariants.settle(connection, "a/b")
        broker.comes_back()
        eventually(lambda: is_published(database), 30)
        for n in range(processes):
            told = broker.told(f"p{n}")
            assert list(dict.fromkeys(told)) == ["created", *[f"event {i}" for i in range(1, steps + 1)]]
