"""Calls: in order, one at a time, with the history that they ask for."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

import pytest

from progressor import Event, Intent, InvalidRequest, ProcessInError, ProcessorError, Range, SetTimer, StepRequest, now
from progressor.model import Op
from tests.eventually import eventually
from tests.stage import PATIENCE, Gate, Theatre, does, fails


def test_simple_call(theatre: Theatre) -> None:
    play = theatre.play(
        does(b"init", response=b"born", aux_state=b"1", metadata={"k": 1}),
        does(b"call", response=b"answer", aux_state=b"2", metadata={"k": 2}),
        does(b"call 2"),
    )
    assert play.init(b"init args") == b"born"
    assert play.call(b"call args") == b"answer"
    assert play.call() is None
    process = play.get()
    assert (process.status, process.detail, process.corrupted_by) == ("running", None, None)
    assert (process.aux_state, process.metadata, process.last_event_id) == (b"2", {"k": 2}, 3)
    assert [seen.request.args for seen in play.seen] == [b"init args", b"call args", b""]
    assert [seen.payloads for seen in play.seen] == [[], [b"init"], [b"init", b"call"]]
    assert [seen.request.process.aux_state for seen in play.seen] == [None, b"1", b"2"]
    assert [seen.request.process.metadata for seen in play.seen] == [None, {"k": 1}, {"k": 2}]
    assert [seen.request.process.status for seen in play.seen] == ["init", "running", "running"]
    assert play.rows == {"processes": 1, "tasks": 3, "events": 3}


def test_simple_call_with_range(theatre: Theatre) -> None:
    """The range of a request is that of the history which its step is given; the next step has its own."""
    events = [b"%d" % n for n in range(1, 9)]
    play = theatre.play(does(*events), *6 * [does()], does(action=SetTimer(now())), does(b"9"), does())
    play.init()
    ranges = [
        Range(offset=2, limit=3),
        Range(offset=6),
        Range(offset=5, limit=2, direction="backward"),
        Range(limit=2, direction="backward"),
        Range(limit=0),
        Range(offset=100),
        Range(limit=1),
    ]
    for wanted in ranges:
        play.call(range=wanted)
    play.becomes(*events, b"9")
    play.call(range=Range(offset=7))
    assert [seen.payloads for seen in play.seen[1:]] == [
        [b"3", b"4", b"5"],
        [b"7", b"8"],
        [b"4", b"3"],
        [b"8", b"7"],
        [],
        [],
        [b"1"],
        events,  # the timer
        [b"8", b"9"],
    ]
    assert [seen.request.process.range for seen in play.seen[1:8]] == ranges
    assert {seen.request.process.last_event_id for seen in play.seen[1:9]} == {8}


def test_events_after_a_step_with_a_range_continue_the_history(theatre: Theatre) -> None:
    play = theatre.play(does(b"1", b"2"), does(b"3"), does(b"4"), does())
    play.init()
    play.call(range=Range(limit=0))
    play.call(range=Range(offset=1, limit=1))
    play.call()
    assert play.seen[-1].payloads == [b"1", b"2", b"3", b"4"]
    assert [event.event_id for event in play.get().history] == [1, 2, 3, 4]


def test_postponed_call(theatre: Theatre, gate: Gate) -> None:
    """A call to a process that runs a step comes after it, and is answered then."""
    play = theatre.play(
        does(b"init", action=SetTimer(now())), gate.holds(does(b"timer")), does(b"call", response=b"yes")
    )
    play.init()
    gate.wait_entered()
    call = play.later("call")
    eventually(lambda: play.tasks == ["init finished", "timeout running", "call waiting"])
    gate.open()
    assert call.result() == b"yes"
    assert play.payloads == [b"init", b"timer", b"call"]
    assert play.types == ["init", "timeout", "call"]
    assert play.tasks == ["init finished", "timeout finished", "call finished"]


def test_postponed_call_to_suspended_process(theatre: Theatre, gate: Gate) -> None:
    """A call that waits for a step which breaks the process is answered at once, and its task cancelled."""
    play = theatre.play(does(b"init", action=SetTimer(now())), gate.holds(fails(KeyError("x"))))
    play.init()
    gate.wait_entered()
    calls = [play.later("call"), play.later("call")]
    eventually(lambda: len(play.trace()) == 4)
    gate.open()
    for call in calls:
        with pytest.raises(ProcessInError, match=r"^process is error$"):
            call.result()
    assert play.tasks == ["init finished", "timeout error", "call cancelled", "call cancelled"]
    assert [unit.error for unit in play.trace()[2:]] == 2 * ["process is error"]
    assert play.get().status == "error"
    assert play.types == ["init", "timeout"]
    assert "schedule" not in play.rows


def test_multiple_calls(theatre: Theatre, gate: Gate) -> None:
    """Calls to one process run in the order in which they were accepted."""

    def answer(request: StepRequest) -> Intent:
        return Intent([Event(request.args)], response=request.args)

    play = theatre.play(does(), gate.holds(answer), *29 * [answer])
    play.init()
    numbers = [b"%02d" % n for n in range(30)]
    calls = [play.later("call", args=number) for number in numbers]
    gate.open()
    assert [call.result() for call in calls] == numbers
    assert play.payloads == numbers
    assert [unit.args for unit in play.trace()[1:]] == numbers


def test_calls_from_many_threads_run_one_at_a_time_in_the_order_of_their_tasks(theatre: Theatre) -> None:
    alone = Lock()

    def answer(request: StepRequest) -> Intent:
        assert alone.acquire(blocking=False), "two tasks of a process at once"
        try:
            return Intent([Event(request.args)], response=request.args)
        finally:
            alone.release()

    play = theatre.play(does(), *200 * [answer])
    play.init()
    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(play.call, [b"%d" % n for n in range(200)]))
    assert Counter(answers) == Counter(play.payloads) == Counter(b"%d" % n for n in range(200))
    assert [unit.args for unit in play.trace()[1:]] == play.payloads


def test_a_call_during_the_init_is_queued_behind_it(theatre: Theatre, gate: Gate) -> None:
    play = theatre.play(gate.holds(does(b"init")), does(b"call", response=b"yes"))
    init = play.later("init")
    gate.wait_entered()
    call = play.later("call")
    eventually(lambda: play.tasks == ["init running", "call waiting"])
    gate.open()
    assert (init.result(), call.result()) == (None, b"yes")
    assert play.payloads == [b"init", b"call"]


def test_a_call_behind_an_init_that_fails_is_answered(theatre: Theatre, gate: Gate) -> None:
    play = theatre.play(gate.holds(fails(ProcessorError("no"))))
    init = play.later("init")
    gate.wait_entered()
    call = play.later("call")
    eventually(lambda: len(play.trace()) == 2)
    gate.open()
    with pytest.raises(ProcessorError, match=r"^no$"):
        init.result()
    with pytest.raises(ProcessInError):
        call.result()


def test_calls_of_different_processes_do_not_wait_for_each_other(theatre: Theatre, gate: Gate) -> None:
    held, free = theatre.play(does(), gate.holds(does())), theatre.play(does(), does(response=b"free"))
    held.init()
    free.init()
    call = held.later("call")
    gate.wait_entered()
    assert free.call() == b"free"
    assert not call.done()
    gate.open()
    call.result()


def test_execute_says_all_that_an_answer_has(theatre: Theatre) -> None:
    play = theatre.play(does(b"1", b"2", response=b"init"), does(b"3", response=b"call"))
    client = theatre.node.client
    name: dict[str, Any] = {"ns": "a/b", "id": play.id}
    assert client.execute("init", **name).response == b"init"
    answer = client.future.execute(Op.CALL, **name).result(PATIENCE)
    assert (answer.response, answer.last_event_id) == (b"call", 3)
    assert answer.task_id == client.trace(**name)[-1].task_id
    with pytest.raises(InvalidRequest, match="op: expected one of init, call"):
        client.execute("get", **name)


def test_futures_carry_answers_and_errors(theatre: Theatre) -> None:
    play = theatre.play(does(response=b"a"), does(response=b"b"), fails(ProcessorError("no")))
    future = theatre.node.client.future
    assert play.later("init").result(PATIENCE) == b"a"
    assert play.later("call").result(PATIENCE) == b"b"
    assert isinstance(play.later("call").exception(PATIENCE), ProcessorError)
    assert isinstance(play.later("call").exception(PATIENCE), ProcessInError)
    assert play.later("get").result(PATIENCE).status == "error"
    assert len(play.later("trace").result(PATIENCE)) == 3
    assert future.list(ns="a/b", id_prefix=play.id, limit=1).result(PATIENCE).items[0].process_id == play.id
    assert future.health_check(["a/b"]).result(PATIENCE)[0] == "passing"
    assert play.later("simple_repair").result(PATIENCE) is None
    assert play.later("remove").result(PATIENCE) is None
