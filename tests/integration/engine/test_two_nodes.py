"""Two nodes on one database: whoever is asked, one of them does it, once (docs/design.md, "Time, scanning, recovery").

Nobody looks into the database by himself here: the intervals of all scans are longer than the tests. What works,
works because nodes tell each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from progressor import Node, ProcessInError, ProcessNotFound, ProcessorError, SetTimer, now, seconds
from tests import stage
from tests.conftest import Database
from tests.eventually import eventually
from tests.stage import Gate, Theatre, does, fails

A_MINUTE = 60


@pytest.fixture(scope="module")
def theatre(shared_database: Database) -> stage.Theatre:
    return stage.Theatre(shared_database)


@pytest.fixture(scope="module")
def nodes(theatre: Theatre) -> Iterator[tuple[Node, Node]]:
    patient = {"task_scan_timeout": A_MINUTE, "call_scan_timeout": A_MINUTE, "process_step_timeout": 20}
    with ExitStack() as stack:
        first, second = [
            stack.enter_context(
                stage.node(theatre.database, {"a/b": theatre}, node={"node_name": name}, defaults=patient)
            )
            for name in ("first", "second")
        ]
        theatre.node = first
        yield first, second


def test_each_node_sees_what_the_other_does(theatre: Theatre, nodes: tuple[Node, Node]) -> None:
    here = theatre.play(*[does(b"%d" % n, response=b"%d" % n) for n in range(6)])
    there = here.at(nodes[1])
    assert here.init() == b"0"
    for n in range(1, 6):
        assert (there if n % 2 else here).call() == b"%d" % n
    assert here.payloads == there.payloads == [b"%d" % n for n in range(6)]
    assert [seen.payloads for seen in here.seen] == [[b"%d" % n for n in range(m)] for m in range(6)]


def test_a_call_behind_a_step_of_the_other_node_is_answered_when_it_has_run_there(
    theatre: Theatre, nodes: tuple[Node, Node], gate: Gate
) -> None:
    here = theatre.play(does(), gate.holds(does(b"first", response=b"1")), does(b"second", response=b"2"))
    there = here.at(nodes[1])
    here.init()
    first = here.later("call")
    gate.wait_entered()
    second = there.later("call")
    eventually(lambda: here.tasks[-1] == "call waiting")
    gate.open()
    assert (first.result(), second.result()) == (b"1", b"2")
    assert here.payloads == [b"first", b"second"]


def test_a_call_that_is_cancelled_by_a_step_of_the_other_node_is_answered(
    theatre: Theatre, nodes: tuple[Node, Node], gate: Gate
) -> None:
    here = theatre.play(does(), gate.holds(fails(ProcessorError("no"))))
    there = here.at(nodes[1])
    here.init()
    first = here.later("call")
    gate.wait_entered()
    second = there.later("call")
    eventually(lambda: here.tasks[-1] == "call waiting")
    gate.open()
    assert isinstance(first.exception(), ProcessorError)
    with pytest.raises(ProcessInError, match=r"^process is error$"):
        second.result()


def test_a_removal_answers_the_waiting_callers_of_both_nodes(
    theatre: Theatre, nodes: tuple[Node, Node], gate: Gate
) -> None:
    here = theatre.play(does(), gate.holds(does()))
    there = here.at(nodes[1])
    here.init()
    here.later("call")
    gate.wait_entered()
    calls = [here.later("call"), there.later("call")]
    eventually(lambda: len(here.trace()) == 4)
    removal = there.later("remove")
    eventually(lambda: len(here.trace()) == 5)
    gate.open()
    assert removal.result() is None
    for call in calls:
        with pytest.raises(ProcessNotFound):
            call.result()
    assert here.rows == {}


def test_a_read_through_the_other_node_waits_for_the_init(
    theatre: Theatre, nodes: tuple[Node, Node], gate: Gate
) -> None:
    here = theatre.play(gate.holds(does(b"born")))
    init = here.later("init")
    gate.wait_entered()
    read = here.at(nodes[1]).later("get")
    assert not read.done()
    gate.open()
    assert [event.payload for event in read.result().history] == [b"born"]
    init.result()


def test_the_same_request_with_a_key_to_both_nodes(theatre: Theatre, nodes: tuple[Node, Node], gate: Gate) -> None:
    here = theatre.play(does(), gate.holds(does(b"once", response=b"answer")), does(b"twice"))
    here.init()
    first = here.later("call", idempotency_key="of both nodes")
    gate.wait_entered()
    second = here.at(nodes[1]).later("call", idempotency_key="of both nodes")
    third = here.later("call", idempotency_key="of both nodes")
    gate.open()
    assert [first.result(), second.result(), third.result()] == 3 * [b"answer"]
    assert here.at(nodes[1]).later("call", idempotency_key="of both nodes").result() == b"answer"
    assert here.payloads == [b"once"]


def test_calls_through_both_nodes_run_in_the_order_of_their_tasks(theatre: Theatre, nodes: tuple[Node, Node]) -> None:
    count = 100
    here = theatre.play(does(), *count * [lambda request: does(request.args)(request)])
    there = here.at(nodes[1])
    here.init()
    calls = [(there if n % 3 else here).later("call", args=b"%d" % n) for n in range(count)]
    for call in calls:
        call.result()
    assert len(here.payloads) == count
    assert [unit.args for unit in here.trace()[1:]] == here.payloads


def test_timers_fire_once(theatre: Theatre, database: Database) -> None:
    """Although both nodes know of them: one from having set them, both from their scans."""
    scans = {"task_scan_timeout": 0.1, "call_scan_timeout": 0.1}
    theatre = stage.Theatre(database)
    with ExitStack() as stack:
        for name in ("first", "second"):
            running = stage.node(database, {"a/b": theatre}, node={"node_name": name}, defaults=scans)
            theatre.node = stack.enter_context(running)
        plays = [theatre.play(does(action=SetTimer(now() + seconds(0.5))), does(b"fired")) for _ in range(200)]
        for init in [play.later("init") for play in plays]:
            init.result()
        for play in plays:
            play.becomes(b"fired")
        assert {tuple(play.types) for play in plays} == {("init", "timeout")}


def test_a_node_that_stops_hands_back_and_the_other_one_goes_on(database: Database) -> None:
    """The step that runs may end; calls that wait behind it, timers and loops are the other's from then on."""
    theatre = stage.Theatre(database)

    loop = does(b"again", action=SetTimer(now()))

    with stage.node(database, {"a/b": theatre}, node={"node_name": "second"}) as second, stage.Gate() as gate:
        with ExitStack() as first:
            theatre.node = first.enter_context(
                stage.node(database, {"a/b": theatre}, node={"node_name": "first"}, defaults={"worker_pool_size": 2})
            )
            busy = theatre.play(does(), gate.holds(does(b"first", response=b"1")), does(b"second", response=b"2"))
            looping = [theatre.play(*2000 * [loop]) for _ in range(5)]
            timer = theatre.play(does(action=SetTimer(now() + seconds(1))), does(b"fired"))
            for play in (busy, timer, *looping):
                play.init()
            running = busy.later("call")
            gate.wait_entered()
            waiting = busy.at(second).later("call")
            eventually(lambda: busy.tasks[-1] == "call waiting")
            gate.open()
        assert running.result() == b"1"
        assert waiting.result() == b"2"
        taken_over = {play.id: len(play.seen) for play in looping}
        eventually(lambda: all(len(play.seen) > taken_over[play.id] + 10 for play in looping))
        assert {play.at(second).get().status for play in looping} == {"running"}
        timer.at(second).becomes(b"fired")
        assert busy.at(second).payloads == [b"first", b"second"]
        for play in looping:
            play.at(second).remove()
            assert play.rows == {}
