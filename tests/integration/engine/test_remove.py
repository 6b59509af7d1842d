"""Removal: by an action, by a timer, by request; nothing is left (docs/design.md, "Operations", remove)."""

from __future__ import annotations

import pytest

from progressor import Event, ProcessNotFound, ProcessorError, Range, Remove, SetTimer, TransientError, now, seconds
from tests.eventually import eventually
from tests.stage import Gate, Theatre, does, fails


def test_remove_without_timer(theatre: Theatre) -> None:
    """A step ends its process; the caller gets the response of the step."""
    play = theatre.play(does(b"init"), does(b"call", response=b"bye", action=Remove()))
    play.init()
    assert play.call() == b"bye"
    assert play.rows == {}
    with pytest.raises(ProcessNotFound, match=r"^process not found$"):
        play.get()
    with pytest.raises(ProcessNotFound):
        play.trace()


@pytest.mark.parametrize("verb", ["init", "timeout", "notify", "repair"])
def test_every_kind_of_step_can_remove_its_process(theatre: Theatre, verb: str) -> None:
    last = does(b"last", action=Remove())
    match verb:
        case "init":
            play = theatre.play(last)
            play.init()
        case "timeout":
            play = theatre.play(does(action=lambda: SetTimer(now())), last)
            play.init()
        case "notify":
            play = theatre.play(does(), last)
            play.init()
            play.notify()
        case "repair":
            play = theatre.play(fails(ProcessorError("no")), last)
            with pytest.raises(ProcessorError):
                play.init()
            play.repair()
    eventually(lambda: not play.rows)
    assert play.types[-1] == verb


def test_remove_takes_timers_and_events_along(theatre: Theatre) -> None:
    play = theatre.play(does(b"1", b"2", action=lambda: SetTimer(now() + seconds(3600))))
    play.init()
    assert play.rows == {"processes": 1, "tasks": 2, "schedule": 1, "events": 2}
    play.remove()
    assert play.rows == {}


def test_remove_waits_for_the_step_that_runs_and_goes_ahead_of_waiting_calls(theatre: Theatre, gate: Gate) -> None:
    play = theatre.play(does(), gate.holds(does(response=b"in time")), does(b"too late"))
    play.init()
    running = play.later("call")
    gate.wait_entered()
    waiting = [play.later("call"), play.later("call"), play.later("notify")]
    removal = play.later("remove")
    eventually(lambda: len(play.trace()) == 6)
    assert not removal.done()
    gate.open()
    assert removal.result() is None
    assert running.result() == b"in time"
    for call in waiting[:2]:
        with pytest.raises(ProcessNotFound, match=r"^process not found$"):
            call.result()
    assert play.rows == {}
    assert play.types == ["init", "call"]


def test_arguments_and_a_range_make_no_other_request_of_a_removal(theatre: Theatre, gate: Gate) -> None:
    """It is no timer: neither does it wait behind calls, nor does the step that runs replace it."""
    play = theatre.play(does(), gate.holds(does(action=lambda: SetTimer(now() + seconds(3600)))), does(b"too late"))
    play.init()
    running = play.later("call")
    gate.wait_entered()
    waiting = play.later("call")
    removal = play.later("execute", op="remove", args=b"unused", range=Range(limit=0), idempotency_key=f"no {play.id}")
    eventually(lambda: len(play.trace()) == 4)
    again = play.later("remove", idempotency_key=f"no {play.id}")
    gate.open()
    assert running.result() is None
    assert removal.result().response is None
    with pytest.raises(ProcessNotFound):
        waiting.result()
    assert again.result() is None
    assert play.rows == {"tasks": 1}  # the answer to its key
    assert play.types == ["init", "call"]


def test_waiting_callers_of_a_process_that_removes_itself(theatre: Theatre, gate: Gate) -> None:
    play = theatre.play(does(), gate.holds(does(response=b"bye", action=Remove())))
    play.init()
    last = play.later("call")
    gate.wait_entered()
    waiting = play.later("call")
    eventually(lambda: len(play.trace()) == 3)
    gate.open()
    assert last.result() == b"bye"
    with pytest.raises(ProcessNotFound):
        waiting.result()


def test_remove_behind_a_step_that_fails(theatre: Theatre, gate: Gate) -> None:
    play = theatre.play(does(), gate.holds(fails(ProcessorError("no"))))
    play.init()
    call = play.later("call")
    gate.wait_entered()
    removal = play.later("remove")
    eventually(lambda: len(play.trace()) == 3)
    gate.open()
    with pytest.raises(ProcessorError, match=r"^no$"):
        call.result()
    assert removal.result() is None
    assert play.rows == {}


