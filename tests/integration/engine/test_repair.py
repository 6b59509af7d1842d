"""Processes in error, and the two ways out (docs/design.md, "Operations", repair and simple_repair)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pytest

from progressor import (
    Event,
    ProcessInError,
    ProcessorError,
    ProcessRunning,
    Range,
    SetTimer,
    TransientError,
    UnsetTimer,
    now,
    seconds,
)
from progressor.model import Action
from tests.eventually import eventually
from tests.stage import Gate, Play, Step, Theatre, does, fails


def at_once() -> Action:
    return SetTimer(now())


def broken_by_a_timer(theatre: Theatre, *script: Step) -> Play:
    """In error since its timer, set by `init` with context `of init`, hit a defect."""
    play = theatre.play(does(b"init", action=at_once), fails(KeyError("x")), *script)
    play.init(context=b"of init")
    play.breaks("KeyError: 'x'")
    return play


def broken_by_a_call(theatre: Theatre, *script: Step) -> Play:
    play = theatre.play(does(b"init"), fails(ProcessorError("no")), *script)
    play.init()
    with pytest.raises(ProcessorError):
        play.call()
    return play


def last_task_is(play: Play, task: str) -> bool:
    return play.tasks[-1] == task


def test_simple_repair_after_non_retriable_error(theatre: Theatre) -> None:
    """The broken timer runs again now, with the context of the repair; then the process is running."""
    play = broken_by_a_timer(theatre, does(b"timer", action=at_once), does(b"timer 2"))
    play.simple_repair(context=b"of repair")
    play.becomes(b"init", b"timer", b"timer 2")
    process = play.get()
    assert (process.status, process.previous_status, process.detail, process.corrupted_by) == (
        "running",
        "error",
        None,
        None,
    )
    assert play.types == ["init", "timeout", "timeout", "timeout"]
    assert [seen.context for seen in play.seen] == [b"of init", b"of init", b"of repair", b"of repair"]
    assert [seen.request.attempt for seen in play.seen] == [1, 1, 1, 1]
    assert play.tasks == ["init finished", "timeout error", "timeout finished", "timeout finished"]


def test_simple_repair_after_call_error(theatre: Theatre) -> None:
    """The call is not run again: its caller was told."""
    play = broken_by_a_call(theatre, does(b"call"))
    play.simple_repair()
    assert play.get().status == "running"
    assert play.types == ["init", "call"]
    assert play.tasks == ["init finished", "call error", "repair finished"]
    play.call()
    assert play.payloads == [b"init", b"call"]


def test_simple_repair_whose_task_fails_again(theatre: Theatre) -> None:
    play = broken_by_a_timer(theatre, fails(KeyError("y")), does(b"timer"))
    play.simple_repair()
    eventually(lambda: play.get().detail == "KeyError: 'y'")
    assert play.get().status == "error"
    assert play.get().corrupted_by == play.trace()[-1].task_id
    play.simple_repair()
    play.becomes(b"init", b"timer")
    assert play.get().status == "running"


def test_arguments_and_a_range_of_a_simple_repair_do_not_reach_the_timer(theatre: Theatre) -> None:
    play = theatre.play(fails(KeyError("x")), does(b"timer"))
    play.put(history=[Event(b"1"), Event(b"2")], action=at_once())
    play.breaks("KeyError: 'x'")
    unused = {"op": "simple_repair", "args": b"unused", "range": Range(limit=0)}
    repaired = [play.later("execute", **given, idempotency_key=play.id) for given in (unused, {"op": "simple_repair"})]
    assert repaired[0].result().task_id == repaired[1].result().task_id
    play.becomes(b"1", b"2", b"timer")
    assert [seen.request.args for seen in play.seen] == [b"", b""]
    assert play.seen[-1].payloads == [b"1", b"2"]


def test_simple_repair_retries_as_the_policy_says(theatre: Theatre) -> None:
    play = broken_by_a_timer(theatre, fails(TransientError("away")), does(b"timer"))
    play.simple_repair()
    play.becomes(b"init", b"timer")
    assert [seen.request.attempt for seen in play.seen[1:]] == [1, 1, 2]


def test_until_the_task_of_a_simple_repair_succeeds_the_process_is_in_error(theatre: Theatre, gate: Gate) -> None:
    play = broken_by_a_timer(theatre, gate.holds(does(b"timer")))
    play.simple_repair()
    gate.wait_entered()
    assert play.get().status == "error"
    with pytest.raises(ProcessInError):
        play.call()
    with pytest.raises(ProcessRunning):
        play.simple_repair()
    gate.open()
    play.becomes(b"init", b"timer")


def test_a_repair_behind_the_task_of_a_simple_repair_is_answered(theatre: Theatre) -> None:
    """Not needed any more when it succeeds, in vain when it fails."""
    for step, error in ((does(b"timer"), ProcessRunning), (fails(KeyError("y")), ProcessInError)):
        with Gate() as gate:
            play = broken_by_a_timer(theatre, gate.holds(step))
            play.simple_repair()
            gate.wait_entered()
            repair = play.later("repair")
            eventually(partial(last_task_is, play, "repair waiting"))
            gate.open()
            with pytest.raises(error):
                repair.result()
            assert play.tasks[-1] == "repair cancelled"
            assert "schedule" not in play.rows


def test_a_second_simple_repair_does_not_run_the_timer_twice(theatre: Theatre) -> None:
    """While the first one's task waits for another attempt."""
    with Gate() as gate:
        play = broken_by_a_timer(
            theatre, fails(TransientError("away")), gate.holds(does(b"timer")), does(b"once too often")
        )
        play.simple_repair()
        eventually(lambda: len(play.seen) == 3)
        with suppress(ProcessRunning):
            play.simple_repair()
        gate.open()
        play.becomes(b"init", b"timer")
        play.rests()
        eventually(lambda: "schedule" not in play.rows)
        assert play.payloads == [b"init", b"timer"]


