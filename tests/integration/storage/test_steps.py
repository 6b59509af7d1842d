"""`complete`: a step is committed as a whole, under its fence, and its process goes on at once where it can."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from progressor.engine.lifecycle import Failure
from progressor.engine.ports import Claimed, Completed, Completion, Lost, Refused, Timer, TimerChange
from progressor.errors import (
    LeaseLost,
    ProcessInError,
    ProcessNotFound,
    ProcessorError,
    ProcessRunning,
    StorageRejected,
)
from progressor.model import Action, Answered, Event, Intent, Range, Remove, SetTimer, TaskType, UnsetTimer, now
from progressor.storage.postgres import PostgresStorage
from tests.integration.storage.nodes import (
    BUSINESS,
    DEFECT,
    NS,
    TRANSIENT,
    Node,
    Tap,
    next_of,
    next_token,
    race,
    refusal,
    request,
    soon,
    started,
    step,
)

AT = datetime(2020, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)

# What a step changes


def test_a_step_changes_all_that_it_says(node: Node, storage: PostgresStorage) -> None:
    node.process("p")
    claimed = node.start("call", "p")
    events = [Event(b"\x00\xff", {"é": [1]}, timestamp=AT), Event(b"")]
    node.finish(claimed, Intent(events, b"aux\x00", {"a": "é"}, b"response"))
    process = storage.get(NS, "p", Range())
    assert process is not None
    assert (process.aux_state, process.metadata, process.last_event_id) == (b"aux\x00", {"a": "é"}, 2)
    task = claimed.task.task_id
    assert process.history[0] == Event(b"\x00\xff", {"é": [1]}, 1, AT, task)
    assert process.history[1].payload == b""
    assert storage.results(NS, [task]) == {task: Answered(b"response", task)}


def test_a_step_leaves_alone_what_it_does_not_mention(node: Node, tap: Tap) -> None:
    node.process("p", Intent([Event(b"e")], b"aux", {"a": 1}))
    before = tap.tables("processes", "events")
    node.finish(node.start("call", "p"))
    assert tap.tables("processes", "events") == before


@pytest.mark.parametrize(
    ("intent", "written"),
    [
        (Intent([Event(b"e")], action=SetTimer(now())), False),
        (Intent(aux_state=b"aux"), True),
        (Intent(metadata={"a": 1}), True),
        (DEFECT, True),
    ],
)
def test_the_row_of_a_process_is_written_when_it_changes(
    node: Node, tap: Tap, intent: Intent | Failure, written: bool
) -> None:
    """A new version of the row costs WAL, and those who follow it."""
    node.process("p", Intent(aux_state=b"aux", metadata={"a": 1}))
    claimed = node.due_timer("p")
    before = tap.value("select ctid::text from {processes}")
    node.complete(step(claimed, intent))
    assert (tap.value("select ctid::text from {processes}") != before) == written


def test_the_first_good_step_makes_a_process_run(node: Node, tap: Tap) -> None:
    node.process("p")
    (row,) = tap.rows("select status::text, previous_status::text, status_changed_at > created_at from {processes}")
    assert row == ("running", "init", True)


def test_a_step_knows_events_of_the_steps_before(node: Node) -> None:
    node.process("p", Intent([Event(b"1"), Event(b"2")]))
    claimed = node.start("call", "p")
    assert claimed.process.last_event_id == 2
    node.finish(claimed, Intent([Event(b"3")]))
    assert node.start("call", "p").process.last_event_id == 3


def test_a_task_knows_which_one_wrote_the_last_event_before(node: Node) -> None:
    claimed = node.start("init", "p")
    assert claimed.last_writer is None
    node.finish(claimed, Intent([Event(b"1"), Event(b"2")]))
    node.finish(node.start("call", "p"))
    assert node.start("call", "p").last_writer == claimed.task.task_id


def test_a_batch_of_many_steps(node: Node, tap: Tap) -> None:
    names = [f"p{n:02}" for n in range(50)]
    answers = node.commit([request("init", name) for name in names]).requests
    steps = [step(started(a), Intent([Event(b"e%d" % n)] * (n % 3))) for n, a in enumerate(answers)]
    assert node.commit(completions=steps).completions == [Completed()] * 50
    found: dict[str, int] = dict(tap.rows("select process_id, count(*) from {events} group by 1"))
    assert found == {name: n % 3 for n, name in enumerate(names) if n % 3}
    assert tap.value("select count(*) from {running}") == 0


def test_requests_and_steps_of_one_process_share_a_batch(node: Node) -> None:
    """Requests are taken first, so a call that comes with the end of a step is its continuation."""
    claimed = node.start("init", "p")
    result = node.commit([request("call", "p", b"at once")], [step(claimed)])
    assert next_of(result.completions[0]).task.args == b"at once"


# Timers


@pytest.mark.parametrize(
    ("change", "old", "new"),
    [
        (TimerChange.KEEP, "waiting", []),
        (TimerChange.AT, "cancelled", ["waiting"]),
        (TimerChange.UNSET, "cancelled", []),
        (TimerChange.NOW, "cancelled", []),
    ],
)
def test_what_a_step_does_to_the_timer(node: Node, tap: Tap, change: TimerChange, old: str, new: list[str]) -> None:
    node.process("p")
    timer = node.timer("p", soon())
    at = now() if change is TimerChange.NOW else soon()
    fate = node.complete(replace(step(node.start("call", "p")), timer=Timer(change, at)))
    assert tap.task_status(timer.task_id) == old
    assert [status for task, _, status in tap.schedule("p") if task != timer.task_id] == new
    assert isinstance(fate, Completed)
    assert (fate.next is not None) == (change is TimerChange.NOW)
    assert len(fate.hints) == (change in (TimerChange.KEEP, TimerChange.AT))


def test_a_timer_of_now_runs_without_the_schedule(node: Node, tap: Tap) -> None:
    claimed = node.start("init", "p")
    due = now()
    after = next_of(node.complete(step(claimed, Intent([Event(b"e")], b"aux", {"a": 1}, action=SetTimer(due)))))
    assert (after.task.task_type, after.task.scheduled_time) == ("timeout", due)
    assert (after.process.aux_state, after.process.last_event_id) == (b"aux", 1)
    assert tap.schedule("p") == []
    assert tap.running("p") == after.task.task_id
    node.finish(after)
    assert tap.running("p") is None


def test_a_timer_that_is_due_on_a_node_whose_clock_is_ahead_waits(node: Node, tap: Tap) -> None:
    """Also where another item of the batch goes on at once, and one has no timer at all."""
    names = ["ahead", "due", "none"]
    claims = [started(a) for a in node.commit([request("init", name) for name in names]).requests]
    at = now() + timedelta(seconds=10)
    timers = [Timer(TimerChange.NOW, at), Timer(TimerChange.NOW, now()), Timer(TimerChange.KEEP)]
    steps = [replace(step(c, Intent([Event(b"e")])), timer=timer) for c, timer in zip(claims, timers, strict=True)]
    ahead, due, none = node.commit(completions=steps).completions
    assert isinstance(ahead, Completed)
    assert ahead.next is None
    assert [hint.at for hint in ahead.hints] == [at]
    assert tap.running("ahead") is None
    (early,) = node.claim(*ahead.hints)
    assert early == ahead.hints[0]
    assert next_of(due).task.task_type == "timeout"
    assert none == Completed()


def test_a_timer_waits_for_no_difference_that_clocks_usually_have(node: Node) -> None:
    at = now() + timedelta(seconds=0.5)
    fate = node.complete(replace(step(node.start("init", "p")), timer=Timer(TimerChange.NOW, at)))
    assert next_of(fate).task.scheduled_time == at


def test_a_timer_keeps_its_microseconds_and_the_context_of_its_step(node: Node, storage: PostgresStorage) -> None:
    at = soon().replace(microsecond=654321)
    fate = node.finish(node.start("init", "p"), Intent(action=SetTimer(at, remove=True)))
    assert [hint.at for hint in fate.hints] == [at]
    unit = storage.trace(NS, "p")[-1]
    assert (unit.task_type, unit.scheduled, unit.context) == ("remove", at, b"context")


def test_a_blocked_timer_that_came_due_runs_at_once(node: Node, tap: Tap) -> None:
    node.process("p")
    timer = node.timer("p", soon())
    claimed = node.start("call", "p")
    tap.due(timer.task_id)
    assert next_of(node.complete(step(claimed))).task.task_id == timer.task_id


def test_waiting_calls_go_before_a_timer_that_is_due_and_the_timer_stays_blocked(node: Node, tap: Tap) -> None:
    node.process("p")
    timer = node.timer("p", soon())
    claimed = node.start("call", "p")
    calls = [node.queue("call", "p"), node.queue("notify", "p")]
    tap.due(timer.task_id)
    for call in calls:
        claimed = next_of(node.complete(step(claimed)))
        assert claimed.task.task_id == call
        assert (timer.task_id, "timeout", "blocked") in tap.schedule("p")
    assert next_of(node.complete(step(claimed))).task.task_id == timer.task_id


def test_a_timer_of_now_waits_blocked_behind_calls(node: Node, tap: Tap) -> None:
    claimed = node.start("init", "p")
    call = node.queue("call", "p")
    after = next_of(node.complete(step(claimed, Intent(action=SetTimer(now())))))
    assert after.task.task_id == call
    ((timer, _, status),) = tap.schedule("p")
    assert status == "blocked"
    assert next_of(node.complete(step(after))).task.task_id == timer


def test_a_call_that_waits_blocks_a_timer_that_its_predecessor_set(node: Node, tap: Tap) -> None:
    claimed = node.start("init", "p")
    node.queue("call", "p")
    fate = node.complete(step(claimed, Intent(action=SetTimer(soon()))))
    assert isinstance(fate, Completed)
    assert fate.hints == ()
    assert [status for *_, status in tap.schedule("p")] == ["blocked"]


# Failures


def test_a_failed_call_breaks_its_process_and_answers_those_who_wait(node: Node, tap: Tap) -> None:
    node.process("p")
    timer = node.timer("p", soon())
    claimed = node.start("call", "p")
    calls = [node.queue("call", "p") for _ in range(2)]
    notice = node.queue("notify", "p")
    result = node.commit(completions=[step(claimed, BUSINESS)])
    assert result.completions == [Completed()]
    assert {e.task_id: refusal(e.answer) for e in result.ended} == dict.fromkeys(calls, ProcessInError)
    assert tap.schedule("p") == [(notice, "notify", "waiting")]
    assert [tap.task_status(t) for t in (claimed.task.task_id, timer.task_id, *calls)] == ["error", *["cancelled"] * 3]
    (row,) = tap.rows("select status::text, previous_status::text, detail, corrupted_by from {processes}")
    assert row == ("error", "running", "no", claimed.task.task_id)


def test_the_answer_of_a_cancelled_call_is_kept(node: Node, storage: PostgresStorage) -> None:
    claimed = node.start("init", "p")
    call = node.queue("call", "p", key="k")
    node.finish(claimed, BUSINESS)
    answer = storage.results(NS, [call])[call]
    assert refusal(answer) is ProcessInError
    assert refusal(node.ask("call", "p", key="k")) is ProcessInError


def test_a_failed_repair_leaves_the_process_as_it_was_and_the_next_repair_runs(node: Node, tap: Tap) -> None:
    broken = node.broken("p")
    claimed = node.start("repair", "p")
    second = node.queue("repair", "p")
    before = tap.tables("processes")
    assert next_of(node.complete(step(claimed, BUSINESS))).task.task_id == second
    assert tap.tables("processes") == before
    assert before["processes"][0]["corrupted_by"] == broken


def test_repairs_that_wait_end_when_the_process_runs_again(node: Node, tap: Tap) -> None:
    node.broken("p")
    claimed = node.start("repair", "p")
    second = node.queue("repair", "p")
    result = node.commit(completions=[step(claimed)])
    assert {e.task_id: refusal(e.answer) for e in result.ended} == {second: ProcessRunning}
    assert tap.status("p") == "running"
    assert tap.schedule("p") == []


def test_a_notification_goes_on_after_the_repair(node: Node, tap: Tap) -> None:
    node.process("p")
    claimed = node.start("call", "p")
    notice = node.queue("notify", "p")
    node.finish(claimed, BUSINESS)
    assert next_of(node.complete(step(node.start("repair", "p")))).task.task_id == notice


def test_a_timer_is_tried_again_later(node: Node, tap: Tap, storage: PostgresStorage) -> None:
    node.process("p")
    claimed = node.due_timer("p")
    fate = node.finish(claimed, TRANSIENT)
    (hint,) = fate.hints
    assert (hint.task_id, fate.next) == (claimed.task.task_id, None)
    assert tap.schedule("p") == [(hint.task_id, "timeout", "waiting")]
    unit = storage.trace(NS, "p")[-1]
    assert (unit.task_id, unit.status, unit.retry_attempts, unit.retry_interval) == (hint.task_id, "waiting", 1, 3600.0)
    tap.due(hint.task_id)
    again = node.claim_one(hint)
    assert (again.task.attempts, again.task.args, again.task.context) == (1, claimed.task.args, claimed.task.context)


def test_a_timer_that_is_tried_again_is_blocked_while_a_call_runs(node: Node, tap: Tap) -> None:
    node.process("p")
    claimed = node.due_timer("p")
    call = node.queue("call", "p")
    after = next_of(node.complete(step(claimed, TRANSIENT)))
    assert after.task.task_id == call
    assert tap.schedule("p") == [(claimed.task.task_id, "timeout", "blocked")]
    (hint,) = node.finish(after).hints
    assert hint.task_id == claimed.task.task_id


def test_a_notification_that_is_tried_again_does_not_hold_calls_up(node: Node, tap: Tap) -> None:
    node.process("p")
    claimed = node.start("notify", "p")
    call = node.queue("call", "p")
    after = next_of(node.complete(step(claimed, TRANSIENT)))
    assert after.task.task_id == call
    assert tap.schedule("p") == [(claimed.task.task_id, "notify", "waiting")]
    assert node.finish(after).next is None
    assert node.start("call", "p").task.args == b""


def test_a_retry_keeps_the_metadata_of_its_task(node: Node, tap: Tap) -> None:
    node.broken("p", TaskType.TIMEOUT)
    claimed = node.start("simple_repair", "p")
    (hint,) = node.finish(claimed, TRANSIENT).hints
    tap.due(hint.task_id)
    assert node.claim_one(hint).task.metadata == {"kind": "simple_repair"}


@pytest.mark.parametrize("failure", [DEFECT, BUSINESS])
def test_an_init_that_fails_leaves_a_broken_process(node: Node, tap: Tap, failure: Failure) -> None:
    node.finish(node.start("init", "p"), failure)
    assert tap.rows("select status::text, previous_status::text, detail from {processes}") == [
        ("error", "init", failure.reason)
    ]


# Removal


def test_a_step_can_remove_its_process(node: Node, tap: Tap) -> None:
    node.process("p", Intent([Event(b"e")], action=SetTimer(soon())))
    node.process("q", Intent([Event(b"e")], action=SetTimer(soon())))
    others = {name: [r for r in rows if r["process_id"] == "q"] for name, rows in tap.tables().items()}
    claimed = node.start("call", "p")
    call = node.queue("call", "p")
    result = node.commit(completions=[step(claimed, Intent([Event(b"last")], action=Remove()))])
    assert result.completions == [Completed(removed=True)]
    assert {e.task_id: refusal(e.answer) for e in result.ended} == {call: ProcessNotFound}
    assert tap.tables() == others


def test_a_removal_goes_before_waiting_calls_but_lets_the_step_end(node: Node, tap: Tap) -> None:
    node.process("p")
    claimed = node.start("call", "p")
    call, removal = node.queue("call", "p"), node.queue("remove", "p", key="k")
    result = node.commit(completions=[step(claimed, Intent([Event(b"e")], action=SetTimer(soon())))])
    assert result.completions == [Completed(removed=True)]
    assert {e.task_id for e in result.ended} == {call, removal}
    assert node.ask("remove", "p", key="k") == Answered(None, removal)
    (row,) = tap.tables("tasks")["tasks"]
    assert (row["task_id"], row["status"]) == (removal, "finished")
    assert not any(tap.tables("processes", "schedule", "running", "events").values())


@pytest.mark.parametrize("result", [BUSINESS, TRANSIENT])
def test_a_removal_also_follows_a_step_that_failed(node: Node, tap: Tap, result: Failure) -> None:
    node.process("p")
    claimed = node.due_timer("p")
    node.queue("remove", "p")
    assert node.complete(step(claimed, result)) == Completed(removed=True)
    assert not any(tap.tables().values())


def test_some_processes_of_a_batch_are_removed(node: Node, tap: Tap) -> None:
    answers = node.commit([request("init", name) for name in "abc"]).requests
    actions: list[Action | None] = [Remove(), SetTimer(soon()), None]
    steps = [step(started(a), Intent([Event(b"e")], action=action)) for a, action in zip(answers, actions, strict=True)]
    fates = node.commit(completions=steps).completions
    assert [isinstance(f, Completed) and f.removed for f in fates] == [True, False, False]
    assert tap.rows("select process_id from {events} order by 1") == [("b",), ("c",)]
    assert tap.rows("select process_id from {schedule}") == [("b",)]


# The fence


def _stale_token(claimed: Claimed) -> Claimed:
    return replace(claimed, task=replace(claimed.task, token=next_token()))


INTENTS = [
    Intent([Event(b"e")], b"aux", {"a": 1}, b"response"),
    Intent(action=SetTimer(soon())),
    Intent(action=SetTimer(now())),
    Intent(action=UnsetTimer()),
    Intent(action=Remove()),
    BUSINESS,
    TRANSIENT,
]


@pytest.mark.parametrize("result", INTENTS)
def test_a_stale_token_changes_nothing(node: Node, tap: Tap, result: Intent | Failure) -> None:
    node.process("p")
    node.timer("p", soon())
    claimed = node.start("call", "p")
    node.queue("call", "p")
    before = tap.tables()
    assert node.complete(step(_stale_token(claimed), result)) == Lost(None)
    assert tap.tables() == before


@pytest.mark.parametrize("result", INTENTS)
def test_another_owner_changes_nothing(node: Node, other: Node, tap: Tap, result: Intent | Failure) -> None:
    node.process("p")
    claimed = node.start("call", "p")
    before = tap.tables()
    assert other.complete(step(claimed, result)) == Lost(None)
    assert tap.tables() == before


def test_a_step_that_was_taken_over_changes_nothing(
    node: Node, other: Node, tap: Tap, storage: PostgresStorage
) -> None:
    node.process("p")
    claimed = node.start("call", "p")
    tap.age("p", 100)
    (zombie,) = storage.take_over(NS, other.epoch, 50, 1000, [], [next_token()])
    assert node.complete(step(claimed, Intent([Event(b"late")]))) == Lost(None)
    assert other.finish(zombie, Intent([Event(b"in time")], response=b"done")) == Completed()
    assert tap.rows("select payload from {events}") == [(b"in time",)]
    assert node.complete(step(claimed)) == Lost(Answered(b"done", claimed.task.task_id))


def test_what_is_lost_does_not_harm_the_rest_of_its_batch(node: Node, tap: Tap) -> None:
    answers = node.commit([request("init", name) for name in "abcd"]).requests
    for name in "abcd":
        node.queue("call", name)
    claims = [started(a) for a in answers]
    claims[1], claims[3] = _stale_token(claims[1]), _stale_token(claims[3])
    untouched = [row for rows in tap.tables().values() for row in rows if row["process_id"] in "bd"]
    fates = node.commit(
        completions=[step(c, Intent([Event(b"e")], action=SetTimer(soon()))) for c in claims]
    ).completions
    assert fates[1] == fates[3] == Lost(None)
    assert [next_of(fates[n]).task.process_id for n in (0, 2)] == ["a", "c"]
    assert [row for rows in tap.tables().values() for row in rows if row["process_id"] in "bd"] == untouched
    assert tap.rows("select process_id from {events} order by 1") == [("a",), ("c",)]


def test_a_process_that_is_gone_is_lost(node: Node, tap: Tap) -> None:
    node.process("p")
    claimed = node.start("call", "p")
    tap.rows("select {erase}(false, array['p'])")
    assert node.complete(step(claimed)) == Lost(None)
    assert not any(tap.tables().values())


def test_a_node_without_a_lease_changes_nothing(node: Node, tap: Tap) -> None:
    node.process("p")
    timer = node.timer("p", soon())
    claimed = node.start("call", "p")
    before = tap.tables()
    node.die()
    for work in (
        lambda: node.complete(step(claimed, Intent([Event(b"e")]))),
        lambda: node.ask("init", "q"),
        lambda: node.claim(timer),
    ):
        with pytest.raises(LeaseLost):
            work()
    assert tap.tables() == before


# Once more, after a lost answer


def _call(node: Node) -> Claimed:
    node.process("p")
    return node.start("call", "p", key="k")


def _next_call(node: Node) -> Completion:
    claimed = _call(node)
    node.queue("call", "p", b"args")
    return step(claimed, Intent([Event(b"e")], b"aux"))


def _next_timer(node: Node) -> Completion:
    return step(_call(node), Intent([Event(b"e")], action=SetTimer(now())))


def _blocked_timer(node: Node) -> Completion:
    claimed = _call(node)
    node.queue("call", "p", b"args")
    return step(claimed, Intent(action=SetTimer(soon())))


@pytest.mark.parametrize("make", [_next_call, _next_timer, _blocked_timer])
def test_a_step_that_is_sent_again_goes_on_with_the_same_task(
    node: Node, tap: Tap, make: Callable[[Node], Completion]
) -> None:
    completion = make(node)
    first = node.complete(completion)
    before = tap.tables()
    second = node.complete(completion, again=True)
    assert next_of(second) == next_of(first)
    assert tap.tables() == before
    node.finish(next_of(second))


@pytest.mark.parametrize(
    ("result", "answer"),
    [
        (Intent([Event(b"e")], response=b"done"), Answered(b"done")),
        (Intent([Event(b"e")], action=SetTimer(soon())), Answered(None)),
        (Intent(action=UnsetTimer()), Answered(None)),
        (BUSINESS, Refused(ProcessorError("no"))),
    ],
)
def test_a_step_that_is_sent_again_and_had_ended_is_lost_with_its_answer(
    node: Node, tap: Tap, result: Intent | Failure, answer: Answered | Refused
) -> None:
    completion = step(_call(node), result)
    assert isinstance(node.complete(completion), Completed)
    before = tap.tables()
    fate = node.complete(completion, again=True)
    assert isinstance(fate, Lost)
    assert tap.tables() == before
    match answer, fate.answer:
        case Answered(response), Answered(found):
            assert found == response
        case Refused(error), Refused(found_error):
            assert str(found_error) == str(error)
        case _:
            pytest.fail(f"{fate}")


def test_a_retry_that_is_sent_again_is_lost_without_an_answer(node: Node, tap: Tap) -> None:
    node.process("p")
    completion = step(node.due_timer("p"), TRANSIENT)
    assert isinstance(node.complete(completion), Completed)
    before = tap.tables()
    assert node.complete(completion, again=True) == Lost(None)
    assert tap.tables() == before


def test_a_removal_that_is_sent_again_has_been_done(node: Node) -> None:
    completion = step(_call(node), Intent(action=Remove()))
    assert node.complete(completion) == Completed(removed=True)
    assert node.complete(completion, again=True) == Completed(removed=True)


def test_a_whole_batch_that_is_sent_again(node: Node, tap: Tap) -> None:
    claimed = node.start("init", "p")
    batch = ([request("call", "p", b"1"), request("init", "q")], [step(claimed, Intent([Event(b"e")]))])
    first = node.commit(*batch)
    before = tap.tables()
    second = node.commit(*batch, again=True)
    assert tap.tables() == before
    assert second.completions == first.completions
    assert started(second.requests[1]) == started(first.requests[1])
    # The call had to wait when it was taken; now it runs, by the step of the same batch.
    assert second.requests[0].task_id == first.requests[0].task_id  # type: ignore[union-attr]


# Poison


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: replace(c, metadata={"a": "\0"}),
        lambda c: replace(c, events=[replace(c.events[0], metadata={"a": "\0"})]),
        lambda c: replace(c, events=[c.events[0], c.events[0]]),
        lambda c: replace(c, process=replace(c.process, detail="\0")),
        lambda c: replace(c, process=replace(c.process, status="no such status")),
        lambda c: replace(c, metadata={"a": float("nan")}),
        lambda c: replace(c, metadata={"a": object()}),
        lambda c: replace(c, metadata={"a": "\ud800"}),
        lambda c: replace(c, process=replace(c.process, detail="\ud800")),
        lambda c: replace(c, events=[replace(c.events[0], event_id=2**63)]),
        lambda c: replace(c, events=[replace(c.events[0], timestamp=datetime(2020, 1, 1))]),  # noqa: DTZ001
    ],
    ids=[
        *("metadata", "event metadata", "event ids", "detail", "status", "not a number"),
        *("not JSON", "half a character", "half a character in the detail", "huge id", "naive time"),
    ],
)
def test_poison_is_rejected_and_nothing_of_its_batch_is_stored(
    node: Node, tap: Tap, spoil: Callable[[Completion], Completion]
) -> None:
    claims = [started(a) for a in node.commit([request("init", "a"), request("init", "b")]).requests]
    good, bad = (step(c, Intent([Event(b"e")])) for c in claims)
    before = tap.tables()
    with pytest.raises(StorageRejected):
        node.commit([request("init", "c")], [good, spoil(bad)])
    assert tap.tables() == before
    assert node.complete(good) == Completed()


@pytest.mark.parametrize("process_id", ["\0", "x" * 257])
def test_a_request_that_does_not_fit_is_rejected(node: Node, tap: Tap, process_id: str) -> None:
    with pytest.raises(StorageRejected):
        node.commit([request("init", "p"), request("init", process_id)])
    assert not any(tap.tables().values())


# Together


def test_overlapping_batches_in_opposite_order_do_not_deadlock(node: Node, other: Node, tap: Tap) -> None:
    names = [f"p{n}" for n in range(8)]
    for name in names:
        node.process(name)

    def work(each: Node, order: list[str]) -> None:
        steps: list[Completion] = []
        for _ in range(15):
            result = each.commit([request("call", name) for name in order], steps)
            steps = _steps(result.requests, result.completions)
        while steps:
            steps = _steps([], each.commit(completions=steps).completions)

    race(lambda: work(node, names), lambda: work(other, names[::-1]))
    assert tap.rows("select status::text, count(*) from {tasks} where task_type = 'call' group by 1") == [
        ("finished", 2 * 15 * len(names))
    ]
    assert tap.tables("running", "schedule") == {"running": [], "schedule": []}
    assert tap.value("select min(n) from (select count(*) as n from {events} group by process_id) c") == 30


def _steps(requests: object, completions: object) -> list[Completion]:
    found = [a.started for a in requests if a.started]  # type: ignore[attr-defined]
    found += [next_of(c) for c in completions if c.next]  # type: ignore[attr-defined]
    return [step(c, Intent([Event(b"e")])) for c in found]
