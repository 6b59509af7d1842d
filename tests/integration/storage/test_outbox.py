"""The outbox as its publisher sees it: who leads, what is read, what is settled, and what becomes of dead letters."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import psycopg
import pytest

from progressor.engine.ports import Message, Notice, Published
from progressor.errors import StorageUnavailable
from progressor.model import Event, Intent
from progressor.storage import outbox as module
from progressor.storage.outbox import Floor, PostgresOutbox
from tests.conftest import Database
from tests.eventually import eventually
from tests.integration.storage.conftest import MakeOutbox
from tests.integration.storage.nodes import Node, Tap, request, started, step

EVERYTHING = "insert into {outbox} (process_id, notice, event_id, payload) values (%s, 'event', %s, %s)"


def fill(tap: Tap, *messages: str) -> None:
    """Messages such as `p1`: event 1 of process p."""
    for message in messages:
        tap.execute(EVERYTHING, message[0], int(message[1:]), b"x")


def names(messages: Sequence[Message]) -> list[str]:
    return [f"{m.process_id}{m.event_id}" for m in messages]


def publish(outbox: PostgresOutbox, *refused: str) -> list[str]:
    """One round: all is sent but what is refused, and what comes behind that of its process. Answers what was sent."""
    messages = outbox.read().messages
    bad = [m for m in messages if f"{m.process_id}{m.event_id}" in refused]
    behind = {m.process_id: m.message_id for m in reversed(bad)}
    sent = [m for m in messages if m.message_id < behind.get(m.process_id, m.message_id + 1)]
    outbox.settle(Published([m.message_id for m in sent], {behind[p]: "too large" for p in behind}))
    return names(sent)


def left(tap: Tap) -> list[str]:
    return [f"{p}{e}" for p, e in tap.rows("select process_id, event_id from {outbox} order by message_id")]


def letters(tap: Tap) -> list[tuple[str, str | None]]:
    rows = tap.rows("select process_id, event_id, refusal from {dead_letters} order by message_id")
    return [(f"{p}{e}", refusal) for p, e, refusal in rows]


def letter(tap: Tap, name: str) -> int:
    query = "select message_id from {dead_letters} where process_id = %s and event_id = %s"
    found: int = tap.value(query, name[0], int(name[1:]))
    return found


def retry(tap: Tap, name: str) -> bool:
    done: bool = tap.value("select {retry_dead_letter}(%s)", letter(tap, name))
    return done


def drop(tap: Tap, name: str) -> bool:
    done: bool = tap.value("select {drop_dead_letter}(%s)", letter(tap, name))
    return done


# Reading


def test_messages_are_read_as_they_were_written(loud: Node, outbox: PostgresOutbox, tap: Tap) -> None:
    loud.finish(loud.start("init", "p"), Intent([Event(b"\x00\xff", {"é": [1]}), Event(b"", {})]))
    loud.ask("remove", "p")
    created, first, second, removed = outbox.read().messages
    assert (created.notice, created.process_id) == (Notice.CREATED, "p")
    assert (first.notice, first.event_id, first.payload, first.metadata) == (Notice.EVENT, 1, b"\x00\xff", {"é": [1]})
    assert (second.event_id, second.payload, second.metadata) == (2, b"", {})
    assert removed.notice is Notice.REMOVED
    assert created.at <= removed.at
    assert (created.event_id, created.payload, created.metadata, created.reason) == (None, None, None, None)


def test_an_empty_outbox(outbox: PostgresOutbox) -> None:
    assert not outbox.read().messages
    outbox.settle(Published())
    assert not outbox.read().messages


def test_what_was_sent_is_gone_and_the_rest_is_given_again(outbox: PostgresOutbox, tap: Tap) -> None:
    fill(tap, "p1", "q1", "p2")
    _, second, _ = outbox.read().messages
    outbox.settle(Published([second.message_id]))
    assert names(outbox.read().messages) == ["p1", "p2"]
    assert left(tap) == ["p1", "p2"]


def test_a_portion_is_bounded_in_number(outbox: PostgresOutbox, tap: Tap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_MESSAGES", 2)
    fill(tap, "p1", "p2", "p3")
    assert [publish(outbox), publish(outbox), publish(outbox)] == [["p1", "p2"], ["p3"], []]


def test_a_portion_is_bounded_in_bytes(outbox: PostgresOutbox, tap: Tap) -> None:
    for n in range(1, 4):
        tap.execute(EVERYTHING, "p", n, bytes(5_000_000))
    assert [publish(outbox), publish(outbox)] == [["p1", "p2"], ["p3"]]


def test_messages_that_are_committed_late_are_read_though_their_ids_are_small(
    migrated: Database, outbox: PostgresOutbox, tap: Tap
) -> None:
    with psycopg.connect(**migrated.conninfo) as slow:
        for n in range(1, 4):
            fill(Tap(slow), f"p{n}")
            fill(tap, f"q{n}")
            assert publish(outbox) == [f"q{n}"]
        slow.commit()
    assert publish(outbox) == ["p1", "p2", "p3"]


def test_messages_of_the_youngest_transaction_of_the_server_are_read(
    migrated: Database, outbox: PostgresOutbox, tap: Tap
) -> None:
    """Snapshots do not know of it: their xmax is behind the last that has *ended*."""
    with psycopg.connect(**migrated.conninfo) as slow:
        fill(Tap(slow), "p1")
        assert [publish(outbox) for _ in range(3)] == [[], [], []]
        slow.commit()
    assert publish(outbox) == ["p1"]


def test_reading_begins_above_what_was_published(outbox: PostgresOutbox, tap: Tap) -> None:
    """Else each look would go over all that was deleted and not vacuumed yet."""
    fill(tap, *(f"p{n}" for n in range(1, 101)))
    publish(outbox)
    for _ in range(2):
        publish(outbox)
    drawn = tap.value("select pg_sequence_last_value({outbox_sequence})")
    assert outbox._floor.value == drawn


def test_a_long_outbox_is_read_from_its_beginning_only(outbox: PostgresOutbox, tap: Tap) -> None:
    """Whatever the planner believes: it makes its plans while the outbox is empty."""
    assert outbox._connection is not None
    everything = {"after": 0, "limit": 2000, "bytes": 2**20, "holds_back": True}
    plan = outbox._connection.execute(b"explain " + outbox._queries["outbox"], everything).fetchall()
    assert not [line for (line,) in plan if "Sort" in line or "Seq Scan" in line or "Bitmap" in line], plan


@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        ([(10, 5, 8, None)], 0),  # somebody may still commit what it drew
        ([(10, 5, 8, None), (12, 7, 9, None)], 0),
        ([(10, 5, 8, None), (12, 8, 9, None)], 10),
        ([(10, 5, 8, None), (12, 8, 9, 7)], 6),  # what is there was not published yet
        ([(10, 5, 8, None), (12, 8, 9, None), (15, 8, 9, None)], 10),
        ([(10, 5, 8, None), (12, 8, 9, None), (15, 9, 9, None)], 12),
    ],
)
def test_the_floor_rises_when_all_have_ended_who_can_have_drawn_less(
    looks: list[tuple[int, int, int, int | None]], expected: int
) -> None:
    floor = Floor()
    for look in looks:
        floor.rise(*look)
    assert floor.value == expected


# Who leads


def test_there_is_one_publisher(make_outbox: MakeOutbox, loud: Node, other: Node) -> None:
    first, second = make_outbox(), make_outbox()
    assert first.lead(loud.epoch)
    assert not second.lead(other.epoch)
    assert first.lead(loud.epoch)


def test_who_does_not_lead_may_not_read_nor_settle(
    make_outbox: MakeOutbox, outbox: PostgresOutbox, other: Node
) -> None:
    second = make_outbox()
    assert not second.lead(other.epoch)
    for forbidden in (second.read, second.backlog, lambda: second.settle(Published([1]))):
        with pytest.raises(StorageUnavailable):
            forbidden()


def test_namespaces_have_publishers_of_their_own(migrated: Database, outbox: PostgresOutbox, loud: Node) -> None:
    with closing(PostgresOutbox(migrated.conninfo, "second", holds_back=True)) as second:
        assert second.lead(loud.epoch)


def test_a_publisher_that_goes_leaves_the_role(make_outbox: MakeOutbox, outbox: PostgresOutbox, other: Node) -> None:
    second = make_outbox()
    outbox.close()
    assert eventually(lambda: second.lead(other.epoch))


def test_a_publisher_whose_node_was_declared_dead_is_replaced_though_its_session_lives(
    make_outbox: MakeOutbox, outbox: PostgresOutbox, loud: Node, other: Node, tap: Tap
) -> None:
    """So it is when a node is frozen."""
    fill(tap, "p1", "p2")
    messages = outbox.read().messages
    second = make_outbox()
    assert not second.lead(other.epoch)
    loud.die()
    assert eventually(lambda: second.lead(other.epoch))
    assert publish(second) == ["p1", "p2"]
    fill(tap, "p3")
    with pytest.raises(StorageUnavailable):  # it wakes up
        outbox.settle(Published([m.message_id for m in messages]))
    assert not outbox.lead(loud.epoch)
    assert publish(second) == ["p3"]


def test_a_publisher_whose_session_was_ended_leads_again(outbox: PostgresOutbox, loud: Node, tap: Tap) -> None:
    fill(tap, "p1")
    outbox.read()
    end_sessions(tap)
    with pytest.raises(StorageUnavailable):
        outbox.settle(Published())
    assert eventually(lambda: outbox.lead(loud.epoch))
    assert publish(outbox) == ["p1"]


def test_a_lost_session_of_the_same_node_is_ended(outbox: PostgresOutbox, make_outbox: MakeOutbox, loud: Node) -> None:
    """The network has swallowed its connection; the server does not know yet."""
    again = make_outbox()
    assert not again.lead(loud.epoch)
    assert eventually(lambda: again.lead(loud.epoch))


def test_a_new_epoch_is_a_new_session(outbox: PostgresOutbox, other: Node, tap: Tap) -> None:
    assert eventually(lambda: outbox.lead(other.epoch))
    (name,) = tap.rows("select application_name from pg_stat_activity where application_name like 'progressor publ%%'")
    assert name == (f"progressor publisher {other.epoch}",)


def end_sessions(tap: Tap) -> None:
    query = "from pg_stat_activity where application_name like 'progressor publisher%%'"
    tap.execute("select pg_terminate_backend(pid) " + query)
    eventually(lambda: not tap.rows("select 1 " + query))


# Dead letters


def test_what_is_refused_is_parked_and_its_process_waits(outbox: PostgresOutbox, tap: Tap) -> None:
    fill(tap, "p1", "p2", "q1", "p3")
    assert publish(outbox, "p2") == ["p1", "q1"]
    fill(tap, "q2", "p4")
    assert publish(outbox) == ["q2"]
    assert letters(tap) == [("p2", "too large"), ("p3", None), ("p4", None)]
    assert left(tap) == []


def test_a_portion_that_waits_altogether_is_passed_over(
    outbox: PostgresOutbox, tap: Tap, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tap, "p1")
    publish(outbox, "p1")
    monkeypatch.setattr(module, "MOST_MESSAGES", 2)
    fill(tap, *(f"p{n}" for n in range(2, 9)), "q1")
    assert publish(outbox) == ["q1"]
    assert len(letters(tap)) == 8


def test_a_dead_letter_that_is_retried_goes_first(outbox: PostgresOutbox, tap: Tap) -> None:
    fill(tap, "p1", "p2")
    publish(outbox, "p1")
    publish(outbox)
    fill(tap, "p3")
    assert retry(tap, "p1")
    assert publish(outbox) == ["p1", "p2"]
    assert publish(outbox) == ["p3"]
    assert letters(tap) == []


def test_messages_that_come_while_dead_letters_are_retried_stay_behind_them(outbox: PostgresOutbox, tap: Tap) -> None:
    fill(tap, "p1", "p2")
    publish(outbox, "p1")
    publish(outbox)
    retry(tap, "p1")
    messages = outbox.read().messages
    fill(tap, "p3")
    outbox.settle(Published([messages[0].message_id]))
    assert publish(outbox) == ["p2"]
    assert publish(outbox) == ["p3"]


def test_a_dead_letter_that_is_refused_again_holds_the_others_again(outbox: PostgresOutbox, tap: Tap) -> None:
    fill(tap, "p1", "p2")
    publish(outbox, "p1")
    publish(outbox)
    retry(tap, "p1")
    assert publish(outbox, "p1") == []
    assert publish(outbox) == []
    assert letters(tap) == [("p1", "too large"), ("p2", None)]


def test_what_waits_behind_a_dropped_letter_is_sent(outbox: PostgresOutbox, tap: Tap) -> None:
    fill(tap, "p1", "p2", "p3")
    publish(outbox, "p1")
    publish(outbox)
    assert drop(tap, "p1")
    assert publish(outbox) == ["p2", "p3"]
    assert letters(tap) == []


def test_between_two_dead_letters(outbox: PostgresOutbox, tap: Tap) -> None:
    fill(tap, "p1", "p2", "p3", "p4")
    publish(outbox, "p1")
    publish(outbox)
    retry(tap, "p1")
    assert publish(outbox, "p3") == ["p1", "p2"]
    assert letters(tap) == [("p3", "too large"), ("p4", None)]
    assert publish(outbox) == []
    drop(tap, "p3")
    assert publish(outbox) == ["p4"]


def test_only_dead_letters_can_be_retried_or_dropped(outbox: PostgresOutbox, tap: Tap) -> None:
    fill(tap, "p1", "p2")
    publish(outbox, "p1")
    publish(outbox)
    assert not retry(tap, "p2")
    assert not drop(tap, "p2")
    assert tap.value("select {retry_dead_letter}(0)") is False
    assert publish(outbox) == []


def test_a_letter_that_is_dropped_while_more_is_parked_leaves_nothing_behind(outbox: PostgresOutbox, tap: Tap) -> None:
    fill(tap, "p1", "p2")
    publish(outbox, "p1")
    fill(tap, "q1")
    messages = outbox.read().messages  # p2 is seen as one that waits
    drop(tap, "p1")
    outbox.settle(Published([m.message_id for m in messages]))
    assert publish(outbox) == ["p2"]
    assert letters(tap) == []


def test_what_is_parked_is_parked_with_what_was_sent_or_not_at_all(
    outbox: PostgresOutbox, loud: Node, tap: Tap
) -> None:
    fill(tap, "p1", "q1", "p2")
    first, second, _ = outbox.read().messages
    end_sessions(tap)
    with pytest.raises(StorageUnavailable):
        outbox.settle(Published([second.message_id], {first.message_id: "too large"}))
    assert (left(tap), letters(tap)) == (["p1", "q1", "p2"], [])


def test_the_rest_follows_where_that_is_wanted(make_outbox: MakeOutbox, loud: Node, tap: Tap) -> None:
    outbox = make_outbox(holds_back=False)
    assert outbox.lead(loud.epoch)
    fill(tap, "p1", "p2", "p3")
    assert publish(outbox, "p2") == ["p1"]
    assert publish(outbox) == ["p3"]
    fill(tap, "p4")
    assert publish(outbox) == ["p4"]
    assert letters(tap) == [("p2", "too large")]
    retry(tap, "p2")
    assert publish(outbox) == ["p2"]


def test_what_waited_is_sent_when_the_configuration_changes(
    outbox: PostgresOutbox, make_outbox: MakeOutbox, other: Node, tap: Tap
) -> None:
    fill(tap, "p1", "p2")
    publish(outbox, "p1")
    publish(outbox)
    outbox.close()
    following = make_outbox(holds_back=False)
    eventually(lambda: following.lead(other.epoch))
    assert publish(following) == ["p2"]


def test_many_messages_wait_behind_one(outbox: PostgresOutbox, tap: Tap) -> None:
    query = (
        "insert into {outbox} (process_id, notice, event_id) select 'p', 'event', n from generate_series(1, 20000) n"
    )
    tap.execute(query)
    publish(outbox, "p1")
    fill(tap, "q1")
    assert publish(outbox) == ["q1"]
    assert outbox.backlog().waiting == 10_000
    drop(tap, "p1")
    sent = [name for _ in range(10) for name in publish(outbox)]
    assert sent == [f"p{n}" for n in range(2, 20001)]


# Figures


def test_a_backlog(outbox: PostgresOutbox, tap: Tap) -> None:
    empty = outbox.backlog()
    assert (empty.depth, empty.age, empty.dead_letters, empty.waiting) == (0, 0, 0, 0)
    fill(tap, "p1", "p2", "q1", "q2")
    tap.execute("update {outbox} set written_at = now() - interval '1 hour' where event_id = 1")
    before = outbox.backlog()
    assert (before.depth, before.age // 60) == (4, 60)
    publish(outbox, "p1")
    publish(outbox)
    after = outbox.backlog()
    assert (after.depth, after.age, after.dead_letters, after.waiting) == (0, 0, 1, 1)


def test_a_batch_of_steps_is_published_as_it_was_committed(loud: Node, outbox: PostgresOutbox) -> None:
    claimed = [started(a) for a in loud.commit([request("init", f"{c}") for c in "abcdefgh"]).requests]
    loud.commit(completions=[step(c, Intent([Event(b"")] * 3)) for c in claimed])
    messages = outbox.read().messages
    for process in "abcdefgh":
        assert [m.event_id for m in messages if m.process_id == process] == [None, 1, 2, 3]
