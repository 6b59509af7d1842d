"""What a step, a failure or a zombie means for its process, as tables (docs/design.md, "A step")."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from types import MappingProxyType
from typing import Any

import pytest

from progressor.checks import LARGEST_BINARY
from progressor.config import RetryPolicy
from progressor.engine import lifecycle
from progressor.engine.history import History
from progressor.engine.lifecycle import Failure, Kind
from progressor.engine.ports import (
    BrokenTask,
    Claimed,
    Completion,
    Notice,
    Outcome,
    Refused,
    Task,
    Timer,
    TimerChange,
)
from progressor.errors import ProcessorError
from progressor.model import (
    Action,
    Answered,
    Event,
    Intent,
    Process,
    ProcessStatus,
    Remove,
    SetTimer,
    TaskType,
    UnsetTimer,
)

NOW = datetime(2026, 5, 4, 12, 0, 0, 123456, tzinfo=UTC)
BEFORE = NOW - timedelta(days=1)
NEXT_TOKEN = 77
TASK_ID = 40
CONTEXT = b"the context of the request"
POLICY = RetryPolicy(3.0, 2.0, 10.0, 4, frozenset({"hopeless", "ValueError"}))
BROKEN = BrokenTask(TaskType.TIMEOUT, b"old args", b"old context")

WITH_CALLER = (TaskType.INIT, TaskType.CALL, TaskType.REPAIR)
WITHOUT_CALLER = (TaskType.TIMEOUT, TaskType.REMOVE, TaskType.NOTIFY)
STATUS = {TaskType.INIT: "init", TaskType.REPAIR: "error"}


def claim(
    task_type: TaskType, *, status: str | None = None, attempts: int = 0, broken: BrokenTask | None = None
) -> Claimed:
    status = status or STATUS.get(task_type, "running")
    task = Task("p", TASK_ID, task_type, b"args", CONTEXT, {"k": 1}, BEFORE, attempts, owner=5, token=6)
    process = Process(
        "p",
        status,
        aux_state=b"aux",
        metadata={"m": 1},
        last_event_id=3,
        created_at=BEFORE,
        previous_status="init",
        status_changed_at=BEFORE,
    )
    if status == "error":
        process = replace(process, detail="old reason", corrupted_by=9, previous_status="running")
    return Claimed(task, process, History(), broken)


def succeed(claimed: Claimed, intent: Intent) -> Completion:
    return lifecycle.decide(claimed, intent, POLICY, NOW, NEXT_TOKEN)


def fail(
    claimed: Claimed, kind: Kind, reason: str = "reason", exception_class: str | None = None, **policy: Any
) -> Completion:
    failure = Failure(kind, reason, exception_class)
    return lifecycle.decide(claimed, failure, replace(POLICY, **policy), NOW, NEXT_TOKEN)


def recover(claimed: Claimed, interrupted: Collection[TaskType] = (), **policy: Any) -> Claimed | Completion:
    return lifecycle.recover(claimed, replace(POLICY, **policy), interrupted, NOW, NEXT_TOKEN)


def assert_broken(completion: Completion, claimed: Claimed, reason: str) -> None:
    """The process went to error because of this task, and nothing else changed."""
    assert completion.outcome is Outcome.ERROR
    assert completion.process == replace(
        claimed.process,
        status=ProcessStatus.ERROR,
        detail=reason,
        corrupted_by=TASK_ID,
        previous_status=claimed.process.status,
        status_changed_at=NOW,
    )
    assert_nothing_stored(completion)
    assert_refused(completion, reason)


def assert_nothing_stored(completion: Completion) -> None:
    assert not completion.events
    assert completion.aux_state is None
    assert completion.metadata is None
    assert completion.timer.change is TimerChange.KEEP


def assert_refused(completion: Completion, reason: str) -> None:
    assert isinstance(completion.answer, Refused)
    assert type(completion.answer.error) is ProcessorError
    assert completion.answer.error.reason == str(completion.answer.error) == reason


# A step that succeeds


@pytest.mark.parametrize("task_type", TaskType)
def test_a_completion_carries_the_fence_and_what_the_next_step_needs(task_type: TaskType) -> None:
    claimed = claim(task_type)
    completions = [succeed(claimed, Intent()), *(fail(claimed, kind) for kind in Kind)]
    for completion in completions:
        assert completion.task == claimed.task
        assert completion.next_token == NEXT_TOKEN
        assert completion.history is claimed.history
        assert completion.before == claimed.process


@pytest.mark.parametrize("response", [None, b"", b"response"])
@pytest.mark.parametrize("task_type", TaskType)
def test_success_is_answered(task_type: TaskType, response: bytes | None) -> None:
    completion = succeed(claim(task_type, attempts=2), Intent(response=response))
    assert completion.outcome is Outcome.FINISHED
    assert completion.answer == Answered(response, TASK_ID)
    assert (completion.attempts, completion.retry_interval) == (2, 0.0)


@pytest.mark.parametrize(
    ("task_type", "status"),
    [
        (TaskType.INIT, "init"),
        (TaskType.REPAIR, "error"),
        (TaskType.TIMEOUT, "error"),  # a simple repair runs the timer of a broken process
        (TaskType.REMOVE, "error"),
    ],
)
def test_a_good_step_brings_the_process_into_running(task_type: TaskType, status: str) -> None:
    process = succeed(claim(task_type, status=status), Intent()).process
    assert process.status == ProcessStatus.RUNNING
    assert (process.detail, process.corrupted_by) == (None, None)
    assert (process.previous_status, process.status_changed_at) == (status, NOW)


@pytest.mark.parametrize("task_type", [TaskType.CALL, TaskType.NOTIFY, TaskType.TIMEOUT, TaskType.REMOVE])
def test_a_running_process_keeps_the_time_of_its_status(task_type: TaskType) -> None:
    claimed = claim(task_type)
    assert succeed(claimed, Intent()).process == claimed.process


def test_what_is_left_out_is_unchanged() -> None:
    completion = succeed(claim(TaskType.CALL), Intent())
    assert (completion.aux_state, completion.metadata) == (None, None)
    assert (completion.process.aux_state, completion.process.metadata) == (b"aux", {"m": 1})


@pytest.mark.parametrize(("aux_state", "metadata"), [(b"", {}), (b"new", {"n": [2]})])
def test_what_is_given_is_overwritten_even_by_something_empty(aux_state: bytes, metadata: dict[str, Any]) -> None:
    completion = succeed(claim(TaskType.CALL), Intent(aux_state=aux_state, metadata=metadata))
    assert (completion.aux_state, completion.metadata) == (aux_state, metadata)
    assert (completion.process.aux_state, completion.process.metadata) == (aux_state, metadata)


# Its timer


@pytest.mark.parametrize("task_type", TaskType)
@pytest.mark.parametrize(
    ("action", "timer"),
    [
        (None, Timer(TimerChange.KEEP)),
        (UnsetTimer(), Timer(TimerChange.UNSET)),
        (Remove(), Timer(TimerChange.REMOVE)),
        (SetTimer(NOW + timedelta(microseconds=1)), (TimerChange.AT, TaskType.TIMEOUT)),
        (SetTimer(NOW), (TimerChange.NOW, TaskType.TIMEOUT)),
        (SetTimer(BEFORE), (TimerChange.NOW, TaskType.TIMEOUT)),
        (SetTimer(NOW + timedelta(days=1), remove=True), (TimerChange.AT, TaskType.REMOVE)),
        (SetTimer(BEFORE, remove=True), (TimerChange.NOW, TaskType.REMOVE)),
    ],
)
def test_the_action_says_what_becomes_of_the_timer(
    task_type: TaskType, action: Action | None, timer: Timer | tuple[TimerChange, TaskType]
) -> None:
    if isinstance(timer, tuple):  # the new task gets the context of the request, but no arguments
        assert isinstance(action, SetTimer)
        timer = Timer(timer[0], action.at, timer[1], args=b"", context=CONTEXT)
    assert succeed(claim(task_type), Intent(action=action)).timer == timer


def test_a_timer_is_compared_by_instant_whatever_its_zone() -> None:
    local = NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert succeed(claim(TaskType.CALL), Intent(action=SetTimer(local))).timer.change is TimerChange.NOW


def test_the_remove_task_removes() -> None:
    assert succeed(claim(TaskType.REMOVE), lifecycle.REMOVED).timer == Timer(TimerChange.REMOVE)


# A repair


@pytest.mark.parametrize("broken_type", [TaskType.TIMEOUT, TaskType.REMOVE])
def test_a_repair_without_an_action_sets_the_task_again_that_broke_the_process(broken_type: TaskType) -> None:
    broken = replace(BROKEN, task_type=broken_type)
    completion = succeed(claim(TaskType.REPAIR, broken=broken), Intent(events=[Event(b"e")], response=b"r"))
    assert completion.timer == Timer(TimerChange.NOW, NOW, broken_type, b"old args", b"old context")
    assert completion.attempts == 0
    assert completion.process.status == ProcessStatus.RUNNING
    assert [e.event_id for e in completion.events] == [4]


@pytest.mark.parametrize("action", [UnsetTimer(), Remove(), SetTimer(BEFORE), SetTimer(NOW + timedelta(1))])
def test_the_action_of_a_repair_goes_before_the_broken_task(action: Action) -> None:
    intent = Intent(action=action)
    with_broken = succeed(claim(TaskType.REPAIR, broken=BROKEN), intent)
    assert with_broken.timer == succeed(claim(TaskType.REPAIR), intent).timer


def test_a_repair_of_a_process_that_a_call_broke_sets_nothing() -> None:
    assert succeed(claim(TaskType.REPAIR, broken=None), Intent()).timer == Timer(TimerChange.KEEP)


@pytest.mark.parametrize("task_type", [t for t in TaskType if t is not TaskType.REPAIR])
def test_only_a_repair_sets_the_broken_task_again(task_type: TaskType) -> None:
    assert succeed(claim(task_type, broken=BROKEN), Intent()).timer == Timer(TimerChange.KEEP)


# Event ids


@pytest.mark.parametrize("ids", [[], [None], [None, None], [4], [4, 5, 6], [None, 5], [4, None, 6]])
def test_event_ids_continue_the_history(ids: Sequence[int | None]) -> None:
    events = [Event(b"%d" % n, {"n": n}, event_id) for n, event_id in enumerate(ids)]
    completion = succeed(claim(TaskType.CALL), Intent(events=events))
    assert completion.events == tuple(
        Event(b"%d" % n, {"n": n}, event_id=4 + n, timestamp=NOW, task_id=TASK_ID) for n in range(len(ids))
    )
    assert completion.process.last_event_id == 3 + len(ids)


def test_an_event_keeps_the_time_that_it_is_given_but_not_the_task() -> None:
    (event,) = succeed(claim(TaskType.CALL), Intent(events=[Event(b"", timestamp=BEFORE, task_id=1)])).events
    assert (event.timestamp, event.task_id) == (BEFORE, TASK_ID)


BAD_IDS = [[3], [5], [0], [1], [-1], [4, 4], [4, 6], [5, 4], [None, 4], [None, 6], [4, 5, 5]]


@pytest.mark.parametrize("ids", BAD_IDS)
@pytest.mark.parametrize("task_type", [t for t in TaskType if t is not TaskType.REPAIR])
def test_event_ids_that_do_not_continue_the_history_break_the_process(
    task_type: TaskType, ids: Sequence[int | None]
) -> None:
    claimed = claim(task_type)
    assert_broken(succeed(claimed, intent_with_ids(ids)), claimed, "bad_event_id")


@pytest.mark.parametrize("ids", BAD_IDS)
def test_bad_event_ids_of_a_repair_leave_the_process_as_it_was(ids: Sequence[int | None]) -> None:
    claimed = claim(TaskType.REPAIR, broken=BROKEN)
    completion = succeed(claimed, intent_with_ids(ids))
    assert completion.process == claimed.process
    assert_nothing_stored(completion)
    assert_refused(completion, "bad_event_id")


def intent_with_ids(ids: Sequence[int | None]) -> Intent:
    events = [Event(b"", event_id=event_id) for event_id in ids]
    return Intent(events, b"new", {"new": 1}, b"response", SetTimer(BEFORE))


# A step that fails


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("task_type", [TaskType.INIT, TaskType.CALL])
def test_a_failed_init_or_call_breaks_the_process_and_is_never_retried(task_type: TaskType, kind: Kind) -> None:
    claimed = claim(task_type)
    completion = fail(claimed, kind, "why")
    assert_broken(completion, claimed, "why")
    assert completion.attempts == 1


@pytest.mark.parametrize("kind", Kind)
def test_a_failed_repair_leaves_the_process_as_it_was(kind: Kind) -> None:
    claimed = claim(TaskType.REPAIR, broken=BROKEN)
    completion = fail(claimed, kind, "why")
    assert completion.outcome is Outcome.ERROR
    assert completion.process == claimed.process
    assert completion.process.detail == "old reason"
    assert_nothing_stored(completion)
    assert_refused(completion, "why")


@pytest.mark.parametrize("kind", [Kind.BUSINESS, Kind.TRANSIENT, Kind.STEP_TIMEOUT])
@pytest.mark.parametrize("task_type", WITHOUT_CALLER)
def test_a_task_without_a_caller_is_tried_again(task_type: TaskType, kind: Kind) -> None:
    claimed = claim(task_type)
    completion = fail(claimed, kind)
    assert completion.outcome is Outcome.RETRY
    assert completion.answer is None
    assert completion.process == claimed.process
    assert_nothing_stored(completion)
    assert (completion.attempts, completion.retry_interval) == (1, 3.0)
    assert completion.timer == Timer(TimerChange.KEEP, NOW + timedelta(seconds=3), task_type, b"args", CONTEXT)


@pytest.mark.parametrize("task_type", WITHOUT_CALLER)
def test_a_defect_is_not_tried_again(task_type: TaskType) -> None:
    claimed = claim(task_type)
    assert_broken(fail(claimed, Kind.DEFECT, "why"), claimed, "why")


@pytest.mark.parametrize(("attempts", "wait"), [(0, 3.0), (1, 6.0), (2, 10.0)])
def test_the_delay_grows_to_its_cap(attempts: int, wait: float) -> None:
    completion = fail(claim(TaskType.TIMEOUT, attempts=attempts), Kind.TRANSIENT)
    assert completion.outcome is Outcome.RETRY
    assert (completion.attempts, completion.retry_interval) == (attempts + 1, wait)
    assert completion.timer.at == NOW + timedelta(seconds=wait)


@pytest.mark.parametrize("kind", [Kind.BUSINESS, Kind.TRANSIENT, Kind.STEP_TIMEOUT])
@pytest.mark.parametrize("task_type", WITHOUT_CALLER)
@pytest.mark.parametrize(("attempts", "max_attempts"), [(3, 4), (4, 4), (0, 1)])
def test_when_the_attempts_are_used_up_the_process_breaks(
    task_type: TaskType, kind: Kind, attempts: int, max_attempts: int
) -> None:
    claimed = claim(task_type, attempts=attempts)
    completion = fail(claimed, kind, "why", max_attempts=max_attempts)
    assert_broken(completion, claimed, "why")
    assert completion.attempts == attempts + 1


@pytest.mark.parametrize(
    ("reason", "exception_class"),
    [("hopeless", "ProcessorError"), ("anything", "ValueError"), ("hopeless", None), ("ValueError", None)],
)
@pytest.mark.parametrize("kind", [Kind.BUSINESS, Kind.TRANSIENT, Kind.STEP_TIMEOUT])
@pytest.mark.parametrize("task_type", WITHOUT_CALLER)
def test_a_non_retryable_error_breaks_the_process_at_once(
    task_type: TaskType, kind: Kind, reason: str, exception_class: str | None
) -> None:
    claimed = claim(task_type)
    assert_broken(fail(claimed, kind, reason, exception_class), claimed, reason)


@pytest.mark.parametrize("reason", ["hopeless, or nearly", "Hopeless", "hope", ""])
def test_reasons_are_compared_whole(reason: str) -> None:
    assert fail(claim(TaskType.TIMEOUT), Kind.BUSINESS, reason, "ProcessorError").outcome is Outcome.RETRY


def test_a_simple_repair_that_fails_again_breaks_on_the_new_task_but_the_status_did_not_change() -> None:
    claimed = claim(TaskType.TIMEOUT, status="error")
    completion = fail(claimed, Kind.DEFECT, "why")
    assert completion.process == replace(claimed.process, detail="why", corrupted_by=TASK_ID)
    assert (completion.process.previous_status, completion.process.status_changed_at) == ("running", BEFORE)


def test_a_simple_repair_that_is_tried_again_stays_in_error() -> None:
    claimed = claim(TaskType.TIMEOUT, status="error")
    assert fail(claimed, Kind.TRANSIENT).process == claimed.process


# Zombies


@pytest.mark.parametrize("task_type", WITHOUT_CALLER)
@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_an_interrupted_task_without_a_caller_runs_again_and_the_attempt_counts(
    task_type: TaskType, attempts: int
) -> None:
    claimed = claim(task_type, attempts=attempts)
    assert recover(claimed) is claimed
    assert fail(claimed, Kind.TRANSIENT).attempts == attempts + 1


@pytest.mark.parametrize("task_type", WITHOUT_CALLER)
@pytest.mark.parametrize(("attempts", "max_attempts"), [(4, 4), (5, 4), (1, 1)])
def test_an_interrupted_task_whose_attempts_are_used_up_breaks_the_process(
    task_type: TaskType, attempts: int, max_attempts: int
) -> None:
    claimed = claim(task_type, attempts=attempts)
    completion = recover(claimed, max_attempts=max_attempts)
    assert isinstance(completion, Completion)
    assert_broken(completion, claimed, "zombie detected")
    assert (completion.attempts, completion.next_token) == (attempts, NEXT_TOKEN)


@pytest.mark.parametrize("task_type", [TaskType.INIT, TaskType.CALL])
@pytest.mark.parametrize("interrupted", [(), (TaskType.REPAIR,)])
def test_an_interrupted_init_or_call_breaks_the_process(task_type: TaskType, interrupted: Collection[TaskType]) -> None:
    claimed = claim(task_type, attempts=1)
    completion = recover(claimed, interrupted)
    assert isinstance(completion, Completion)
    assert_broken(completion, claimed, "zombie detected")
    assert completion.attempts == 1


def test_an_interrupted_repair_fails_like_any_other() -> None:
    claimed = claim(TaskType.REPAIR, attempts=1)
    completion = recover(claimed)
    assert isinstance(completion, Completion)
    assert completion.process == claimed.process
    assert_refused(completion, "zombie detected")


@pytest.mark.parametrize("task_type", WITH_CALLER)
def test_an_interrupted_task_runs_again_when_the_namespace_says_so(task_type: TaskType) -> None:
    claimed = claim(task_type, attempts=1)
    assert recover(claimed, frozenset({task_type})) is claimed
    given_up = recover(claim(task_type, attempts=4), frozenset({task_type}))
    assert isinstance(given_up, Completion)
    assert_refused(given_up, "zombie detected")


# What a processor returns, and what the database refuses


SOUND: dict[str, Intent] = {
    "nothing": Intent(),
    "everything": Intent([Event(b"", {"a": 1}, 4, NOW)], b"", {}, b"", SetTimer(NOW)),
    "read-only mappings": Intent((Event(b"", MappingProxyType({})),), metadata=MappingProxyType({})),
}
UNSOUND: dict[str, Any] = {
    "no intent": None,
    "bytes": b"response",
    "the class": Intent,
    "text as aux_state": Intent(aux_state="text"),  # type: ignore[arg-type]
    "text as response": Intent(response="text"),  # type: ignore[arg-type]
    "a list as metadata": Intent(metadata=[1]),  # type: ignore[arg-type]
    "an instant as action": Intent(action=NOW),  # type: ignore[arg-type]
    "the class of an action": Intent(action=Remove),  # type: ignore[arg-type]
    "a timer without a zone": Intent(action=SetTimer(NOW.replace(tzinfo=None))),
    "a timer in seconds": Intent(action=SetTimer(60)),  # type: ignore[arg-type]
    "no events": Intent(events=None),  # type: ignore[arg-type]
    "events that can be read once": Intent(events=iter([Event(b"")])),  # type: ignore[arg-type]
    "text as events": Intent(events="events"),  # type: ignore[arg-type]
    "a payload as event": Intent(events=[b"payload"]),  # type: ignore[list-item]
    "text as payload": Intent(events=[Event("text")]),  # type: ignore[arg-type]
    "no event metadata": Intent(events=[Event(b"", None)]),  # type: ignore[arg-type]
    "text as event id": Intent(events=[Event(b"", event_id="4")]),  # type: ignore[arg-type]
    "an event without a zone": Intent(events=[Event(b"", timestamp=NOW.replace(tzinfo=None))]),
    "text as event time": Intent(events=[Event(b"", timestamp="now")]),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("intent", SOUND.values(), ids=SOUND.keys())
def test_a_sound_intent_is_taken(intent: Intent) -> None:
    assert lifecycle.checked(intent) is intent


@pytest.mark.parametrize("result", UNSOUND.values(), ids=UNSOUND.keys())
def test_a_result_of_another_type_is_a_defect(result: object) -> None:
    assert lifecycle.checked(result) is lifecycle.UNSUPPORTED


@pytest.mark.parametrize("task_type", [TaskType.CALL, TaskType.TIMEOUT])
def test_a_completion_that_the_database_refuses_becomes_a_defect_of_its_step(task_type: TaskType) -> None:
    claimed = claim(task_type, attempts=2)
    completion = succeed(claimed, Intent([Event(b"e")], b"new", {"n": 1}, b"response", SetTimer(NOW)))
    assert not lifecycle.is_refusal(completion)
    refusal = lifecycle.refuse(completion, "too big")
    assert lifecycle.is_refusal(refusal)
    assert (refusal.task, refusal.attempts) == (claimed.task, 3)
    assert refusal.next_token != completion.next_token
    assert refusal.process.last_event_id == claimed.process.last_event_id
    assert refusal.process.aux_state == claimed.process.aux_state
    assert (refusal.process.status, refusal.process.detail) == (ProcessStatus.ERROR, "too big")
    assert refusal.history is None
    assert_nothing_stored(refusal)
    assert_refused(refusal, "too big")


# What is made known of its life (docs/adr/0008-outbox.md)


@pytest.mark.parametrize(
    ("task_type", "status", "notice"),
    [
        (TaskType.INIT, "init", Notice.CREATED),
        (TaskType.CALL, "running", None),
        (TaskType.NOTIFY, "running", None),
        (TaskType.TIMEOUT, "running", None),
        (TaskType.REPAIR, "error", Notice.WORKING),
        (TaskType.TIMEOUT, "error", Notice.WORKING),  # of a simple repair
    ],
)
def test_a_good_step_is_made_known_when_the_process_did_not_run(
    task_type: TaskType, status: str, notice: Notice | None
) -> None:
    claimed = claim(task_type, status=status)
    for action in (None, UnsetTimer(), SetTimer(NOW), SetTimer(NOW + timedelta(days=1), remove=True)):
        assert succeed(claimed, Intent(action=action)).notice is notice


@pytest.mark.parametrize("task_type", TaskType)
def test_a_step_that_removes_makes_nothing_known_but_the_removal(task_type: TaskType) -> None:
    assert succeed(claim(task_type), Intent(action=Remove())).notice is None


@pytest.mark.parametrize("task_type", TaskType)
def test_a_step_that_fails_for_good_is_made_known_unless_it_was_a_repair(task_type: TaskType) -> None:
    completion = fail(claim(task_type), Kind.DEFECT, "why")
    assert completion.notice is (None if task_type is TaskType.REPAIR else Notice.FAILED)
    assert completion.process.detail == ("old reason" if task_type is TaskType.REPAIR else "why")


@pytest.mark.parametrize("task_type", WITHOUT_CALLER)
def test_a_step_that_is_tried_again_is_not_made_known(task_type: TaskType) -> None:
    assert fail(claim(task_type), Kind.TRANSIENT).notice is None


def test_a_zombie_that_ends_is_made_known() -> None:
    completion = recover(claim(TaskType.CALL, attempts=1))
    assert isinstance(completion, Completion)
    assert completion.notice is Notice.FAILED


def test_a_timer_that_fails_again_after_a_simple_repair_is_made_known_again() -> None:
    assert fail(claim(TaskType.TIMEOUT, status="error"), Kind.DEFECT).notice is Notice.FAILED


@pytest.mark.parametrize(
    "intent",
    [
        Intent(aux_state=bytes(LARGEST_BINARY + 1)),
        Intent(response=bytes(LARGEST_BINARY + 1)),
        Intent([Event(bytes(LARGEST_BINARY // 2))] * 2, b"1"),
    ],
    ids=["aux_state", "response", "all together"],
)
def test_a_result_has_at_most_what_the_database_can_store(intent: Intent) -> None:
    assert lifecycle.checked(intent) is lifecycle.TOO_LARGE
    assert lifecycle.checked(Intent([Event(bytes(LARGEST_BINARY // 2))] * 2)) is not lifecycle.TOO_LARGE
