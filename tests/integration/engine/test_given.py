"""What a step is given is its own: only what it returns is kept, as it will be read again."""

from __future__ import annotations

from typing import Any

import pytest

from progressor import Event, Intent, SetTimer, StepRequest
from progressor.errors import TransientError
from progressor.model import now, seconds
from tests import stage
from tests.conftest import Database
from tests.eventually import eventually
from tests.stage import Gate, Step, Theatre, does


def _scribbles(then: Step) -> Step:
    """Changes all that can be changed in what it is given."""

    def step(request: StepRequest) -> Intent:
        process: Any = request.process
        process.metadata["n"] += 1
        process.metadata["deep"]["list"].append("x")
        for event in process.history:
            event.metadata["scribbled"] = True
            event.metadata.get("deep", []).append("x")
        process.history[-1].metadata["scribbled"] = True
        process.last_event_id = 7
        return then(request)

    return step


def _fails(_: StepRequest) -> Intent:
    raise TransientError("later")


KEPT = {"n": 1, "deep": {"list": []}}


def _begins(request: StepRequest) -> Intent:
    events = [Event(b"1", {"deep": []}), Event(b"2")]
    return Intent(events, metadata=KEPT, action=SetTimer(now() + seconds(0.1)))


def _looks(request: StepRequest) -> Intent:
    _metadata(request)
    return Intent()


def _metadata(request: StepRequest) -> tuple[Any, Any]:
    return request.process.metadata, [event.metadata for event in request.process.history]


@pytest.mark.parametrize("then", [_fails, does()], ids=["fails", "changes nothing"])
def test_a_call_that_waits_is_not_given_what_a_timer_changed_and_did_not_return(
    theatre: Theatre, gate: Gate, then: Step
) -> None:
    play = theatre.play(_begins, gate.holds(_scribbles(then)), does(), does(), does())
    play.init()
    gate.wait_entered()
    call = play.later("call")
    eventually(lambda: "call waiting" in play.tasks)
    gate.open()
    call.result(stage.PATIENCE)
    assert _metadata(play.seen[2].request) == (KEPT, [{"deep": []}, {}])
    assert play.get().metadata == KEPT


def test_events_that_a_step_read_from_the_database_stay_as_they_were(theatre: Theatre) -> None:
    play = theatre.play(_scribbles(does()), does())
    play.put(metadata=KEPT, history=[Event(b"1", {"deep": []}), Event(b"2")])
    play.call()
    play.call()
    assert _metadata(play.seen[1].request) == (KEPT, [{"deep": []}, {}])


def test_what_a_step_returned_is_kept_as_it_was_then(theatre: Theatre) -> None:
    """The processor may go on with its objects."""
    metadata: dict[str, Any] = {"deep": {"list": []}}
    event = Event(b"1", {"deep": []})

    def goes_on(request: StepRequest) -> Intent:
        metadata["late"] = True
        metadata["deep"]["list"].append("x")
        event.metadata["deep"].append("x")
        return Intent()

    play = theatre.play(lambda _: Intent([event], metadata=metadata), goes_on, does())
    play.init()
    play.call()
    play.call()
    for seen in play.seen[1:]:
        assert _metadata(seen.request) == ({"deep": {"list": []}}, [{"deep": []}])


def test_metadata_are_the_same_in_memory_and_after_a_restart(database: Database) -> None:
    theatre = Theatre(database)
    odd: Any = {"tuple": (1, (2,)), 3: {None: 4.5, True: "é"}, "none": None}
    plain = {"tuple": [1, [2]], "3": {"null": 4.5, "true": "é"}, "none": None}
    with stage.node(database, {"a/b": theatre}) as node:
        theatre.node = node
        play = theatre.play(lambda _: Intent([Event(b"1", odd)], metadata=odd), _looks, _looks)
        play.init()
        play.call()
    with stage.node(database, {"a/b": theatre}) as node:
        play.at(node).call()
    for seen in play.seen[1:]:
        assert _metadata(seen.request) == (plain, [plain])
    assert [type(seen.request.process.metadata["tuple"]) for seen in play.seen[1:]] == [list, list]  # type: ignore[index]
