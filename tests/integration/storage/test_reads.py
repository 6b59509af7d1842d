"""What is read, listed and imported outside of batches."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from progressor.engine.history import History
from progressor.engine.ports import Hint, Selection
from progressor.errors import ProcessAlreadyExists, StorageRejected
from progressor.model import Event, Intent, Process, ProcessStatus, Range, Remove, SetTimer, TaskType, UnsetTimer
from progressor.storage.postgres import PostgresStorage
from tests.integration.storage.nodes import BUSINESS, NS, Node, Tap, soon

AT = datetime(2020, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
EVENTS = [Event(b"e%d" % n, {"n": n}, n, AT) for n in range(1, 8)]
RANGES = [
    Range(offset, limit, direction)
    for offset in (None, 0, 1, 3, 7, 8, 100)
    for limit in (None, 0, 2, 100)
    for direction in ("forward", "backward")
]

# Histories


@pytest.mark.parametrize("range", RANGES, ids=lambda r: f"{r.direction}-{r.offset}-{r.limit}")
def test_a_range_is_the_same_from_the_database_as_from_memory(
    node: Node, storage: PostgresStorage, range: Range
) -> None:
    claimed = node.start("init", "p")
    node.finish(claimed, Intent([replace(e, event_id=None) for e in EVENTS]))
    expected = list(History(replace(e, task_id=claimed.task.task_id) for e in EVENTS).slice(range, lambda _: ()))
    process = storage.get(NS, "p", range)
    assert process is not None
    assert process.history == expected == storage.events(NS, "p", range)
    assert (process.last_event_id, process.range) == (7, range)


def test_a_process_without_events(node: Node, storage: PostgresStorage) -> None:
    node.process("p")
    process = storage.get(NS, "p", Range())
    assert process is not None
    assert (process.history, process.last_event_id) == ([], 0)
    assert storage.get(NS, "q", Range()) is None


# put


def test_a_process_is_imported_with_its_history_and_timer(node: Node, storage: PostgresStorage) -> None:
    at = soon()
    process = Process("p", "running", None, b"aux", {"a": "é"}, EVENTS, created_at=AT, status_changed_at=AT)
    hint = storage.put(NS, process, SetTimer(at), b"context")
    assert hint is not None
    assert (hint.process_id, hint.at) == ("p", at)
    found = storage.get(NS, "p", Range())
    assert found is not None
    assert [replace(e, task_id=None) for e in found.history] == EVENTS
    assert (found.aux_state, found.metadata, found.created_at, found.status_changed_at) == (b"aux", {"a": "é"}, AT, AT)
    assert [unit.task_type for unit in storage.trace(NS, "p")] == ["init", "timeout"]
    assert storage.upcoming(NS, 7200, None, 10) == [hint]
    node.finish(node.start("call", "p"), Intent([Event(b"next")]))
    assert node.start("call", "p").process.last_event_id == 8


@pytest.mark.parametrize("action", [None, UnsetTimer(), Remove()])
def test_a_process_is_imported_without_a_timer(storage: PostgresStorage, action: Any) -> None:
    assert storage.put(NS, Process("p"), action, b"") is None


def test_an_imported_timer_can_be_a_removal(node: Node, tap: Tap, storage: PostgresStorage) -> None:
    hint = storage.put(NS, Process("p"), SetTimer(soon(), remove=True), b"context")
    assert hint is not None
    tap.due(hint.task_id)
    task = node.claim_one(hint).task
    assert (task.task_type, task.context) == (TaskType.REMOVE, b"context")


def test_an_imported_process_may_be_broken(node: Node, tap: Tap, storage: PostgresStorage) -> None:
    storage.put(NS, Process("p", ProcessStatus.ERROR, "why", previous_status=ProcessStatus.RUNNING), None, b"")
    node.finish(node.start("repair", "p"))
    assert tap.status("p") == "running"


def test_a_process_that_exists_is_not_imported(node: Node, tap: Tap, storage: PostgresStorage) -> None:
    node.process("p")
    before = tap.tables()
    with pytest.raises(ProcessAlreadyExists):
        storage.put(NS, Process("p", history=EVENTS), SetTimer(soon()), b"")
    assert tap.tables() == before


@pytest.mark.parametrize(
    "process", [Process("p", metadata={"a": "\0"}), Process("p", history=[*EVENTS, EVENTS[0]]), Process("x" * 257)]
)
def test_an_import_that_is_refused_stores_nothing(tap: Tap, storage: PostgresStorage, process: Process) -> None:
    with pytest.raises(StorageRejected):
        storage.put(NS, process, SetTimer(soon()), b"")
    assert not any(tap.tables().values())


# page


@pytest.fixture
def listed(storage: PostgresStorage) -> PostgresStorage:
    for n, name in enumerate(("a1", "a2", "b%1", "b_2", "b2")):
        at = AT + timedelta(days=n)
        status = "error" if n % 2 else "running"
        metadata = {"n": n, "tags": ["all"]}
        process = Process(name, status, metadata=metadata, created_at=at, status_changed_at=at + timedelta(hours=1))
        storage.put(NS, process, None, b"")
    return storage


DAY = timedelta(days=1)


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(), "a1 a2 b%1 b2 b_2"),
        (Selection(status="error"), "a2 b_2"),
        (Selection(status="init"), ""),
        (Selection(id_prefix="b"), "b%1 b2 b_2"),
        (Selection(id_prefix="b_"), "b_2"),
        (Selection(id_prefix="b%"), "b%1"),
        (Selection(metadata={"n": 1}), "a2"),
        (Selection(metadata={"tags": ["all"]}), "a1 a2 b%1 b2 b_2"),
        (Selection(metadata={}), "a1 a2 b%1 b2 b_2"),
        (Selection(created=(AT + DAY, None)), "a2 b%1 b2 b_2"),
        (Selection(created=(None, AT + DAY)), "a1"),
        (Selection(created=(AT + DAY, AT + 3 * DAY)), "a2 b%1"),
        (Selection(changed=(AT + DAY, AT + 2 * DAY)), "a2"),
        (Selection(status="running", id_prefix="b", created=(AT + 3 * DAY, None)), "b2"),
    ],
)
def test_processes_are_selected(listed: PostgresStorage, selection: Selection, expected: str) -> None:
    found = {process.process_id for process in listed.page(NS, selection, 10, None).items}
    assert found == set(expected.split())


@pytest.mark.parametrize("limit", [1, 2, 4, 5, 6])
def test_pages_hold_each_process_once(listed: PostgresStorage, limit: int) -> None:
    found: list[str] = []
    page = listed.page(NS, Selection(), limit, None)
    found += [p.process_id for p in page.items]
    while page.cursor is not None:
        page = listed.page(NS, Selection(), limit, page.cursor)
        assert page.items
        found += [p.process_id for p in page.items]
    assert len(found) == len(set(found)) == 5


# trace and results


def test_a_trace_shows_what_happened(node: Node, storage: PostgresStorage) -> None:
    node.process("p", Intent([Event(b"1")], response=b"born"))
    node.finish(node.start("call", "p", b"args", "k"), Intent([Event(b"2"), Event(b"3")]))
    node.finish(node.start("call", "p"), BUSINESS)
    first, second, third = storage.trace(NS, "p")
    assert (first.task_type, first.response, [e.event_id for e in first.events]) == ("init", b"born", [1])
    assert (second.args, second.idempotency_key, second.context) == (b"args", "k", b"context")
    assert [e.payload for e in second.events] == [b"2", b"3"]
    assert (third.status, third.error, third.events) == ("error", "no", [])
    for unit in (first, second, third):
        assert unit.running is not None
        assert unit.finished is not None
        assert unit.scheduled <= unit.running <= unit.finished
    assert storage.trace(NS, "q") == []


def test_results_of_tasks_that_wait_run_have_ended_or_are_gone(node: Node, storage: PostgresStorage) -> None:
    node.process("p")
    claimed = node.start("call", "p")
    waiting = node.queue("call", "p")
    found = storage.results(NS, [claimed.task.task_id, waiting, 10**6])
    assert found == {claimed.task.task_id: None, waiting: None}


def test_a_broken_timer_is_found_for_its_repair(node: Node, storage: PostgresStorage) -> None:
    task = node.broken("p", TaskType.TIMEOUT)
    broken = storage.broken_task(NS, task)
    assert broken is not None
    assert broken.task_type is TaskType.TIMEOUT
    assert storage.broken_task(NS, node.broken("q")) is None
    assert storage.broken_task(NS, 10**6) is None


def test_hints_of_a_claimed_timer_are_gone(node: Node, tap: Tap, storage: PostgresStorage) -> None:
    node.process("p")
    hint: Hint = node.timer("p", soon())
    tap.due(hint.task_id)
    node.claim_one(hint)
    assert storage.upcoming(NS, 7200, None, 10) == []
