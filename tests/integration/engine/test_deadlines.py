"""How long requests wait, and what goes on when nobody waits any more."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from threading import Thread

import pytest

from progressor import ProcessorError, RequestTimeout, SetTimer, StorageUnavailable, now, seconds
from tests import stage
from tests.conftest import Database
from tests.eventually import eventually
from tests.stage import PATIENCE, Gate, Theatre, does, fails

SOON = 0.2


def waiting_callers(theatre: Theatre, ns: str = "a/b") -> int:
    _, details = theatre.node.client.health_check([ns])
    found: int = details[ns]["load"]["waiting_callers"]
    return found


def test_a_request_that_times_out_and_its_task_that_goes_on(theatre: Theatre, gate: Gate) -> None:
    play = theatre.play(does(b"init"), gate.holds(does(b"call", response=b"answer")))
    play.init()
    with pytest.raises(RequestTimeout, match=r"^timeout.*unknown.*goes on") as told:
        play.call(timeout=SOON, idempotency_key="patience")
    assert type(told.value) is RequestTimeout
    gate.open()
    play.becomes(b"init", b"call")
    assert play.tasks == ["init finished", "call finished"]
    assert play.call(idempotency_key="patience") == b"answer"


@pytest.mark.parametrize("verb", ["init", "repair", "remove"])
def test_other_requests_time_out_too(theatre: Theatre, gate: Gate, verb: str) -> None:
    script = {
        "init": [gate.holds(does(b"1"))],
        "repair": [fails(ProcessorError("no")), gate.holds(does(b"1"))],
        "remove": [does(), gate.holds(does())],
    }
    play = theatre.play(*script[verb])
    if verb != "init":
        play.later("init").exception()
    if verb == "remove":
        play.later("call")
        gate.wait_entered()
    with pytest.raises(RequestTimeout):
        play.later(verb, timeout=SOON).result()
    gate.open()
    if verb == "remove":
        eventually(lambda: not play.rows)
    else:
        play.becomes(b"1")


def test_no_request_waits_longer_than_a_step_may_take(theatre: Theatre, gate: Gate) -> None:
    play = theatre.play(does(), gate.holds(does()), ns="impatient")
    play.init()
    with pytest.raises(RequestTimeout):
        play.call(timeout=10_000)
    gate.open()


def test_a_call_whose_caller_gave_up_in_the_queue_runs_in_its_turn(theatre: Theatre, gate: Gate) -> None:
    play = theatre.play(does(), gate.holds(does(b"1")), does(b"2"), does(b"3"))
    play.init()
    first = play.later("call")
    gate.wait_entered()
    second = play.later("call", timeout=SOON)
    third = play.later("call")
    assert isinstance(second.exception(), RequestTimeout)
    gate.open()
    first.result()
    third.result()
    assert play.payloads == [b"1", b"2", b"3"]


def test_callers_who_gave_up_are_forgotten(theatre: Theatre, gate: Gate) -> None:
    play = theatre.play(does(), gate.holds(does()), *50 * [does()])
    play.init()
    play.later("call")
    gate.wait_entered()
    for call in [play.later("call", timeout=SOON) for _ in range(50)]:
        assert isinstance(call.exception(), RequestTimeout)
    eventually(lambda: waiting_callers(theatre) <= 1)
    gate.open()
    eventually(lambda: not waiting_callers(theatre))


def test_a_read_during_the_init_times_out(theatre: Theatre, gate: Gate) -> None:
    play = theatre.play(gate.holds(does()))
    init = play.later("init")
    gate.wait_entered()
    with pytest.raises(RequestTimeout, match=r"^timeout"):
        play.get(timeout=SOON)
    gate.open()
    init.result()
    assert play.get(timeout=SOON).status == "running"


def test_asyncio_can_wait_for_a_future(theatre: Theatre) -> None:
    play = theatre.play(does(response=b"born"), does(response=b"answer"))

    async def talk() -> list[bytes]:
        return [await asyncio.wrap_future(play.later(verb)) for verb in ("init", "call")]

    assert asyncio.run(talk()) == [b"born", b"answer"]


def test_a_callback_of_a_future_can_ask_for_more(theatre: Theatre) -> None:
    play = theatre.play(does(), does(response=b"answer"))
    answer: Future[bytes] = Future()

    def then(_: Future[None]) -> None:
        play.later("call").add_done_callback(lambda call: answer.set_result(call.result()))

    play.later("init").add_done_callback(then)
    assert answer.result(PATIENCE) == b"answer"


def test_a_node_that_stops_answers_what_runs_and_refuses_what_comes(database: Database) -> None:
    theatre = Theatre(database)
    with stage.Gate() as gate, stage.node(database, {"a/b": theatre}) as node:
        theatre.node = node
        play = theatre.play(does(), gate.holds(does(b"call", response=b"answer")), does(b"never"))
        play.init()
        running = play.later("call")
        gate.wait_entered()
        waiting = play.later("call")
        eventually(lambda: play.tasks[-1] == "call waiting")
        stopping = Thread(target=node.stop)
        stopping.start()
        eventually(lambda: node.health()[0] == "critical")
        assert not node.is_ready
        with pytest.raises(StorageUnavailable):
            play.call()
        assert node.client.health_check(["a/b"])[1]["a/b"]["problems"] == ["the node is stopping"]
        gate.open()
        stopping.join(PATIENCE)
        assert running.result(0) == b"answer"
        assert isinstance(waiting.exception(PATIENCE), RequestTimeout)
    with stage.node(database, {"a/b": theatre}) as node:
        again = play.at(node)
        again.becomes(b"call", b"never")
        assert again.tasks == ["init finished", "call finished", "call finished"]


def test_what_waits_survives_a_restart(database: Database) -> None:
    theatre = Theatre(database)
    with stage.node(database, {"a/b": theatre}) as node:
        theatre.node = node
        far = theatre.play(does(action=SetTimer(now() + seconds(3600))), does(b"call"))
        soon = theatre.play(does(action=SetTimer(now() + seconds(0.5))), does(b"timer"))
        far.init()
        soon.init()
    with stage.node(database, {"a/b": theatre}) as node:
        soon.at(node).becomes(b"timer")
        far.at(node).call()
        assert far.at(node).tasks == ["init finished", "timeout waiting", "call finished"]
