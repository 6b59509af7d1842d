"""Imports of ready processes (docs/design.md, "Operations", put)."""

from __future__ import annotations

from datetime import UTC, datetime

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from progressor import (
    Event,
    InvalidRequest,
    ProcessAlreadyExists,
    ProcessInError,
    ProcessorError,
    ProcessRunning,
    SetTimer,
    UnsetTimer,
    now,
    seconds,
)
from tests.eventually import eventually
from tests.stage import Play, Theatre, does, fails

LONG_AGO = datetime(2020, 2, 29, 12, 30, 15, 123456, tzinfo=UTC)


def test_put_process(theatre: Theatre) -> None:
    play = theatre.play(does(b"3", response=b"ok"))
    history = [
        Event(b"1", {"format_version": 1}, 1, LONG_AGO),
        Event(b"\0\xff", {}, 2, LONG_AGO + seconds(0.000001)),
    ]
    play.put(history=history, aux_state=b"\0aux", metadata={"ключ": ["ä", None]}, created_at=LONG_AGO)
    process = play.get()
    assert [(e.payload, e.metadata, e.event_id, e.timestamp) for e in process.history] == [
        (e.payload, e.metadata, e.event_id, e.timestamp) for e in history
    ]
    assert (process.status, process.aux_state, process.metadata) == ("running", b"\0aux", {"ключ": ["ä", None]})
    assert (process.last_event_id, process.created_at, process.corrupted_by) == (2, LONG_AGO, None)
    assert play.types == []
    assert play.call() == b"ok"
    assert play.seen[0].payloads == [b"1", b"\0\xff"]
    assert play.payloads == [b"1", b"\0\xff", b"3"]


def test_put_process_with_timeout(theatre: Theatre) -> None:
    play = theatre.play(does(b"timer"))
    play.put(SetTimer(now() + seconds(0.1)), b"of put", history=[Event(b"1")])
    play.becomes(b"1", b"timer")
    assert play.types == ["timeout"]
    assert play.seen[0].context == b"of put"
    assert play.seen[0].payloads == [b"1"]


def test_put_process_with_a_timer_that_is_due(theatre: Theatre) -> None:
    play = theatre.play(does(b"timer"))
    play.put(SetTimer(LONG_AGO))
    play.becomes(b"timer")


def test_put_process_with_remove(theatre: Theatre) -> None:
    play = theatre.play()
    play.put(SetTimer(now() + seconds(0.2), remove=True), history=[Event(b"1")])
    assert play.payloads == [b"1"]
    eventually(lambda: not play.rows)
    assert play.types == []


def test_put_process_zombie(theatre: Theatre) -> None:
    """A running row without an owner, as a node of the original leaves it: it breaks the process when it is old."""
    stale = 10 + 1 + 5  # process_step_timeout, task_scan_timeout, and five seconds
    old, young = theatre.play(does(b"repaired")), theatre.play()
    for play, age in ((old, stale + 60), (young, 0)):
        play.put(history=[Event(b"1")])
        run_without_owner(play, age)
    old.breaks("zombie detected")
    assert old.payloads == [b"1"]
    assert old.get().corrupted_by == old.trace()[-1].task_id
    assert old.tasks[-1] == "call error"
    assert old.trace()[-1].error == "zombie detected"
    assert "running" not in old.rows
    assert young.tasks[-1] == "call running"
    assert young.get().status == "running"
    assert old.types == young.types == []
    old.repair()
    assert old.payloads == [b"1", b"repaired"]


def run_without_owner(play: Play, age: float) -> None:
    columns = (
        "process_id, task_type, status, scheduled_time, running_time, args, "
        "last_retry_interval, attempts_count, context"
    )
    with psycopg.connect(**play.database.conninfo) as connection:
        connection.execute(
            SQL(
                "with task as (insert into {tasks} ({columns}) "
                "values (%(id)s, 'call', 'running', %(at)s, %(at)s, ''::bytea, 0, 0, ''::bytea) "
                "returning task_id, {columns}) "
                "insert into {running} (task_id, {columns}) select * from task"
            ).format(
                tasks=Identifier(f"{play.ns}_tasks"), running=Identifier(f"{play.ns}_running"), columns=SQL(columns)
            ),
            {"id": play.id, "at": now() - seconds(age)},
        )


def test_put_of_a_process_in_error(theatre: Theatre) -> None:
    play = theatre.play(does(b"repair"))
    play.put(status="error", detail="it was like this", previous_status="init", status_changed_at=LONG_AGO)
    process = play.get()
    assert (process.status, process.previous_status, process.detail) == ("error", "init", "it was like this")
    assert process.status_changed_at == LONG_AGO
    with pytest.raises(ProcessInError):
        play.call()
    play.repair()
    assert play.payloads == [b"repair"]


def test_put_of_what_exists_changes_nothing(theatre: Theatre) -> None:
    play = theatre.play(does(b"1"))
    play.init()
    rows = play.rows
    with pytest.raises(ProcessAlreadyExists, match=r"^process already exists$"):
        play.put(SetTimer(now()), history=[Event(b"x")])
    assert play.rows == rows
    play.remove()
    play.put(history=[Event(b"x")])
    assert play.payloads == [b"x"]


def test_events_without_ids_and_times_get_them(theatre: Theatre) -> None:
    play, before = theatre.play(), now()
    play.put(history=[Event(b"1"), Event(b"2", event_id=2), Event(b"3")])
    events = play.get().history
    assert [event.event_id for event in events] == [1, 2, 3]
    assert all(before <= event.timestamp <= now() for event in events if event.timestamp is not None)


def test_a_history_with_a_gap_is_refused(theatre: Theatre) -> None:
    play = theatre.play()
    with pytest.raises(InvalidRequest, match=r"history\[1\].event_id"):
        play.put(history=[Event(b"1"), Event(b"3", event_id=3)])
    assert play.rows == {}


def test_an_imported_process_lives_on_like_any_other(theatre: Theatre) -> None:
    play = theatre.play(fails(ProcessorError("no")), does(b"repair"))
    play.put(UnsetTimer())
    with pytest.raises(ProcessRunning):
        play.repair()
    with pytest.raises(ProcessorError):
        play.call()
    play.repair()
    assert play.tasks == ["init finished", "call error", "repair finished"]
