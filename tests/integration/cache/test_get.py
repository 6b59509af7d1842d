"""What a reader of a cached namespace is answered."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from threading import Thread

import psycopg
import pytest
from psycopg.sql import SQL

from progressor import Direction, Event, ProcessNotFound, ProcessorError, Range, RequestTimeout
from progressor.cache.cache import Miss
from progressor.storage import sql
from tests import stage
from tests.conftest import Database
from tests.eventually import eventually
from tests.integration.cache.nodes import NS, Cached, cached_theatre
from tests.stage import Play, Theatre, does, fails

BOUNDS = [None, 0, 1, 2, 5, 6, 2**63 - 1]


@pytest.fixture
def stage_(database: Database) -> Iterator[tuple[Theatre, Cached]]:
    with cached_theatre(database) as pair:
        yield pair


@pytest.fixture
def theatre(stage_: tuple[Theatre, Cached]) -> Theatre:
    return stage_[0]


@pytest.fixture
def cached(stage_: tuple[Theatre, Cached]) -> Cached:
    return stage_[1]


def same(play: Play) -> bool:
    """Whether memory and database say the same."""
    return play.get() == play.get(cache=False)


def test_the_first_read_fills_the_cache_and_the_others_are_hits(theatre: Theatre, cached: Cached) -> None:
    play = theatre.play(does(b"1", b"2", aux_state=b"state", metadata={"a": [1, None, "ü"]}))
    play.init()
    first, second = play.get(), play.get()
    assert first == second == play.get(cache=False)
    assert (cached.misses(Miss.COLD), cached.hits, cached.entries) == (1, 1, 1)


def test_a_hit_needs_no_thread_as_a_future(theatre: Theatre, cached: Cached) -> None:
    play = theatre.play(does(b"1"))
    play.init()
    expected = play.get()
    found = play.client.future.get(ns=play.ns, id=play.id)
    assert found.done()
    assert found.result() == expected
    assert cached.hits == 1


def test_memory_follows_the_steps(theatre: Theatre, cached: Cached) -> None:
    play = theatre.play(
        does(b"1", aux_state=b"one"),
        does(aux_state=b"two"),
        does(b"2", b"3", metadata={"k": 1}),
        fails(ProcessorError("broken")),
        does(b"4"),
    )
    play.init()
    play.get()
    play.call()
    eventually(lambda: play.get().aux_state == b"two")
    play.call()
    assert play.get(at_least_event_id=3).metadata == {"k": 1}
    with pytest.raises(ProcessorError):
        play.call()
    eventually(lambda: play.get().status == "error")
    assert same(play)
    play.repair()
    assert play.get(at_least_event_id=4).status == "running"
    assert same(play)
    assert cached.misses(Miss.COLD) == 1


@pytest.mark.parametrize("direction", Direction)
def test_ranges(theatre: Theatre, direction: Direction) -> None:
    play = theatre.play()
    play.put(history=[Event(b"%d" % n, {"n": n}) for n in range(1, 6)])
    play.get()
    for offset, limit in itertools.product(BOUNDS, BOUNDS):
        wanted = Range(offset, limit, direction)
        assert play.get(range=wanted) == play.get(range=wanted, cache=False)


def test_a_reader_sees_the_answer_that_it_was_given(theatre: Theatre, cached: Cached) -> None:
    play = theatre.play(*[does(b"%d" % n, aux_state=b"%d" % n) for n in range(1, 101)])
    play.init()
    for n in range(2, 101):
        last = cached.node.client.execute("call", ns=NS, id=play.id).last_event_id
        assert last == n
        process = play.get(at_least_event_id=last)
        assert (process.last_event_id, process.aux_state, len(process.history)) == (n, b"%d" % n, n)


def test_an_event_that_does_not_come_is_a_timeout(theatre: Theatre, cached: Cached) -> None:
    play = theatre.play(does(b"1"))
    play.init()
    for from_cache in (True, False):
        with pytest.raises(RequestTimeout, match="the process has no event 2"):
            play.get(at_least_event_id=2, timeout=0.3, cache=from_cache)
    play.get()
    with pytest.raises(RequestTimeout, match="the process has no event 2"):
        play.get(at_least_event_id=2, timeout=0.3)
    assert cached.misses(Miss.TOO_OLD) == 1


def test_a_reader_waits_for_an_event_that_comes(theatre: Theatre) -> None:
    play = theatre.play(does(b"1"), does(b"2"))
    play.init()
    play.get()
    found: list[int] = []
    reader = Thread(target=lambda: found.append(play.get(at_least_event_id=2).last_event_id))
    reader.start()
    play.call()
    reader.join()
    assert found == [2]


def test_a_reader_waits_for_the_init(theatre: Theatre) -> None:
    with stage.Gate() as gate:
        play = theatre.play(gate.holds(does(b"1")))
        init = play.later("init")
        gate.wait_entered()
        with pytest.raises(RequestTimeout, match="the init of the process has not ended"):
            play.get(timeout=0.3)
        readers = [play.later("get") for _ in range(3)]
    init.result()
    assert [reader.result().status for reader in readers] == ["running"] * 3


def test_a_removed_process_is_gone(theatre: Theatre, cached: Cached) -> None:
    play = theatre.play(does(b"1"), does(b"2"))
    play.init()
    play.get()
    play.remove()
    eventually(lambda: cached.entries == 0)
    with pytest.raises(ProcessNotFound):
        play.get()
    play.init()
    assert play.payloads == [b"2"]


def test_an_imported_process_is_read_from_the_database_first(theatre: Theatre, cached: Cached) -> None:
    play = theatre.play()
    with pytest.raises(ProcessNotFound):
        play.get()
    play.put(history=[Event(b"1")])
    assert play.payloads == [b"1"]
    assert play.payloads == [b"1"]
    assert (cached.misses(Miss.COLD), cached.hits) == (2, 1)


def test_what_is_too_large_to_be_stored_in_line_stays_when_something_else_changes(theatre: Theatre) -> None:
    """PostgreSQL does not send a value that it keeps out of line (TOAST) when an update leaves it as it is."""
    large = bytes(range(256)) * 4000
    play = theatre.play(does(b"1", aux_state=large), does(metadata={"k": 2}), does(aux_state=b"small"), does())
    play.init()
    play.get()
    play.call()
    eventually(lambda: play.get().metadata == {"k": 2})
    assert play.get().aux_state == large
    play.call()
    eventually(lambda: play.get().aux_state == b"small")
    assert same(play)


def test_events_that_are_changed_in_place(theatre: Theatre, database: Database) -> None:
    large = bytes(range(256)) * 4000
    play = theatre.play(does(b"1", large, b"3"))
    play.init()
    before = play.get()
    execute(
        database,
        "update {events} set payload = 'new', metadata = '{{\"format_version\": 2}}' where event_id = 1",
        "update {events} set metadata = '{{\"format_version\": 2}}' where event_id = 2",
    )
    eventually(lambda: play.get().history[1].metadata == {"format_version": 2})
    assert play.payloads == [b"new", large, b"3"]
    assert same(play)
    assert [event.payload for event in before.history] == [b"1", large, b"3"]


@pytest.mark.parametrize(
    "change",
    [
        "truncate {events}, {processes}",
        "delete from {processes}",
        "update {processes} set process_id = 'another'",
    ],
)
def test_a_process_that_goes_by_other_hands(theatre: Theatre, cached: Cached, database: Database, change: str) -> None:
    play = theatre.play(does(b"1"))
    play.init()
    play.get()
    execute(database, change)
    eventually(lambda: cached.entries == 0)
    with pytest.raises(ProcessNotFound):
        play.get()


def test_columns_may_come_and_go_and_stand_in_another_order(theatre: Theatre, database: Database) -> None:
    play = theatre.play(does(b"1", aux_state=b"1"), does(b"2", aux_state=b"2"))
    play.init()
    play.get()
    execute(
        database,
        "alter table {processes} add column more text default 'more'",
        "alter table {processes} rename column aux_state to old",
        "alter table {processes} add column aux_state bytea",
        "update {processes} set aux_state = old",
        "alter table {processes} drop column old",
    )
    play.call()
    assert play.get(at_least_event_id=2).aux_state == b"2"
    assert same(play)


def test_events_without_their_order_are_read_from_the_database(
    theatre: Theatre, cached: Cached, database: Database
) -> None:
    play = theatre.play(does(b"1", b"2", b"3"))
    play.init()
    execute(database, "delete from {events} where event_id = 2")
    assert [event.event_id for event in play.get().history] == [1, 3]
    assert [event.event_id for event in play.get(range=Range(limit=1)).history] == [1]
    assert cached.entries == 0


def execute(database: Database, *statements: str) -> None:
    """With the tables of the namespace."""
    with psycopg.connect(**database.conninfo) as connection:
        for statement in statements:
            connection.execute(SQL("{}").format(sql.fill(statement, NS)))
