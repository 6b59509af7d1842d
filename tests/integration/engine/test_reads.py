"""Reading: histories by ranges, traces, listings, health."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from progressor import (
    Direction,
    Event,
    Intent,
    ProcessNotFound,
    ProcessorError,
    Range,
    RequestTimeout,
    SetTimer,
    StorageUnavailable,
    TaskStatus,
    TaskType,
    now,
    seconds,
)
from tests import stage
from tests.conftest import Database
from tests.stage import PATIENCE, Gate, Play, Theatre, does, fails, returns

LAST = 5
BOUNDS = [None, 0, 1, 2, 4, 5, 6, 100, 2**63 - 1]


def expected(wanted: Range) -> Sequence[int]:
    """The ids of a range: docs/design.md, "Things"."""
    ids = range(1, LAST + 1)
    if wanted.direction == "forward":
        found = [n for n in ids if wanted.offset is None or n > wanted.offset]
    else:
        found = [n for n in reversed(ids) if wanted.offset is None or n < wanted.offset]
    return found if wanted.limit is None else found[: wanted.limit]


@pytest.mark.parametrize("direction", [*Direction, "forward", "backward"])
def test_ranges(theatre: Theatre, direction: Direction | str) -> None:
    play = theatre.play()
    play.put(history=[Event(b"%d" % n) for n in range(1, LAST + 1)])
    for offset, limit in itertools.product(BOUNDS, BOUNDS):
        wanted = Range(offset, limit, direction)
        process = play.get(range=wanted)
        assert [event.event_id for event in process.history] == expected(wanted), wanted
        assert [event.payload for event in process.history] == [b"%d" % n for n in expected(wanted)]
        assert (process.range, process.last_event_id) == (wanted, LAST)


def test_a_process_without_events(theatre: Theatre) -> None:
    play = theatre.play(does())
    play.init()
    process = play.get()
    assert (list(process.history), process.last_event_id, process.range) == ([], 0, Range())
    assert (process.aux_state, process.metadata, process.detail) == (None, None, None)


def test_what_was_answered_can_be_read(theatre: Theatre) -> None:
    """Whatever the reader says about caches."""
    play = theatre.play(*[does(b"%d" % n) for n in range(30)])
    play.init()
    for n in range(1, 30):
        play.call()
        assert play.get(cache=bool(n % 2), at_least_event_id=n + 1).last_event_id == n + 1


def test_events_keep_payloads_metadata_and_microseconds(theatre: Theatre) -> None:
    at = now().replace(microsecond=1)
    metadata = {"format_version": 1, "deep": [{"ä": None}, 1.5, -(2**70), "\\u0000 '\"%"], "": {}}
    event = Event(bytes(range(256)), metadata, timestamp=at)
    play = theatre.play(returns(Intent(events=[event])), does(b""))
    play.init()
    play.call()
    first, second = play.get().history
    assert (first.payload, first.metadata, first.timestamp) == (bytes(range(256)), metadata, at)
    assert (second.payload, second.metadata) == (b"", {})
    assert [event.task_id for event in (first, second)] == [unit.task_id for unit in play.trace()]
    assert play.seen[1].request.process.history[0] == first


def test_a_trace_tells_what_happened_and_why(theatre: Theatre) -> None:
    begin = now()
    play = theatre.play(
        does(b"1", b"2", response=b"born", action=SetTimer(begin + seconds(3600))),
        does(b"3", action=lambda: SetTimer(now())),
        fails(ProcessorError("away")),
        does(b"4"),
        fails(ProcessorError("no")),
    )
    play.init(b"init args", context=b"c1", idempotency_key=f"key {play.id}")
    play.call(b"call args", context=b"c2", range=Range(offset=1, limit=7, direction="backward"))
    play.becomes(b"1", b"2", b"3", b"4")
    with pytest.raises(ProcessorError):
        play.call(b"bad")
    units = play.trace()
    assert [(unit.task_type, unit.status) for unit in units] == [
        (TaskType.INIT, TaskStatus.FINISHED),
        (TaskType.TIMEOUT, TaskStatus.CANCELLED),
        (TaskType.CALL, TaskStatus.FINISHED),
        (TaskType.TIMEOUT, TaskStatus.FINISHED),
        (TaskType.CALL, TaskStatus.ERROR),
    ]
    assert [unit.task_id for unit in units] == sorted(unit.task_id for unit in units)
    assert [unit.args for unit in units] == [b"init args", b"", b"call args", b"", b"bad"]
    assert [unit.context for unit in units] == [b"c1", b"c1", b"c2", b"c2", b""]
    assert [unit.idempotency_key for unit in units] == [f"key {play.id}", None, None, None, None]
    assert [unit.response for unit in units] == [b"born", None, None, None, None]
    assert [unit.error for unit in units][2:] == [None, None, "no"]
    assert [unit.retry_attempts for unit in units] == [0, 0, 0, 1, 1]
    assert [[event.event_id for event in unit.events] for unit in units] == [[1, 2], [], [3], [4], []]
    assert units[2].metadata == {"range": {"offset": 1, "limit": 7, "direction": "backward"}}
    for unit in (units[0], *units[2:]):
        assert unit.running is not None
        assert unit.finished is not None
        assert begin <= unit.scheduled <= unit.running <= unit.finished <= now()
    assert units[1].running is None


# Listings


@pytest.fixture(scope="module")
def listed(theatre: Theatre) -> Iterator[list[Play]]:
    """Seven processes `list-0` ...: even ones run, odd ones are in error."""
    plays = []
    for n in range(7):
        born = does(b"1", metadata={"n": n, "tags": {"even": n % 2 == 0}})
        play = theatre.play(born, fails(ProcessorError("no")), id=f"list-{n}")
        play.init()
        if n % 2:
            with pytest.raises(ProcessorError):
                play.call()
        plays.append(play)
    yield plays
    for play in plays:
        play.remove()


def ids(theatre: Theatre, **selection: Any) -> list[int]:
    page = theatre.node.client.list(ns="a/b", **({"id_prefix": "list-"} | selection))
    assert page.cursor is None
    return [int(process.process_id.removeprefix("list-")) for process in page.items]


def test_a_listing_shows_processes_without_histories(theatre: Theatre, listed: list[Play]) -> None:
    page = theatre.node.client.list(ns="a/b", id_prefix="list-")
    for process, play in zip(page.items, listed, strict=True):
        whole = play.get(range=Range(limit=0))
        assert process == replace(whole, history=())
        assert (list(process.history), process.last_event_id) == ([], 1)


def test_a_listing_by_status_prefix_and_metadata(theatre: Theatre, listed: list[Play]) -> None:
    assert ids(theatre) == [0, 1, 2, 3, 4, 5, 6]
    assert ids(theatre, status="running") == [0, 2, 4, 6]
    assert ids(theatre, status="error") == [1, 3, 5]
    assert ids(theatre, status="init") == []
    assert ids(theatre, id_prefix="list-3") == [3]
    assert ids(theatre, id_prefix="list%") == []
    assert ids(theatre, id_prefix="list_") == []
    assert ids(theatre, metadata={"n": 3}) == [3]
    assert ids(theatre, metadata={"tags": {"even": True}}) == [0, 2, 4, 6]
    assert ids(theatre, metadata={"tags": {"even": True}}, status="error") == []
    assert ids(theatre, metadata={}) == [0, 1, 2, 3, 4, 5, 6]


def test_a_listing_by_time(theatre: Theatre, listed: list[Play]) -> None:
    created = [_time(play.get().created_at) for play in listed]
    changed = [_time(play.get().status_changed_at) for play in listed]
    assert ids(theatre, created_from=created[2]) == [2, 3, 4, 5, 6]
    assert ids(theatre, created_to=created[2]) == [0, 1]
    assert ids(theatre, created_from=created[2], created_to=created[4]) == [2, 3]
    assert ids(theatre, created_from=created[4], created_to=created[2]) == []
    assert ids(theatre, status_changed_from=changed[1], status_changed_to=changed[3]) == [1, 2]
    assert ids(theatre, status_changed_from=changed[3], status="error") == [3, 5]


def _time(value: datetime | None) -> datetime:
    assert value is not None
    return value


@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7, 8])
def test_pages_of_a_listing(theatre: Theatre, listed: list[Play], limit: int) -> None:
    found, cursor, pages = [], None, 0
    while True:
        page = theatre.node.client.list(ns="a/b", id_prefix="list-", limit=limit, cursor=cursor)
        assert len(page.items) <= limit
        found += [process.process_id for process in page.items]
        cursor, pages = page.cursor, pages + 1
        if cursor is None:
            break
    assert found == [play.id for play in listed]
    assert pages == -(-len(listed) // limit)


def test_a_page_goes_on_behind_what_was_removed_and_shows_what_was_added(theatre: Theatre) -> None:
    plays = [theatre.play(does(), id=f"page-{n}") for n in (1, 2, 4)]
    for play in plays:
        play.init()
    first = theatre.node.client.list(ns="a/b", id_prefix="page-", limit=2)
    plays[1].remove()
    added = theatre.play(does(), id="page-3")
    added.init()
    second = theatre.node.client.list(ns="a/b", id_prefix="page-", limit=2, cursor=first.cursor)
    assert [process.process_id for process in second.items] == ["page-3", "page-4"]


def test_a_healthy_node_says_so_in_json(theatre: Theatre) -> None:
    health, details = theatre.node.client.health_check(["a/b", "picky"])
    assert health == "passing"
    assert set(json.loads(json.dumps(details))) == {"a/b", "picky"}
    assert [details[ns]["problems"] for ns in details] == [[], []]
    assert theatre.node.is_ready


def test_a_missing_process_has_no_trace(theatre: Theatre) -> None:
    with pytest.raises(ProcessNotFound):
        theatre.node.client.trace(ns="a/b", id="nobody")


# Waiting


def test_many_who_wait_for_an_init_keep_nobody_from_reading(theatre: Theatre) -> None:
    """They hold no threads, of which there are few, and hear of the end at once."""
    other = theatre.play(does(b"1"))
    other.init()
    with Gate() as gate:
        play = theatre.play(gate.holds(does(b"1")))
        init = play.later("init")
        gate.wait_entered()
        waiting = [play.later("get") for _ in range(200)]
        assert other.later("get").result(PATIENCE).last_event_id == 1
        impatient = play.later("get", timeout=0.3)
        with pytest.raises(RequestTimeout, match="the init of the process has not ended"):
            impatient.result(PATIENCE)
        assert all(not reader.done() for reader in waiting)
        assert waiting.pop().cancel()
    init.result()
    assert [reader.result(PATIENCE).status for reader in waiting] == ["running"] * 199


def test_many_who_wait_for_an_event_keep_nobody_from_reading(theatre: Theatre) -> None:
    play = theatre.play(does(b"1"), does(b"2"))
    play.init()
    waiting = [play.later("get", at_least_event_id=2) for _ in range(50)]
    assert play.later("get").result(PATIENCE).last_event_id == 1
    play.call()
    assert [reader.result(PATIENCE).last_event_id for reader in waiting] == [2] * 50


def test_who_waits_while_the_node_stops_hears_of_it(database: Database) -> None:
    with stage.node(database, {"a/b": stage.steps(does(b"1"))}) as node:
        node.client.init(ns="a/b", id="p")
        waiting = [node.client.future.get(ns="a/b", id="p", at_least_event_id=2) for _ in range(50)]
    for reader in waiting:
        with pytest.raises(StorageUnavailable):
            reader.result(PATIENCE)
