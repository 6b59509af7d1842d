"""A database of the original is adopted with all that is in it, and its processes go on where they stood."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from progressor.engine.ports import Completed, Hint, Lost, Refused, Selection
from progressor.errors import IdempotencyConflict, ProcessAlreadyExists, ProcessInInit, ProcessorError
from progressor.model import Answered, Direction, Event, Intent, Range, TaskType, seconds
from progressor.storage import migrate
from progressor.storage.embedded import EmbeddedPostgres
from progressor.storage.postgres import PostgresStorage
from tests.conftest import Database, fresh_database
from tests.integration.storage import original
from tests.integration.storage.conftest import open_storage
from tests.integration.storage.nodes import NS, Node, Tables, Tap, next_of, next_token, refusal, request, step, timer_at
from tests.integration.storage.original import LAST_SMALL_EVENT, NEW, OLD, SIMPLE_REPAIR, Form, Original

STALE = 125.0  # process_step_timeout + task_scan_timeout + 5 s
NOBODY = 10**9  # an own task that is not known was lost so long ago


@dataclass(frozen=True)
class Adopted:
    """A database of the original after its migration. `tasks`: the task of interest of each process."""

    database: Database
    form: Form
    before: Tables
    tasks: dict[str, int]


@pytest.fixture(scope="module", params=[NEW, OLD], ids=str)
def moved(request: pytest.FixtureRequest, postgres_server: EmbeddedPostgres) -> Iterator[Adopted]:
    """One database of each age, filled, looked at and migrated; tests work on copies."""
    form: Form = request.param
    with fresh_database(postgres_server) as database:
        original.create(database.conninfo, NS, form, cached=True)
        with psycopg.connect(**database.conninfo) as connection:
            tasks = original.fill(Original(connection, NS, form))
            before = Tap(connection).tables("processes", "tasks", "schedule", "running", "events")
        migrate.migrate(database.conninfo, [NS])
        yield Adopted(database, form, before, tasks)


@pytest.fixture
def adopted(postgres_server: EmbeddedPostgres, moved: Adopted) -> Iterator[Adopted]:
    with fresh_database(postgres_server, moved.database.name) as copy:
        yield Adopted(copy, moved.form, moved.before, moved.tasks)


@pytest.fixture
def node(adopted: Adopted) -> Iterator[Node]:
    with closing(Node(adopted.database.conninfo)) as node:
        yield node


@pytest.fixture
def tap(adopted: Adopted) -> Iterator[Tap]:
    with psycopg.connect(**adopted.database.conninfo, autocommit=True) as connection:
        yield Tap(connection)


@pytest.fixture
def storage(adopted: Adopted) -> Iterator[PostgresStorage]:
    with open_storage(adopted.database) as storage:
        yield storage


@pytest.fixture
def erlang(adopted: Adopted, tap: Tap) -> Original:
    """A node of the original that still works on the database."""
    return Original(tap.connection, NS, NEW)


# Nothing is lost


def test_every_row_is_as_it_was(adopted: Adopted, tap: Tap) -> None:
    after = tap.tables()
    for table, rows in adopted.before.items():
        assert len(after[table]) == len(rows), table
        for old, new in zip(rows, after[table], strict=True):
            assert old.items() <= new.items()


def test_what_an_old_database_lacks_is_derived(adopted: Adopted, tap: Tap) -> None:
    for row in tap.tables("processes")["processes"]:
        assert row["previous_status"] in (row["status"], "running")
        assert row["status_changed_at"] == row["created_at"]


def test_the_columns_of_ours_are_empty(tap: Tap) -> None:
    assert tap.rows("select distinct waiter, ticket from {tasks}") == [(None, None)]
    assert tap.rows("select distinct owner, run_token from {running}") == [(None, None)]


# Reading


def test_a_process_is_read_with_its_history(adopted: Adopted, storage: PostgresStorage) -> None:
    process = storage.get(NS, "idle", Range())
    assert process is not None
    assert (process.status, process.aux_state) == ("running", b"aux of idle")
    assert process.metadata == {"owner": "idle", "é": [1, None]}
    assert [(e.event_id, e.payload, e.metadata, e.task_id) for e in process.history] == [
        (n, b"event %d" % n, {"format_version": 1}, adopted.tasks["idle"]) for n in (1, 2, 3)
    ]


def test_why_a_process_is_broken_is_read(adopted: Adopted, storage: PostgresStorage) -> None:
    process = storage.get(NS, "broken timeout", Range())
    assert process is not None
    assert (process.status, process.detail) == ("error", "why")
    assert process.corrupted_by == adopted.tasks["broken timeout"]


def test_every_process_is_listed_page_by_page(adopted: Adopted, storage: PostgresStorage) -> None:
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = storage.page(NS, Selection(), 3, cursor)
        found += [process.process_id for process in page.items]
        if (cursor := page.cursor) is None:
            break
    assert found == sorted(found)
    assert set(found) == set(adopted.tasks)


def test_every_process_is_traced(adopted: Adopted, storage: PostgresStorage) -> None:
    tasks = adopted.before["tasks"]
    for process_id in adopted.tasks:
        mine = [row for row in tasks if row["process_id"] == process_id]
        units = storage.trace(NS, process_id)
        assert [(u.task_id, u.task_type, u.status) for u in units] == [
            (row["task_id"], row["task_type"], row["status"]) for row in mine
        ]


def test_the_trace_of_a_retried_timer_shows_its_attempts(storage: PostgresStorage) -> None:
    unit = storage.trace(NS, "retrying")[-1]
    assert (unit.retry_attempts, unit.retry_interval, unit.context) == (2, 30.0, b"context")


@pytest.mark.parametrize(
    ("key", "response", "error"),
    [
        ("ok", None, None),
        ("binary", b"hello", None),
        ("error", None, "nope"),
        ("exception", None, "{exception,error,badmatch}"),
    ],
)
@pytest.mark.parametrize("dialect", ["", " latin"])
def test_an_idempotency_key_gives_the_answer_of_the_original(
    node: Node, storage: PostgresStorage, key: str, dialect: str, response: bytes | None, error: str | None
) -> None:
    key += dialect
    answer = node.ask("call", "answers", key.encode(), key)
    if error is None:
        assert isinstance(answer, Answered)
        assert answer.response == response
    else:
        assert isinstance(answer, Refused)
        assert isinstance(answer.error, ProcessorError)
        assert str(answer.error) == error
    (unit,) = [u for u in storage.trace(NS, "answers") if u.idempotency_key == key]
    assert (unit.response, unit.error) == (response, error)


def test_an_idempotency_key_of_the_original_conflicts_with_other_arguments(node: Node) -> None:
    assert refusal(node.ask("call", "answers", b"other", "ok")) is IdempotencyConflict
    assert refusal(node.ask("call", "idle", b"ok", "ok")) is IdempotencyConflict


# Going on


def upcoming(storage: PostgresStorage) -> dict[str, Hint]:
    return {hint.process_id: hint for hint in storage.upcoming(NS, 7200, None, 100)}


def test_timers_are_found_when_they_are_due(storage: PostgresStorage) -> None:
    due = [hint.process_id for hint in storage.upcoming(NS, 0, None, 100)]
    assert sorted(due) == ["due", "left", "repairing", "retrying"]
    assert set(upcoming(storage)) == {*due, "sleeping", "leaving"}


@pytest.mark.parametrize("process_id", ["due", "left", "retrying"])
def test_a_due_timer_runs(adopted: Adopted, node: Node, tap: Tap, storage: PostgresStorage, process_id: str) -> None:
    claimed = node.claim_one(upcoming(storage)[process_id])
    assert claimed.task.task_id == adopted.tasks[process_id]
    assert claimed.task.attempts == (2 if process_id == "retrying" else 0)
    node.finish(claimed, Intent([Event(b"ran")]))
    assert tap.task_status(claimed.task.task_id) == "finished"
    assert tap.schedule(process_id) == []


def test_a_delayed_simple_repair_brings_its_process_back(node: Node, tap: Tap, storage: PostgresStorage) -> None:
    claimed = node.claim_one(upcoming(storage)["repairing"])
    assert (claimed.process.status, claimed.task.metadata) == ("error", SIMPLE_REPAIR)
    node.finish(claimed)
    assert tap.status("repairing") == "running"


def test_a_repair_knows_the_timer_that_broke_its_process(
    adopted: Adopted, node: Node, storage: PostgresStorage
) -> None:
    claimed = node.start("repair", "broken timeout")
    assert claimed.process.corrupted_by == adopted.tasks["broken timeout"]
    broken = storage.broken_task(NS, adopted.tasks["broken timeout"])
    assert broken is not None
    assert broken.task_type is TaskType.TIMEOUT
    assert storage.broken_task(NS, adopted.tasks["broken call"]) is None


def test_a_simple_repair_runs_the_timer_that_broke_its_process(node: Node, tap: Tap) -> None:
    claimed = node.start("simple_repair", "broken timeout")
    assert (claimed.task.task_type, claimed.task.args) == ("timeout", b"args")
    node.finish(claimed)
    assert tap.status("broken timeout") == "running"


def test_a_simple_repair_after_a_call_runs_nothing(node: Node, tap: Tap) -> None:
    assert isinstance(node.ask("simple_repair", "broken call"), Answered)
    assert tap.status("broken call") == "running"


def test_postponed_calls_are_run_in_their_order_and_then_the_blocked_timer(
    adopted: Adopted, node: Node, storage: PostgresStorage
) -> None:
    (hint,) = storage.waiting_calls(NS, 10)
    assert (hint.process_id, hint.task_id) == ("postponed", adopted.tasks["postponed"])
    claimed = node.claim_one(hint)
    seen = [claimed.task.args]
    while (claimed := node.finish(claimed).next) is not None:  # type: ignore[assignment]
        seen.append(claimed.task.args)
    assert seen == [b"call 1", b"call 2", b""]


def test_a_new_call_waits_behind_what_a_node_of_the_original_runs(node: Node, storage: PostgresStorage) -> None:
    node.queue("call", "busy")
    assert "busy" not in {hint.process_id for hint in storage.waiting_calls(NS, 10)}
    assert node.claim(Hint(1, "busy", storage.trace(NS, "busy")[0].scheduled)) == [None]


def test_only_what_is_old_enough_is_taken_over(adopted: Adopted, node: Node, storage: PostgresStorage) -> None:
    tokens = [next_token() for _ in range(10)]
    taken = storage.take_over(NS, node.epoch, STALE, NOBODY, [], tokens)
    zombies = {name: task for name, task in adopted.tasks.items() if name.startswith("zombie")}
    assert {c.task.process_id: c.task.task_id for c in taken} == zombies
    assert {c.task.attempts for c in taken} == {1}
    assert storage.take_over(NS, node.epoch, STALE, NOBODY, [], tokens) == []


def test_what_was_taken_over_can_be_finished(node: Node, tap: Tap, storage: PostgresStorage) -> None:
    tokens = [next_token() for _ in range(10)]
    for claimed in storage.take_over(NS, node.epoch, STALE, NOBODY, [], tokens):
        assert isinstance(node.finish(claimed), Completed)
    assert tap.rows("select process_id from {running} where process_id like 'zombie%%'") == [("zombie call",)]


def test_a_process_that_starts_can_be_called(adopted: Adopted, node: Node, storage: PostgresStorage) -> None:
    if "starting" not in adopted.tasks:
        pytest.skip("a database so old has no such status")
    node.queue("call", "starting", b"after")
    assert refusal(node.ask("init", "starting")) is ProcessAlreadyExists
    assert refusal(node.ask("repair", "starting")) is ProcessInInit
    (claimed,) = (
        c
        for c in storage.take_over(NS, node.epoch, 0, NOBODY, [], [next_token() for _ in range(10)])
        if c.task.process_id == "starting"
    )
    assert next_of(node.finish(claimed)).task.args == b"after"


def test_a_history_goes_on_beyond_what_a_smallint_holds(node: Node, storage: PostgresStorage) -> None:
    claimed = node.start("call", "long")
    assert claimed.process.last_event_id == LAST_SMALL_EVENT
    node.finish(claimed, Intent([Event(b"one more"), Event(b"and one")]))
    process = storage.get(NS, "long", Range(limit=3, direction=Direction.BACKWARD))
    assert process is not None
    assert [e.event_id for e in process.history] == [LAST_SMALL_EVENT + n for n in (2, 1, 0)]
    assert process.last_event_id == LAST_SMALL_EVENT + 2


def test_task_ids_go_on(adopted: Adopted, node: Node) -> None:
    last = max(row["task_id"] for row in adopted.before["tasks"])
    assert node.start("call", "idle").task.task_id > last


def test_any_process_can_be_removed(adopted: Adopted, node: Node, tap: Tap) -> None:
    for process_id in adopted.tasks:
        tap.execute("delete from {running} where process_id = %s", process_id)
        assert isinstance(node.ask("remove", process_id), Answered)
    assert not any(tap.tables().values())


# A node of the original works on


def test_the_original_can_run_a_task_after_the_migration(erlang: Original, tap: Tap) -> None:
    task = erlang.task("idle", "call", "running")
    assert tap.running("idle") == task
    assert not erlang.run(task, erlang.now)


def test_the_original_does_not_run_what_runs_here(erlang: Original, node: Node, tap: Tap) -> None:
    claimed = node.start("call", "idle")
    task = erlang.save_task("idle", "call", "waiting")
    assert not erlang.run(task, erlang.now)
    assert tap.running("idle") == claimed.task.task_id


def test_a_step_is_fenced_when_the_original_took_its_process(erlang: Original, node: Node, tap: Tap) -> None:
    claimed = node.start("call", "idle")
    erlang.stop("idle")
    task = erlang.task("idle", "call", "running")
    assert node.complete(step(claimed, Intent([Event(b"lost")]))) == Lost(None)
    assert tap.running("idle") == task
    assert tap.value("select max(event_id) from {events} where process_id = 'idle'") == 3


def test_a_task_that_the_original_schedules_is_run_here(erlang: Original, node: Node, storage: PostgresStorage) -> None:
    call = erlang.task("idle", "call", "waiting", args=b"theirs")
    timer = erlang.task("answers", "timeout", "waiting", scheduled_time=erlang.ago(1))
    calls = {hint.process_id: hint for hint in storage.waiting_calls(NS, 10)}
    assert node.claim_one(calls["idle"]).task.task_id == call
    assert node.claim_one(upcoming(storage)["answers"]).task.task_id == timer


def test_the_original_can_start_a_process_and_read_ours(erlang: Original, node: Node, tap: Tap) -> None:
    erlang.process("theirs", "init")
    erlang.task("theirs", "init", "running")
    node.queue("call", "theirs")
    node.process("ours")
    task = erlang.task("ours", "call", "running")
    erlang.events("ours", task, 1, 1)
    assert node.start("call", "idle").process.last_event_id == 3


def test_what_the_original_does_not_know_about_has_defaults(erlang: Original, tap: Tap) -> None:
    """It writes each column that it has, so each other one must do without."""
    task = erlang.task("idle", "call", "running")
    rows: list[tuple[Any, ...]] = tap.rows("select waiter, ticket from {tasks} where task_id = %s", task)
    assert rows == [(None, None)]
    assert tap.rows("select owner, run_token from {running} where task_id = %s", task) == [(None, None)]


def test_an_adopted_timer_is_replaced_by_a_step(adopted: Adopted, node: Node, tap: Tap) -> None:
    at = Original(tap.connection, NS).now + seconds(1000)
    fate = node.complete(timer_at(node.start("call", "sleeping"), at))
    assert isinstance(fate, Completed)
    assert tap.task_status(adopted.tasks["sleeping"]) == "cancelled"
    assert [task for task, *_ in tap.schedule("sleeping")] == [hint.task_id for hint in fate.hints]


def test_requests_get_one_task_id_each_in_a_batch(adopted: Adopted, node: Node) -> None:
    accepted = node.commit([request("call", "idle"), request("call", "idle"), request("notify", "idle")]).requests
    ids = [a.task_id for a in accepted]  # type: ignore[union-attr]
    assert ids == sorted(set(ids))