def test_repair_after_non_retriable_error(theatre: Theatre) -> None:
    """Without an action the broken timer is set again, now, as it was."""
    play = broken_by_a_timer(theatre, does(b"repair", response=b"done"), does(b"timer"))
    assert play.repair(b"how", context=b"of repair") == b"done"
    play.becomes(b"init", b"repair", b"timer")
    assert play.types == ["init", "timeout", "repair", "timeout"]
    assert [seen.context for seen in play.seen] == [b"of init", b"of init", b"of repair", b"of init"]
    assert play.seen[2].request.args == b"how"
    assert play.seen[2].request.process.status == "error"
    assert play.seen[2].request.process.detail == "KeyError: 'x'"
    assert play.tasks == ["init finished", "timeout error", "repair finished", "timeout finished"]
    assert [seen.request.attempt for seen in play.seen] == [1, 1, 1, 1]


def test_error_after_max_retries(theatre: Theatre) -> None:
    play = theatre.play(does(b"init", action=at_once), *2 * [fails(ProcessorError("no"))], does(b"timer"))
    play.init()
    play.breaks("no")
    timer = play.trace()[1]
    assert [seen.request.attempt for seen in play.seen[1:]] == [1, 2]
    assert (timer.status, timer.retry_attempts, timer.error) == ("error", 2, "no")
    assert play.get().corrupted_by == timer.task_id
    assert play.rows == {"processes": 1, "tasks": 2, "events": 1}
    play.simple_repair()
    play.becomes(b"init", b"timer")
    assert play.seen[-1].request.attempt == 1


def test_repair_after_call_error(theatre: Theatre) -> None:
    play = broken_by_a_call(
        theatre, fails(ProcessorError("unrepairable")), does(b"repair", response=b"ok"), does(b"call")
    )
    with pytest.raises(ProcessorError, match=r"^unrepairable$"):
        play.repair()
    assert (play.get().status, play.get().detail) == ("error", "no")
    assert play.get().corrupted_by == play.trace()[1].task_id
    assert play.repair() == b"ok"
    assert (play.get().status, play.get().detail) == ("running", None)
    play.call()
    assert play.payloads == [b"init", b"repair", b"call"]
    assert play.tasks == ["init finished", "call error", "repair error", "repair finished", "call finished"]


