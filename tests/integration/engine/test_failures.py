"""Steps that fail: what becomes of the process, and what the caller is told (docs/design.md, "Failures")."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from progressor import Event, Intent, ProcessorError, RequestTimeout, SetTimer, TransientError, now
from progressor.model import Action
from tests.eventually import eventually
from tests.stage import Gate, Play, Theatre, does, fails, returns


class Declined(ProcessorError):
    """A business error that has a class of its own."""


def at_once() -> Action:
    return SetTimer(now())


@dataclass(frozen=True)
class Case:
    error: BaseException
    reason: str
    is_retried: bool


CASES = {
    "business": Case(ProcessorError("no funds"), "no funds", is_retried=True),
    "business without reason": Case(ProcessorError(), "processor error", is_retried=True),
    "transient": Case(TransientError("away"), "away", is_retried=True),
    "connection": Case(ConnectionRefusedError("refused"), "refused", is_retried=True),
    "timeout": Case(TimeoutError(), "TimeoutError", is_retried=True),
    "defect": Case(ZeroDivisionError("oops"), "ZeroDivisionError: oops", is_retried=False),
    "os error": Case(FileNotFoundError("file"), "FileNotFoundError: file", is_retried=False),
    "exit": Case(SystemExit(), "SystemExit", is_retried=False),
    "interrupt": Case(KeyboardInterrupt(), "KeyboardInterrupt", is_retried=False),
}
FAILURES = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@FAILURES
def test_an_init_fails_at_once(theatre: Theatre, case: Case) -> None:
    play = theatre.play(fails(case.error))
    with pytest.raises(ProcessorError) as told:
        play.init()
    assert (str(told.value), told.value.reason) == (case.reason, case.reason)
    assert (play.get().status, play.get().detail) == ("error", case.reason)
    assert play.get().corrupted_by == play.trace()[0].task_id
    assert (play.tasks, play.trace()[0].error) == (["init error"], case.reason)


@FAILURES
def test_a_call_fails_at_once(theatre: Theatre, case: Case) -> None:
    play = theatre.play(does(b"init", aux_state=b"1", metadata={"k": 1}), fails(case.error))
    play.init()
    with pytest.raises(ProcessorError) as told:
        play.call()
    assert told.value.reason == case.reason
    process = play.get()
    assert (process.status, process.detail, process.aux_state, process.metadata) == (
        "error",
        case.reason,
        b"1",
        {"k": 1},
    )
    assert play.payloads == [b"init"]
    assert play.tasks == ["init finished", "call error"]


@FAILURES
def test_a_timer_is_retried_unless_it_was_a_defect(theatre: Theatre, case: Case) -> None:
    play = theatre.play(does(b"init", action=at_once), fails(case.error), does(b"timer"))
    play.init(context=b"c")
    if case.is_retried:
        play.becomes(b"init", b"timer")
        assert [(seen.request.attempt, seen.context) for seen in play.seen[1:]] == [(1, b"c"), (2, b"c")]
        assert play.get().status == "running"
    else:
        play.breaks(case.reason)
        assert play.tasks == ["init finished", "timeout error"]
        assert len(play.seen) == 2


@pytest.mark.parametrize("error", [ProcessorError("enough"), TransientError("enough"), Declined("whatever")])
@pytest.mark.parametrize("verb", ["timeout", "notify"])
def test_errors_that_are_not_retried_by_policy(theatre: Theatre, error: ProcessorError, verb: str) -> None:
    """By their reason, and by the name of their class."""
    play = theatre.play(
        does(action=at_once if verb == "timeout" else None),
        fails(ProcessorError("once more")),
        fails(error),
        ns="picky",
    )
    play.init()
    if verb == "notify":
        play.notify()
    play.breaks(error.reason)
    assert [seen.request.attempt for seen in play.seen[1:]] == [1, 2]
    assert play.trace()[1].retry_attempts == 2


def test_an_attempt_that_waits_can_be_seen(theatre: Theatre) -> None:
    play = theatre.play(does(action=at_once), fails(ProcessorError("x")), does(b"timer"))
    play.init()
    play.becomes(b"timer")
    timer = play.trace()[1]
    assert timer.retry_attempts == 1
    assert timer.running is not None
    assert timer.running >= timer.scheduled


def test_a_step_that_fails_changes_nothing(theatre: Theatre) -> None:
    """Its events, its state, its timer: all or nothing."""
    gap = Intent([Event(b"x", event_id=7)], b"new", {"new": 1}, b"response", SetTimer(now()))
    play = theatre.play(does(b"1", aux_state=b"old", metadata={"old": 1}), returns(gap), does(b"repair"))
    play.init()
    with pytest.raises(ProcessorError, match=r"^bad_event_id$"):
        play.call()
    process = play.get()
    assert (process.aux_state, process.metadata, process.detail) == (b"old", {"old": 1}, "bad_event_id")
    assert play.rows == {"processes": 1, "tasks": 2, "events": 1}
    play.repair()
    assert play.payloads == [b"1", b"repair"]


@pytest.mark.parametrize("ids", [[1], [3, None], [2, 2], [0], [-1], [None, 2], [2**70]])
def test_bad_event_id(theatre: Theatre, ids: list[int | None]) -> None:
    play = theatre.play(does(b"1"), returns(Intent([Event(b"x", event_id=n) for n in ids])))
    play.init()
    with pytest.raises(ProcessorError, match=r"^bad_event_id$"):
        play.call()
    assert play.payloads == [b"1"]


def test_ids_that_continue_the_history_are_welcome(theatre: Theatre) -> None:
    play = theatre.play(does(b"1"), returns(Intent([Event(b"2", event_id=2), Event(b"3"), Event(b"4", event_id=4)])))
    play.init()
    play.call()
    assert [event.event_id for event in play.get().history] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "result",
    [
        None,
        b"bytes",
        {"events": []},
        Intent(events=[b"no event"]),  # type: ignore[list-item]
        Intent(events=[Event("text")]),  # type: ignore[arg-type]
        Intent(events=[Event(b"", [1])]),  # type: ignore[arg-type]
        Intent(events=[Event(b"", timestamp=datetime(2020, 1, 1))]),  # noqa: DTZ001
        Intent(events=5),  # type: ignore[arg-type]
        Intent(aux_state="text"),  # type: ignore[arg-type]
        Intent(response="text"),  # type: ignore[arg-type]
        Intent(metadata=[1]),  # type: ignore[arg-type]
        Intent(action="remove"),  # type: ignore[arg-type]
        Intent(action=SetTimer(5)),  # type: ignore[arg-type]
        Intent(action=SetTimer(datetime(2020, 1, 1))),  # noqa: DTZ001
    ],
    ids=repr,
)
def test_unsupported_result(theatre: Theatre, result: Any) -> None:
    play = theatre.play(does(b"1"), returns(result))
    play.init()
    with pytest.raises(ProcessorError, match=r"^unsupported_result$"):
        play.call()
    assert play.payloads == [b"1"]
    assert play.get().status == "error"


FAR_WEST, FAR_EAST = timezone(timedelta(hours=-12)), timezone(timedelta(hours=12))
POISON: dict[str, Callable[[], Intent]] = {
    "NUL in metadata": lambda: Intent(metadata={"a": "\0"}),
    "surrogate in metadata": lambda: Intent(metadata={"a": "\ud800"}),
    "low surrogate in metadata": lambda: Intent(metadata={"\udfff": 1}),
    "no JSON in metadata": lambda: Intent(metadata={"a": object()}),
    "infinity in metadata": lambda: Intent(metadata={"a": float("inf")}),
    "huge number in metadata": lambda: Intent(metadata={"a": 10**5000}),
    "tuple as key in metadata": lambda: Intent(metadata={(1, 2): 1}),  # type: ignore[dict-item]
    "metadata that holds itself": lambda: Intent(metadata=_endless()),
    "NUL in metadata of an event": lambda: Intent([Event(b"x", {"a": "\0"})]),
    "no JSON in metadata of an event": lambda: Intent([Event(b"x"), Event(b"y", {"a": {1, 2}})]),
    "event before the calendar": lambda: Intent([Event(b"x", timestamp=datetime.min.replace(tzinfo=FAR_EAST))]),
    "event after the calendar": lambda: Intent([Event(b"x", timestamp=datetime.max.replace(tzinfo=FAR_WEST))]),
    "timer after the calendar": lambda: Intent(action=SetTimer(datetime.max.replace(tzinfo=FAR_WEST))),
}


def _endless() -> dict[str, Any]:
    endless: dict[str, Any] = {}
    endless["again"] = endless
    return endless


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
def test_poison_fails_its_own_step_only(theatre: Theatre, gate: Gate, poison: Callable[[], Intent]) -> None:
    bad = theatre.play(does(b"1"), gate.holds(lambda _: poison()), does(b"repair"), does(b"call"))
    good = [theatre.play(does(b"1"), gate.holds(does(b"2", response=b"ok"))) for _ in range(4)]
    for play in (bad, *good):
        play.init()
    failing = bad.later("call")
    calls = [play.later("call") for play in good]
    eventually(lambda: all(len(play.seen) == 2 for play in (bad, *good)))
    gate.open()
    assert [call.result() for call in calls] == 4 * [b"ok"]
    assert isinstance(failing.exception(), ProcessorError)
    assert bad.get().status == "error"
    assert bad.payloads == [b"1"]
    bad.repair()
    bad.call()
    assert bad.payloads == [b"1", b"repair", b"call"]


@pytest.mark.parametrize("reason", ["NUL \0", "surrogate \ud800", "long " * 100_000, "quote ' \" \\ % {x} ä 🜂"])
@pytest.mark.parametrize("verb", ["call", "timeout"])
def test_any_text_can_be_a_reason(theatre: Theatre, reason: str, verb: str) -> None:
    play = theatre.play(does(action=at_once if verb == "timeout" else None), *2 * [fails(ProcessorError(reason))])
    play.init()
    if verb == "call":
        with pytest.raises(ProcessorError):
            play.call(timeout=3)  # less than it takes until the task is found as a zombie
    play.breaks()
    assert play.tasks == ["init finished", f"{verb} error"]
    shown = reason.replace("\0", "").replace("\ud800", "?")
    assert (play.get().detail, play.trace()[1].error) == (shown, shown)


# Steps that hang


@contextmanager
def counts_late_results(theatre: Theatre, gate: Gate, count: int = 1) -> Iterator[None]:
    """Opens the gate at the end; the metric counts what comes through."""
    before = fenced(theatre)
    yield
    gate.open()
    eventually(lambda: fenced(theatre) == before + count)


def fenced(theatre: Theatre) -> float:
    found = theatre.node.metrics.registry.get_sample_value(
        "progressor_fenced_completions_total", {"prg_namespace": "impatient"}
    )
    return found or 0.0


def hung(theatre: Theatre, gate: Gate) -> Play:
    play = theatre.play(
        does(b"1"), gate.holds(does(b"late", response=b"late", action=at_once)), does(b"3"), ns="impatient"
    )
    play.init()
    return play


def test_a_call_that_hangs_fails_and_its_late_result_changes_nothing(theatre: Theatre, gate: Gate) -> None:
    """The caller has waited as long as the step had; who asks again with the same key is told what happened."""
    play = hung(theatre, gate)
    with counts_late_results(theatre, gate):
        with pytest.raises(RequestTimeout):
            play.call(idempotency_key=f"hang {play.id}")
        play.breaks("timeout")
        with pytest.raises(ProcessorError, match=r"^timeout$"):
            play.call(idempotency_key=f"hang {play.id}")
    assert play.payloads == [b"1"]
    assert play.tasks == ["init finished", "call error"]
    play.repair()
    assert play.payloads == [b"1", b"3"]


def test_workers_that_hang_are_replaced(theatre: Theatre, gate: Gate) -> None:
    """As many as there are."""
    plays = [hung(theatre, gate) for _ in range(5)]
    other = theatre.play(does(b"1"), does(response=b"alive"), ns="impatient")
    with counts_late_results(theatre, gate, 5):
        calls = [play.later("call") for play in plays]
        for play, call in zip(plays, calls, strict=True):
            assert isinstance(call.exception(), RequestTimeout)
            play.breaks("timeout")
        other.init()
        assert other.call() == b"alive"


@pytest.mark.parametrize("verb", ["timeout", "notify"])
def test_a_hanging_step_without_a_caller_is_retried(theatre: Theatre, gate: Gate, verb: str) -> None:
    play = theatre.play(
        does(action=at_once if verb == "timeout" else None), gate.holds(does(b"late")), does(b"in time"), ns="impatient"
    )
    with counts_late_results(theatre, gate):
        play.init()
        if verb == "notify":
            play.notify()
        play.becomes(b"in time")
    assert play.payloads == [b"in time"]
    assert play.tasks == ["init finished", f"{verb} finished"]


def test_a_late_result_does_not_pass_for_that_of_the_next_attempt(theatre: Theatre, gate: Gate) -> None:
    """The same task on the same node: only the run token tells the attempts apart."""
    in_time = does(b"in time")
    with Gate() as second:
        play = theatre.play(
            does(), gate.holds(does(b"late", aux_state=b"late")), second.holds(in_time), *3 * [in_time], ns="impatient"
        )
        play.init()
        play.notify()
        second.wait_entered()
        with counts_late_results(theatre, gate):
            pass
        second.open()
        play.becomes(b"in time")
    assert play.get().aux_state is None
    assert play.tasks == ["init finished", "notify finished"]


def test_an_init_that_hangs(theatre: Theatre, gate: Gate) -> None:
    play = theatre.play(gate.holds(does(b"late")), does(b"repair"), ns="impatient")
    with counts_late_results(theatre, gate):
        with pytest.raises(RequestTimeout):
            play.init()
        play.breaks("timeout")
        play.repair()
    assert play.payloads == [b"repair"]


def test_a_repair_that_hangs_leaves_the_process_as_it_was(theatre: Theatre, gate: Gate) -> None:
    play = theatre.play(fails(ProcessorError("no")), gate.holds(does(b"late")), does(b"repair"), ns="impatient")
    with pytest.raises(ProcessorError):
        play.init()
    with counts_late_results(theatre, gate):
        with pytest.raises(RequestTimeout):
            play.repair()
        eventually(lambda: play.tasks == ["init error", "repair error"])
        assert (play.get().status, play.get().detail) == ("error", "no")
    play.repair()
    assert play.payloads == [b"repair"]
