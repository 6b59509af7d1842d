"""`prepare`: requests are accepted, refused, or recognised, in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest

from progressor.engine.ports import Accepted, Refused, Request
from progressor.errors import (
    IdempotencyConflict,
    ProcessAlreadyExists,
    ProcessInError,
    ProcessInInit,
    ProcessNotFound,
    ProcessRunning,
    RequestTimeout,
    StorageUnavailable,
)
from progressor.model import Answered, Intent, Op, SetTimer, TaskType
from progressor.storage.postgres import PostgresStorage
from tests.integration.storage.nodes import BUSINESS, NS, Node, Tap, race, refusal, request, soon, started

# Batches


def test_a_batch_takes_requests_of_many_processes_in_their_order(node: Node) -> None:
    answers = node.commit(
        [
            request("init", "a"),
            request("call", "a", b"1"),
            request("init", "b"),
            request("call", "nobody"),
            request("init", "a"),
            request("notify", "a", b"2"),
            request("remove", "b"),
            request("repair", "a"),
        ]
    ).requests
    assert started(answers[0]).task.process_id == "a"
    assert isinstance(answers[1], Accepted)
    assert answers[1].started is None
    assert started(answers[2]).task.process_id == "b"
    assert [refusal(answers[n]) for n in (3, 4, 7)] == [ProcessNotFound, ProcessAlreadyExists, ProcessInInit]
    ids = [a.task_id if isinstance(a, Accepted) else 0 for a in answers]
    assert 0 < ids[0] < ids[1] < ids[5]
    assert 0 < ids[2] < ids[6]
    assert len(set(ids)) == 6


def test_requests_wait_behind_the_init_of_their_own_batch_and_run_in_their_order(node: Node) -> None:
    batch = [request("init", "p"), *(request("call", "p", b"%d" % n) for n in range(5)), request("notify", "p", b"5")]
    claimed = started(node.commit(batch).requests[0])
    seen = []
    while (after := node.finish(claimed).next) is not None:
        claimed = after
        seen.append(claimed.task.args)
    assert seen == [b"0", b"1", b"2", b"3", b"4", b"5"]


def test_calls_accepted_by_several_nodes_run_in_the_order_of_acceptance(node: Node, other: Node) -> None:
    claimed = node.start("init", "p")
    ids = [each.queue("call", "p") for each in (other, node, other)]
    seen = []
    while (after := node.finish(claimed).next) is not None:
        claimed = after
        seen.append(claimed.task.task_id)
    assert seen == ids == sorted(ids)


def test_a_large_batch(node: Node, tap: Tap) -> None:
    names = [f"p{n:03}" for n in range(300)]
    answers = node.commit([request("init", name) for name in names]).requests
    assert [started(a).task.process_id for a in answers] == names
    assert tap.value("select count(*) from {running}") == 300


def test_a_task_gets_what_the_request_had(node: Node) -> None:
    claimed = node.start("init", "p", b"\x00\xff")
    assert (claimed.task.args, claimed.task.context, claimed.task.attempts) == (b"\x00\xff", b"context", 0)
    assert (claimed.process.status, claimed.process.last_event_id) == ("init", 0)
    assert claimed.task.owner == node.epoch


# Which request a process takes


def _missing(node: Node) -> None: ...


def _init(node: Node) -> None:
    node.start("init", "p")


def _idle(node: Node) -> None:
    node.process("p")


def _busy(node: Node) -> None:
    node.process("p")
    node.start("call", "p")


def _broken(node: Node) -> None:
    node.broken("p")


def _repairing(node: Node) -> None:
    node.broken("p")
    node.start("repair", "p")


STATES = {s.__name__[1:]: s for s in (_missing, _init, _idle, _busy, _broken, _repairing)}
STARTS, WAITS, DONE = "starts", "waits", "done"
VERDICTS: list[tuple[str, str, object]] = [
    ("missing", "init", STARTS),
    *(("missing", op, ProcessNotFound) for op in Op if op is not Op.INIT),
    *((state, "init", ProcessAlreadyExists) for state in STATES if state != "missing"),
    ("init", "call", WAITS),
    ("init", "notify", WAITS),
    ("init", "repair", ProcessInInit),
    ("init", "simple_repair", ProcessInInit),
    ("init", "remove", WAITS),
    ("idle", "call", STARTS),
    ("idle", "notify", STARTS),
    ("idle", "repair", ProcessRunning),
    ("idle", "simple_repair", ProcessRunning),
    ("idle", "remove", DONE),
    ("busy", "call", WAITS),
    ("busy", "notify", WAITS),
    ("busy", "repair", ProcessRunning),
    ("busy", "simple_repair", ProcessRunning),
    ("busy", "remove", WAITS),
    ("broken", "call", ProcessInError),
    ("broken", "notify", ProcessInError),
    ("broken", "repair", STARTS),
    ("broken", "simple_repair", DONE),
    ("broken", "remove", DONE),
    ("repairing", "call", ProcessInError),
    ("repairing", "repair", WAITS),
    ("repairing", "simple_repair", ProcessRunning),
    ("repairing", "remove", WAITS),
]


@pytest.mark.parametrize(("state", "op", "verdict"), VERDICTS)
def test_what_a_process_makes_of_a_request(node: Node, tap: Tap, state: str, op: str, verdict: object) -> None:
    STATES[state](node)
    before = tap.tables()
    answer = node.ask(op, "p")
    match answer:
        case Refused(error):
            assert type(error) is verdict
            assert tap.tables() == before
        case Answered():
            assert verdict == DONE
        case Accepted(_, claimed):
            assert verdict == (WAITS if claimed is None else STARTS)


@pytest.mark.parametrize("op", ["call", "notify"])
def test_a_timer_is_blocked_while_a_request_runs(node: Node, tap: Tap, op: str) -> None:
    node.process("p", Intent(action=SetTimer(soon())))
    claimed = node.start(op, "p")
    ((timer, _, status),) = tap.schedule("p")
    assert status == "blocked"
    (hint,) = node.finish(claimed).hints
    assert hint.task_id == timer
    assert tap.schedule("p") == [(timer, "timeout", "waiting")]


def test_a_simple_repair_runs_the_timer_that_broke_the_process(node: Node, tap: Tap) -> None:
    broken = node.broken("p", TaskType.TIMEOUT)
    claimed = node.start("simple_repair", "p")
    assert (claimed.task.task_type, claimed.task.context) == ("timeout", b"context")
    assert claimed.task.task_id > broken
    node.finish(claimed)
    assert tap.status("p") == "running"


def test_a_simple_repair_of_a_call_only_changes_the_status(node: Node, tap: Tap) -> None:
    node.broken("p")
    node.ask("simple_repair", "p")
    (row,) = tap.rows("select status::text, previous_status::text, detail, corrupted_by from {processes}")
    assert row == ("running", "error", None, None)
    assert tap.tables("running", "schedule") == {"running": [], "schedule": []}


# Idempotency keys


def test_a_key_gives_the_answer_of_its_task(node: Node, other: Node) -> None:
    node.process("p")
    claimed = node.start("call", "p", b"args", "k")
    node.finish(claimed, Intent(response=b"done"))
    for each in (node, other):
        assert each.ask("call", "p", b"args", "k") == Answered(b"done", claimed.task.task_id)


def test_a_key_gives_the_error_of_its_task(node: Node) -> None:
    node.finish(node.start("init", "p", key="k"), BUSINESS)
    answer = node.ask("init", "p", key="k")
    assert isinstance(answer, Refused)
    assert str(answer.error) == "no"


def test_a_key_joins_its_task_while_that_waits_or_runs(node: Node, other: Node) -> None:
    running = node.start("init", "p", key="i").task.task_id
    waiting = node.queue("call", "p", key="c")
    for each in (node, other):
        assert each.queue("init", "p", key="i") == running
        assert each.queue("call", "p", key="c") == waiting


def test_a_key_works_twice_in_one_batch(node: Node, tap: Tap) -> None:
    twins = [request("init", "p", b"args", "k") for _ in range(2)]
    first, second = node.commit(twins).requests
    assert second == Accepted(started(first).task.task_id)
    assert tap.value("select count(*) from {tasks}") == 1


def test_the_answer_of_a_joined_task_is_announced_to_every_node(node: Node, other: Node, tap: Tap) -> None:
    task = node.start("init", "p", key="k").task.task_id
    assert tap.value("select waiter from {tasks}") == node.epoch
    node.queue("init", "p", key="k")
    assert tap.value("select waiter from {tasks}") == node.epoch
    other.queue("init", "p", key="k")
    assert tap.rows("select task_id, waiter from {tasks}") == [(task, 0)]


@pytest.mark.parametrize(
    ("op", "process_id", "args"),
    [
        ("call", "q", b"args"),
        ("notify", "p", b"args"),
        ("call", "p", b"other"),
        ("call", "p", b""),
        ("repair", "p", b"args"),
        ("simple_repair", "p", b"args"),
        ("remove", "p", b"args"),
        ("init", "new", b"args"),
    ],
)
def test_a_key_that_was_used_for_something_else_is_a_conflict(
    node: Node, tap: Tap, op: str, process_id: str, args: bytes
) -> None:
    node.process("p")
    node.process("q")
    node.finish(node.start("call", "p", b"args", "k"))
    before = tap.tables()
    assert refusal(node.ask(op, process_id, args, "k")) is IdempotencyConflict
    assert tap.tables() == before


def test_no_arguments_and_empty_arguments_are_the_same(node: Node, tap: Tap) -> None:
    node.process("p")
    node.finish(node.start("call", "p", b"", "k"), Intent(response=b"done"))
    tap.execute("update {tasks} set args = null where idempotency_key = 'k'")
    assert isinstance(node.ask("call", "p", b"", "k"), Answered)


def test_a_notification_with_a_key_is_stored_once(node: Node) -> None:
    node.process("p")
    claimed = node.start("notify", "p", key="k")
    assert node.queue("notify", "p", key="k") == claimed.task.task_id
    node.finish(claimed)
    assert node.ask("notify", "p", key="k") == Accepted(claimed.task.task_id)


@pytest.mark.parametrize("task_type", [TaskType.CALL, TaskType.TIMEOUT])
def test_a_simple_repair_with_a_key_is_done_once(node: Node, tap: Tap, task_type: TaskType) -> None:
    node.broken("p", task_type)
    first = node.ask("simple_repair", "p", key="k")
    before = tap.tables()
    assert node.ask("simple_repair", "p", key="k") == Accepted(first.task_id)
    assert tap.tables() == before


def test_a_removal_with_a_key_is_remembered_when_the_process_is_gone(node: Node) -> None:
    node.process("p")
    first = node.ask("remove", "p", key="k")
    assert node.ask("remove", "p", key="k") == Answered(None, first.task_id)
    assert refusal(node.ask("remove", "q", key="k")) is IdempotencyConflict
    node.process("p")
    assert node.ask("remove", "p", key="k") == Answered(None, first.task_id)


def test_a_refused_request_does_not_use_its_key_up(node: Node) -> None:
    assert refusal(node.ask("call", "p", key="k")) is ProcessNotFound
    node.process("p")
    node.start("call", "p", key="k")


# Removal


def test_a_removal_leaves_no_row_of_the_process(node: Node, tap: Tap) -> None:
    node.process("p", Intent(action=SetTimer(soon())))
    node.process("q")
    untouched = {name: [r for r in rows if r["process_id"] == "q"] for name, rows in tap.tables().items()}
    node.ask("remove", "p")
    assert tap.tables() == untouched


def test_a_removal_with_a_key_leaves_its_own_task_only(node: Node, tap: Tap) -> None:
    node.process("p", Intent(action=SetTimer(soon())))
    node.ask("remove", "p", key="k")
    (task,) = tap.tables().pop("tasks")
    assert (task["task_type"], task["status"], task["idempotency_key"]) == ("remove", "finished", "k")
    assert {table for table, rows in tap.tables().items() if rows} == {"tasks"}
    assert tap.tables("tasks") == {"tasks": [task]}


def test_those_who_wait_learn_that_the_process_is_gone(node: Node, tap: Tap, storage: PostgresStorage) -> None:
    node.process("p")
    claimed = node.start("call", "p")
    call = node.queue("call", "p")
    storage.release(NS, node.epoch, [claimed.task])
    result = node.commit([request("remove", "p")])
    assert isinstance(result.requests[0], Answered)
    assert sorted(e.task_id for e in result.ended) == sorted([call, claimed.task.task_id])
    assert {refusal(e.answer) for e in result.ended} == {ProcessNotFound}
    assert not any(tap.tables().values())


def test_an_id_can_be_used_again_after_a_removal(node: Node) -> None:
    node.process("p")
    result = node.commit([request("remove", "p"), request("call", "p"), request("init", "p")])
    assert isinstance(result.requests[0], Answered)
    assert refusal(result.requests[1]) is ProcessNotFound
    assert started(result.requests[2]).process.last_event_id == 0


# Races


def test_two_nodes_race_with_the_same_key(node: Node, other: Node, tap: Tap) -> None:
    for n in range(20):
        twins = [partial(each.ask, "init", f"p{n}", b"args", f"k{n}") for each in (node, other)]
        answers = race(*twins)
        assert all(isinstance(answer, Accepted) for answer in answers), answers
        assert len({answer.task_id for answer in answers}) == 1
        assert len([answer for answer in answers if answer.started]) == 1
    assert tap.value("select count(*) from {tasks}") == 20


def test_two_nodes_race_with_the_same_key_for_two_processes(node: Node, other: Node, tap: Tap) -> None:
    for n in range(20):
        answers = race(
            partial(node.ask, "init", f"a{n}", key=f"k{n}"),
            partial(other.ask, "init", f"b{n}", key=f"k{n}"),
        )
        refused = [refusal(answer) for answer in answers if isinstance(answer, Refused)]
        assert refused == [IdempotencyConflict]
    assert tap.value("select count(*) from {processes}") == 20


def test_two_nodes_race_to_start_the_same_process(node: Node, other: Node, tap: Tap) -> None:
    for n in range(20):
        answers = race(*[partial(each.ask, "init", f"p{n}") for each in (node, other)])
        assert [refusal(a) for a in answers if isinstance(a, Refused)] == [ProcessAlreadyExists]
    assert tap.value("select count(*) from {tasks}") == 20
    assert tap.value("select count(*) from {running}") == 20


def _until_stored(node: Node, batch: Sequence[Request]) -> Sequence[Any]:
    """As the writer does: a batch whose fate is unknown is sent again."""
    for attempt in range(10):
        try:
            return node.commit(batch, again=attempt > 0).requests
        except StorageUnavailable:
            continue
    pytest.fail("it does not settle")


def test_new_processes_in_opposite_order_settle_after_a_repetition(node: Node, other: Node, tap: Tap) -> None:
    """Rows that are not there yet cannot be locked in order: PostgreSQL ends one of the two, or both; they are sent
    again."""
    names = [f"p{n}" for n in range(20)]
    answers = race(
        lambda: _until_stored(node, [request("init", name) for name in names]),
        lambda: _until_stored(other, [request("init", name) for name in reversed(names)]),
    )
    accepted = [a for answer in answers for a in answer if isinstance(a, Accepted)]
    assert len(accepted) == 20
    assert tap.value("select count(*) from {tasks}") == 20


# Once more, after a lost answer


def _keyed(node: Node) -> list[Request]:
    return [request("init", "p", key="i"), request("call", "p", b"1", "c"), request("notify", "p", b"2", "n")]


def _unkeyed(node: Node) -> list[Request]:
    return [request("init", "p"), request("call", "p", b"1"), request("notify", "p"), request("remove", "p")]


def _calls(node: Node) -> list[Request]:
    node.process("p")
    node.process("q", Intent(action=SetTimer(soon())))
    return [request("call", "p", b"1"), request("call", "p", b"1"), request("notify", "q"), request("call", "q")]


def _repairs(node: Node) -> list[Request]:
    for process_id in "pq":
        node.broken(process_id)
    return [request("repair", "p", b"1"), request("repair", "p", b"2"), request("repair", "q", key="k")]


def _simple_repairs(node: Node) -> list[Request]:
    node.broken("p", TaskType.TIMEOUT)
    node.process("q")
    return [request("simple_repair", "p", b"args"), request("call", "q", b"args of the call")]


def _refused(node: Node) -> list[Request]:
    node.process("p")
    node.finish(node.start("call", "p", key="used"))
    return [request("init", "p"), request("repair", "p"), request("call", "q"), request("call", "p", b"x", "used")]


def _removed(node: Node) -> list[Request]:
    node.process("p")
    return [request("remove", "p", key="k"), request("call", "p")]


@pytest.mark.parametrize("make", [_keyed, _unkeyed, _calls, _repairs, _simple_repairs, _refused, _removed])
def test_a_batch_that_is_sent_again_has_the_same_answers_and_no_second_effect(
    node: Node, tap: Tap, make: Callable[[Node], list[Request]]
) -> None:
    batch = make(node)
    first = node.commit(batch).requests
    before = tap.tables()
    second = node.commit(batch, again=True).requests
    assert tap.tables() == before
    assert [_comparable(answer) for answer in second] == [_comparable(answer) for answer in first]


def test_a_removal_without_a_key_that_is_sent_again_is_still_a_success(node: Node, tap: Tap) -> None:
    node.process("p")
    batch = [request("remove", "p")]
    assert isinstance(node.commit(batch).requests[0], Answered)
    assert isinstance(node.commit(batch, again=True).requests[0], Answered)


def test_a_removal_that_is_sent_again_spares_the_process_that_was_made_meanwhile(node: Node, tap: Tap) -> None:
    node.process("p")
    batch = [request("remove", "p"), request("init", "p")]
    first = node.commit(batch).requests
    assert isinstance(first[0], Answered)
    before = tap.tables()
    removed, made = node.commit(batch, again=True).requests
    assert tap.tables() == before
    assert refusal(removed) is RequestTimeout
    assert made == first[1]
    node.finish(started(made))
    assert tap.status("p") == "running"


def test_a_removal_with_a_key_that_is_sent_again_has_been_done_though_the_process_is_there(node: Node) -> None:
    node.process("p")
    batch = [request("remove", "p", key="k"), request("init", "p")]
    first = node.commit(batch).requests
    assert node.commit(batch, again=True).requests == first


def test_a_removal_that_waits_is_found_when_it_is_sent_again(node: Node, tap: Tap) -> None:
    claimed = node.start("init", "p")
    batch = [request("remove", "p")]
    first = node.commit(batch).requests
    assert node.commit(batch, again=True).requests == first
    node.finish(claimed)
    assert tap.status("p") is None


def test_a_simple_repair_that_is_sent_again_has_been_done(node: Node, tap: Tap) -> None:
    node.broken("p")
    batch = [request("simple_repair", "p")]
    first = node.commit(batch).requests[0]
    before = tap.tables()
    assert node.commit(batch, again=True).requests == [Accepted(first.task_id)]  # type: ignore[union-attr]
    assert tap.tables() == before


def test_a_batch_that_was_not_stored_is_stored_when_it_is_sent_again(node: Node) -> None:
    answers = node.commit([request("init", "p"), request("call", "p")], again=True).requests
    assert started(answers[0]).task.task_type == "init"
    assert isinstance(answers[1], Accepted)


def _comparable(answer: object) -> object:
    return type(answer.error) if isinstance(answer, Refused) else answer