@pytest.mark.parametrize(
    ("action", "left"),
    [
        (lambda: SetTimer(now() + seconds(3600)), ["timeout waiting"]),
        (lambda: SetTimer(now() + seconds(3600), remove=True), ["remove waiting"]),
        (UnsetTimer, []),
    ],
)
def test_an_action_of_a_repair_replaces_the_broken_timer(
    theatre: Theatre, action: Callable[[], Action], left: list[str]
) -> None:
    play = broken_by_a_timer(theatre, does(b"repair", action=action))
    play.repair()
    assert play.tasks == ["init finished", "timeout error", "repair finished", *left]


def test_a_repair_can_set_a_timer_after_a_broken_call(theatre: Theatre) -> None:
    play = broken_by_a_call(theatre, does(b"repair", action=at_once), does(b"timer"))
    play.repair()
    play.becomes(b"init", b"repair", b"timer")


@pytest.mark.parametrize("error", [ProcessorError("r"), TransientError("r"), KeyError("r")])
def test_a_failed_repair_leaves_the_process_as_it_was(theatre: Theatre, error: Exception) -> None:
    play = broken_by_a_timer(theatre, fails(error), does(b"repair"), does(b"timer"))
    before = play.get()
    with pytest.raises(ProcessorError, match="r"):
        play.repair()
    assert play.get() == before
    play.repair()
    play.becomes(b"init", b"repair", b"timer")


def test_of_two_repairs_one_is_too_many(theatre: Theatre, gate: Gate) -> None:
    play = broken_by_a_call(theatre, gate.holds(does(b"repair", response=b"first")))
    first = play.later("repair")
    gate.wait_entered()
    second = play.later("repair")
    eventually(lambda: play.tasks[-1] == "repair waiting")
    gate.open()
    assert first.result() == b"first"
    with pytest.raises(ProcessRunning, match=r"^process is running$"):
        second.result()
    assert play.tasks == ["init finished", "call error", "repair finished", "repair cancelled"]


def test_a_repair_behind_one_that_fails_has_its_turn(theatre: Theatre, gate: Gate) -> None:
    play = broken_by_a_call(theatre, gate.holds(fails(ProcessorError("first"))), does(b"repair", response=b"second"))
    first = play.later("repair")
    gate.wait_entered()
    second = play.later("repair")
    eventually(lambda: play.tasks[-1] == "repair waiting")
    gate.open()
    with pytest.raises(ProcessorError, match=r"^first$"):
        first.result()
    assert second.result() == b"second"


def test_a_failed_init_can_be_repaired(theatre: Theatre) -> None:
    play = theatre.play(fails(ProcessorError("no")), does(b"repair"), does(b"call"))
    with pytest.raises(ProcessorError):
        play.init()
    assert (play.get().status, play.get().previous_status, play.get().detail) == ("error", "init", "no")
    play.repair()
    play.call()
    assert play.payloads == [b"repair", b"call"]


def test_a_timer_falls_when_a_call_breaks_its_process(theatre: Theatre) -> None:
    play = theatre.play(
        does(action=lambda: SetTimer(now() + seconds(0.2))), fails(ProcessorError("no")), does(b"repair")
    )
    canary = theatre.play(does(action=lambda: SetTimer(now() + seconds(0.2))), does(b"fired"))
    play.init()
    with pytest.raises(ProcessorError):
        play.call()
    assert play.tasks == ["init finished", "timeout cancelled", "call error"]
    assert "schedule" not in play.rows
    play.repair()
    canary.init()
    canary.becomes(b"fired")
    assert play.payloads == [b"repair"]
