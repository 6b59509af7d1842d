"""Timers: they fire once, not early, and calls come first (docs/design.md, "A step")."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from progressor import ProcessNotFound, SetTimer, UnsetTimer, now, seconds
from progressor.model import Action
from tests.eventually import eventually
from tests.stage import Gate, Play, Theatre, does

AN_HOUR = 3600


def after(delay: float) -> Callable[[], Action]:
    return lambda: SetTimer(now() + seconds(delay))


def wait_due(play: Play) -> None:
    at = next(unit.scheduled for unit in play.trace() if unit.task_type == "timeout")
    eventually(lambda: now() > at)


def test_simple_timers(theatre: Theatre) -> None:
    play = theatre.play(
        does(b"1", action=after(0)), does(b"2", action=after(0.2)), does(b"3", action=after(0)), does(b"4")
    )
    play.init()
    play.becomes(b"1", b"2", b"3", b"4")
    assert play.types == ["init", "timeout", "timeout", "timeout"]
    assert play.tasks == ["init finished"] + 3 * ["timeout finished"]
    assert play.get().status == "running"
    assert [[e.payload for e in unit.events] for unit in play.trace()] == [[b"1"], [b"2"], [b"3"], [b"4"]]
    assert [e.event_id for e in play.get().history] == [1, 2, 3, 4]


def test_no_timer_fires_early_and_each_fires_once(theatre: Theatre) -> None:
    plays = [theatre.play(does(action=after(0.001 * n)), does(b"fired")) for n in range(50)]
    for future in [play.later("init") for play in plays]:
        future.result()
    for play in plays:
        play.becomes(b"fired")
        (timer,) = play.trace()[1:]
        assert timer.running is not None
        assert timer.running >= timer.scheduled
        assert play.types == ["init", "timeout"]


def test_a_timer_in_the_past_is_ready_at_once(theatre: Theatre) -> None:
    play = theatre.play(does(action=after(-AN_HOUR)), does(b"late"))
    play.init()
    play.becomes(b"late")
    assert play.tasks == ["init finished", "timeout finished"]


def test_reschedule_after_call(theatre: Theatre, gate: Gate) -> None:
    """A timer that comes due while a call runs waits for it, and fires when the call leaves it alone."""
    play = theatre.play(does(b"init", action=after(0.3)), gate.holds(does(b"call")), does(b"timer"))
    play.init()
    call = play.later("call")
    gate.wait_entered()
    wait_due(play)
    assert play.tasks == ["init finished", "timeout blocked", "call running"]
    gate.open()
    call.result()
    play.becomes(b"init", b"call", b"timer")
    assert play.types == ["init", "call", "timeout"]
    assert play.tasks == ["init finished", "timeout finished", "call finished"]


def test_a_timer_that_a_call_blocked_fires_later_at_its_time(theatre: Theatre) -> None:
    play = theatre.play(does(action=after(0.5)), does(b"call"), does(b"timer"))
    play.init()
    play.call()
    assert play.tasks == ["init finished", "timeout waiting", "call finished"]
    play.becomes(b"call", b"timer")
    assert play.types == ["init", "call", "timeout"]
    timer = play.trace()[1]
    assert timer.running is not None
    assert timer.running >= timer.scheduled


def test_call_replace_timer(theatre: Theatre) -> None:
    play = theatre.play(does(b"init", action=after(AN_HOUR)), does(b"call", action=after(0.1)), does(b"timer"))
    play.init()
    play.call()
    play.becomes(b"init", b"call", b"timer")
    assert play.tasks == ["init finished", "timeout cancelled", "call finished", "timeout finished"]
    assert play.rows == {"processes": 1, "tasks": 4, "events": 3}


def test_call_unset_timer(theatre: Theatre) -> None:
    play = theatre.play(does(b"init", action=after(0.4)), does(b"call", action=UnsetTimer()), does(b"timer"))
    canary = theatre.play(does(action=after(0.4)), does(b"fired"))
    play.init()
    play.call()
    assert play.tasks == ["init finished", "timeout cancelled", "call finished"]
    canary.init()
    canary.becomes(b"fired")
    assert play.payloads == [b"init", b"call"]
    assert "schedule" not in play.rows


def test_a_timer_waits_until_the_queue_of_calls_is_empty(theatre: Theatre, gate: Gate) -> None:
    play = theatre.play(
        does(action=after(0.2)), gate.holds(does(b"first")), does(b"second"), does(b"third"), does(b"timer")
    )
    play.init()
    calls = [play.later("call"), play.later("call"), play.later("notify")]
    gate.wait_entered()
    wait_due(play)
    gate.open()
    for call in calls:
        call.result()
    play.becomes(b"first", b"second", b"third", b"timer")
    assert play.types == ["init", "call", "call", "notify", "timeout"]


def test_a_call_that_waits_goes_before_a_timer_set_to_now(theatre: Theatre, gate: Gate) -> None:
    play = theatre.play(does(), gate.holds(does(b"first", action=after(0))), does(b"second"), does(b"timer"))
    play.init()
    calls = [play.later("call"), play.later("call")]
    gate.wait_entered()
    gate.open()
    for call in calls:
        call.result()
    play.becomes(b"first", b"second", b"timer")
    assert play.types == ["init", "call", "call", "timeout"]


def test_a_step_of_a_timer_can_unset_and_set_timers(theatre: Theatre) -> None:
    play = theatre.play(does(action=after(0)), does(b"1", action=UnsetTimer()), does(b"2", action=after(0)), does(b"3"))
    play.init()
    play.becomes(b"1")
    play.call()
    play.becomes(b"1", b"2", b"3")
    assert play.types == ["init", "timeout", "call", "timeout"]


def test_a_timer_to_remove_replaces_a_timer_and_is_replaced(theatre: Theatre) -> None:
    play = theatre.play(
        does(action=after(AN_HOUR)),
        does(action=lambda: SetTimer(now() + seconds(AN_HOUR), remove=True)),
        does(action=after(0)),
        does(b"timer"),
    )
    play.init()
    play.call()
    play.call()
    play.becomes(b"timer")
    timers = ["timeout cancelled", "remove cancelled", "timeout finished"]
    assert [task for task in play.tasks if not task.startswith(("init", "call"))] == timers


def test_remove_by_timer(theatre: Theatre) -> None:
    play = theatre.play(
        does(b"init", action=after(0)),
        does(b"timer", action=lambda: SetTimer(now() + seconds(0.2), remove=True)),
    )
    play.init()
    eventually(lambda: not play.rows)
    assert play.types == ["init", "timeout"]
    with pytest.raises(ProcessNotFound, match=r"^process not found$"):
        play.get()


def test_the_context_of_a_step_travels_to_its_timers(theatre: Theatre) -> None:
    play = theatre.play(
        does(action=after(0)), does(b"1", action=after(0)), does(b"2"), does(action=after(0)), does(b"3")
    )
    play.init(context=b"of init")
    play.becomes(b"1", b"2")
    play.call(context=b"of call")
    play.becomes(b"1", b"2", b"3")
    assert [seen.context for seen in play.seen] == 3 * [b"of init"] + 2 * [b"of call"]
    assert [unit.context for unit in play.trace()] == 3 * [b"of init"] + 2 * [b"of call"]


def test_microseconds_of_a_timer_are_kept(theatre: Theatre) -> None:
    at = (now() + seconds(AN_HOUR)).replace(microsecond=123_457)
    play = theatre.play(does(action=SetTimer(at)))
    play.init()
    assert play.trace()[1].scheduled == at
