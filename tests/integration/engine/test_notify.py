"""Notifications: accepted at once, seen later, in order with calls, at least once."""

from __future__ import annotations

import pytest

from progressor import (
    Event,
    Intent,
    ProcessInError,
    ProcessorError,
    Range,
    SetTimer,
    StepRequest,
    TransientError,
    now,
    seconds,
)
from tests.eventually import eventually
from tests.stage import Gate, Theatre, does, fails


def record(request: StepRequest) -> Intent:
    return Intent([Event(request.args)])


def test_the_answer_is_the_task_id_before_the_processor_sees_it(theatre: Theatre, gate: Gate) -> None:
    play = theatre.play(does(), gate.holds(record))
    play.init()
    task_id = play.notify(b"news", context=b"of notify")
    gate.wait_entered()
    assert play.trace()[-1].task_id == task_id
    assert play.tasks == ["init finished", "notify running"]
    gate.open()
    play.becomes(b"news")
    assert play.tasks == ["init finished", "notify finished"]
    assert (play.seen[1].request.args, play.seen[1].context) == (b"news", b"of notify")
    assert play.seen[1].request.task_id == task_id


def test_notifications_and_calls_are_seen_in_the_order_of_their_acceptance(theatre: Theatre, gate: Gate) -> None:
    play = theatre.play(does(), gate.holds(record), *20 * [record])
    play.init()
    verbs = ["call", "notify", "notify", "call", "call", "notify", "call", "notify"]
    args = [b"%d %s" % (n, verb.encode()) for n, verb in enumerate(verbs)]
    answers = [play.later(verb, args=arg) for verb, arg in zip(verbs, args, strict=True)]
    gate.wait_entered()
    gate.open()
    for answer in answers:
        answer.result()
    play.becomes(*args)
    assert play.types == ["init", *verbs]


def test_a_notification_during_the_init_comes_after_it(theatre: Theatre, gate: Gate) -> None:
    play = theatre.play(gate.holds(does(b"init")), record)
    play.later("init")
    gate.wait_entered()
    play.notify(b"news")
    gate.open()
    play.becomes(b"init", b"news")


@pytest.mark.parametrize(
    "error", [ProcessorError("no"), TransientError("away"), ConnectionResetError(), TimeoutError()]
)
def test_a_notification_is_retried(theatre: Theatre, error: Exception) -> None:
    play = theatre.play(does(), fails(error), record, does(b"call"))
    play.init()
    play.notify(b"news", context=b"c")
    play.becomes(b"news")
    assert [(s.request.attempt, s.request.args, s.context) for s in play.seen[1:]] == [
        (1, b"news", b"c"),
        (2, b"news", b"c"),
    ]
    assert play.tasks == ["init finished", "notify finished"]
    play.call()
    assert play.payloads == [b"news", b"call"]


def test_while_a_notification_waits_for_another_attempt_calls_are_served(theatre: Theatre, gate: Gate) -> None:
    play = theatre.play(does(), fails(TransientError("away")), record, record)
    play.init()
    play.notify(b"news")
    play.call(b"call")
    eventually(lambda: sorted(play.payloads) == [b"call", b"news"])
    play.rests()
    assert play.rows == {"processes": 1, "tasks": 3, "events": 2}


def test_a_notification_that_fails_for_good_breaks_its_process(theatre: Theatre) -> None:
    play = theatre.play(does(), *2 * [fails(ProcessorError("no"))], does(b"repair"))
    play.init()
    task_id = play.notify()
    play.breaks("no")
    assert play.get().corrupted_by == task_id
    assert play.tasks == ["init finished", "notify error"]
    play.repair()
    assert play.payloads == [b"repair"]  # it is not delivered once more


def test_a_defect_in_a_notification_is_not_retried(theatre: Theatre) -> None:
    play = theatre.play(does(), fails(ZeroDivisionError("oops")))
    play.init()
    play.notify()
    play.breaks("ZeroDivisionError: oops")
    assert play.types == ["init", "notify"]


@pytest.mark.parametrize("verb", ["repair", "simple_repair"])
def test_notifications_wait_through_an_error_and_are_delivered_after_the_repair(
    theatre: Theatre, gate: Gate, verb: str
) -> None:
    play = theatre.play(
        does(), gate.holds(fails(ProcessorError("no"))), *([does()] if verb == "repair" else []), record, record
    )
    play.init()
    call = play.later("call")
    gate.wait_entered()
    for news in (b"1", b"2"):
        play.notify(news)
    gate.open()
    assert isinstance(call.exception(), ProcessorError)
    assert play.tasks == ["init finished", "call error", "notify waiting", "notify waiting"]
    with pytest.raises(ProcessInError, match=r"^process is error$"):
        play.notify(b"refused")
    play.later(verb).result()
    play.becomes(b"1", b"2")
    assert play.types[-2:] == ["notify", "notify"]


def test_a_range_travels_to_the_step(theatre: Theatre) -> None:
    play = theatre.play(does(b"1", b"2", b"3"), does(b"4"))
    play.init()
    play.notify(range=Range(limit=2, direction="backward"))
    play.becomes(b"1", b"2", b"3", b"4")
    assert play.seen[1].payloads == [b"3", b"2"]


def test_the_timer_is_blocked_while_a_notification_runs(theatre: Theatre, gate: Gate) -> None:
    play = theatre.play(does(action=lambda: SetTimer(now() + seconds(0.2))), gate.holds(record), does(b"timer"))
    play.init()
    play.notify(b"news")
    gate.wait_entered()
    at = play.trace()[1].scheduled
    eventually(lambda: now() > at)
    assert play.tasks == ["init finished", "timeout blocked", "notify running"]
    gate.open()
    play.becomes(b"news", b"timer")
    assert play.types == ["init", "notify", "timeout"]


def test_a_notification_can_set_a_timer(theatre: Theatre) -> None:
    play = theatre.play(does(), does(b"news", action=lambda: SetTimer(now())), does(b"timer"))
    play.init()
    play.notify(context=b"of notify")
    play.becomes(b"news", b"timer")
    assert play.seen[-1].context == b"of notify"