def test_remove_behind_a_step_that_would_be_retried(theatre: Theatre, gate: Gate) -> None:
    play = theatre.play(does(), gate.holds(fails(TransientError("away"))), does(b"again"))
    play.init()
    play.notify()
    gate.wait_entered()
    removal = play.later("remove")
    eventually(lambda: len(play.trace()) == 3)
    gate.open()
    assert removal.result() is None
    assert play.rows == {}
    assert play.types == ["init", "notify"]


def test_remove_during_the_init(theatre: Theatre, gate: Gate) -> None:
    play = theatre.play(gate.holds(does(b"init", response=b"born")))
    init = play.later("init")
    gate.wait_entered()
    removal = play.later("remove")
    eventually(lambda: play.tasks == ["init running", "remove waiting"])
    gate.open()
    assert init.result() == b"born"
    assert removal.result() is None
    assert play.rows == {}


def test_two_requests_to_remove_are_both_content(theatre: Theatre, gate: Gate) -> None:
    play = theatre.play(does(), gate.holds(does()))
    play.init()
    play.later("call")
    gate.wait_entered()
    removals = [play.later("remove"), play.later("remove")]
    eventually(lambda: len(play.trace()) == 4)
    gate.open()
    assert [removal.result() for removal in removals] == [None, None]
    with pytest.raises(ProcessNotFound):
        play.remove()


def test_remove_of_a_process_in_error(theatre: Theatre) -> None:
    play = theatre.play(does(b"init"), fails(ProcessorError("no")))
    play.init()
    with pytest.raises(ProcessorError):
        play.call()
    play.remove()
    assert play.rows == {}


def test_an_id_can_be_used_again_after_removal(theatre: Theatre) -> None:
    """And the new process has nothing of the old one: not its history, not its timer."""
    play = theatre.play(
        does(b"old 1", b"old 2", aux_state=b"old", metadata={"old": 1}, action=lambda: SetTimer(now() + seconds(0.2))),
        does(b"new"),
        does(b"call"),
    )
    canary = theatre.play(does(action=lambda: SetTimer(now() + seconds(0.2))), does(b"fired"))
    play.init()
    play.remove()
    play.init()
    assert (play.get().aux_state, play.get().metadata, play.get().last_event_id) == (None, None, 1)
    canary.init()
    canary.becomes(b"fired")
    play.call()
    assert play.payloads == [b"new", b"call"]
    assert play.seen[-1].payloads == [b"new"]
    assert play.types == ["init", "init", "call"]


def test_a_process_that_was_made_again_with_more_events_does_not_see_those_of_the_old_one(theatre: Theatre) -> None:
    play = theatre.play(does(b"old"), does(b"new 1", b"new 2"), does())
    play.init()
    play.remove()
    play.init()
    play.call()
    assert play.seen[-1].payloads == [b"new 1", b"new 2"]


@pytest.mark.parametrize(
    "payloads", [[b"new 1", b"new 2"], [b"new"], [b"new 1", b"new 2", b"new 3"]], ids=["as long", "shorter", "longer"]
)
def test_a_process_that_was_put_as_of_the_same_time_does_not_see_the_events_of_the_old_one(
    theatre: Theatre, payloads: list[bytes]
) -> None:
    play = theatre.play(does(b"old 1", b"old 2"), does(), does(b"call"), does())
    play.init()
    play.call()
    created_at = play.get().created_at
    play.remove()
    play.put(history=[Event(payload) for payload in payloads], created_at=created_at)
    play.call()
    play.call()
    assert play.seen[-2].payloads == payloads
    assert play.seen[-1].payloads == [*payloads, b"call"]


def test_a_timer_to_remove_that_comes_due_during_a_call_removes_after_it(theatre: Theatre, gate: Gate) -> None:
    play = theatre.play(
        does(action=lambda: SetTimer(now() + seconds(0.2), remove=True)), gate.holds(does(response=b"done"))
    )
    play.init()
    call = play.later("call")
    gate.wait_entered()
    at = play.trace()[1].scheduled
    eventually(lambda: now() > at)
    gate.open()
    assert call.result() == b"done"
    eventually(lambda: not play.rows)
    assert play.types == ["init", "call"]


def test_a_call_before_a_timer_to_remove_can_replace_it(theatre: Theatre) -> None:
    play = theatre.play(
        does(action=lambda: SetTimer(now() + seconds(3600), remove=True)),
        does(action=lambda: SetTimer(now())),
        does(b"timer"),
    )
    play.init()
    play.call()
    play.becomes(b"timer")
    assert play.tasks == ["init finished", "remove cancelled", "call finished", "timeout finished"]
