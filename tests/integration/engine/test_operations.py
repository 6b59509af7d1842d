"""Each operation in each status of a process: its effect, or the error with the text of the original."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from progressor import (
    NamespaceNotFound,
    Process,
    ProcessAlreadyExists,
    ProcessInError,
    ProcessInInit,
    ProcessNotFound,
    ProcessorError,
    ProcessRunning,
    ProgressorError,
)
from tests.eventually import eventually
from tests.stage import Gate, Play, Theatre, does, fails

EXISTS = (ProcessAlreadyExists, "process already exists")
MISSING = (ProcessNotFound, "process not found")
IN_ERROR = (ProcessInError, "process is error")
RUNNING = (ProcessRunning, "process is running")
IN_INIT = (ProcessInInit, "process is init")

VERBS: dict[str, Callable[[Play], object]] = {
    "init": lambda play: play.init(b"again"),
    "call": lambda play: play.call(b"c"),
    "notify": lambda play: play.notify(b"n"),
    "repair": lambda play: play.repair(b"r"),
    "simple_repair": lambda play: play.simple_repair(),
    "get": lambda play: play.get(),
    "put": lambda play: play.put(),
    "remove": lambda play: play.remove(),
    "trace": lambda play: play.trace(),
}
REFUSALS: dict[str, dict[str, tuple[type[ProgressorError], str]]] = {
    "running": {"init": EXISTS, "put": EXISTS, "repair": RUNNING, "simple_repair": RUNNING},
    "init": {"init": EXISTS, "put": EXISTS, "repair": IN_INIT, "simple_repair": IN_INIT},
    "error": {"init": EXISTS, "put": EXISTS, "call": IN_ERROR, "notify": IN_ERROR},
    "missing": {verb: MISSING for verb in VERBS if verb not in ("init", "put")},
    "removed": {verb: MISSING for verb in VERBS if verb not in ("init", "put")},
}
TABLE = [(status, verb) for status in REFUSALS for verb in VERBS]


def in_status(status: str, theatre: Theatre, gate: Gate) -> Play:
    """A process in this status; two more steps will go well."""
    begin = {
        "running": [does(b"born")],
        "init": [gate.holds(does(b"born"))],
        "error": [fails(ProcessorError("broken"))],
        "missing": [],
        "removed": [does(b"born")],
    }[status]
    play = theatre.play(*begin, does(b"next", response=b"ok"), does(b"last"))
    match status:
        case "init":
            play.later("init")
            gate.wait_entered()
        case "error":
            with pytest.raises(ProcessorError, match=r"^broken$"):
                play.init()
        case "running" | "removed":
            play.init()
    if status == "removed":
        play.remove()
    return play


@pytest.mark.parametrize(("status", "verb"), [(s, v) for s, v in TABLE if v in REFUSALS[s]])
def test_an_operation_is_refused(theatre: Theatre, gate: Gate, status: str, verb: str) -> None:
    play = in_status(status, theatre, gate)
    rows, steps = play.rows, len(play.seen)
    error, text = REFUSALS[status][verb]
    with pytest.raises(error) as refused:
        VERBS[verb](play)
    assert str(refused.value) == text
    assert type(refused.value) is error
    assert (play.rows, len(play.seen)) == (rows, steps)


@pytest.mark.parametrize(("status", "verb"), [(s, v) for s, v in TABLE if v not in REFUSALS[s] and s != "init"])
def test_an_operation_is_done(theatre: Theatre, gate: Gate, status: str, verb: str) -> None:
    play = in_status(status, theatre, gate)
    before = len(play.seen)
    answer = VERBS[verb](play)
    match verb:
        case "init" | "call" | "repair":
            assert answer == b"ok"
            assert play.types[before:] == [verb]
            assert play.get().status == "running"
            assert play.get().detail is None
            assert play.payloads[-1] == b"next"
        case "notify":
            assert isinstance(answer, int)
            eventually(lambda: play.payloads == [b"born", b"next"])
            assert play.trace()[-1].task_id == answer
        case "simple_repair":
            assert answer is None
            assert (play.get().status, play.get().detail, play.get().previous_status) == ("running", None, "error")
            assert play.types == ["init"]
        case "get":
            assert isinstance(answer, Process)
            assert (answer.process_id, answer.status) == (play.id, status)
        case "trace":
            assert [unit.task_type for unit in play.trace()] == ["init"]
        case "put":
            assert play.get().status == "running"
        case "remove":
            assert answer is None
            assert play.rows == {}


@pytest.mark.parametrize("verb", [v for v in VERBS if v not in REFUSALS["init"] and v != "trace"])
def test_an_operation_during_the_init_waits_for_it(theatre: Theatre, gate: Gate, verb: str) -> None:
    play = in_status("init", theatre, gate)
    answer = play.later(verb)
    if verb == "notify":
        assert answer.result() == play.trace()[-1].task_id
        assert play.types == ["init"]
    else:
        eventually(lambda: verb == "get" or len(play.trace()) == 2)
        assert not answer.done()
    gate.open()
    result = answer.result()
    match verb:
        case "get":
            assert (result.status, [e.payload for e in result.history]) == ("running", [b"born"])
        case "remove":
            assert (result, play.rows) == (None, {})
        case _:
            play.becomes(b"born", b"next")


def test_init_in_progress_get(theatre: Theatre, gate: Gate) -> None:
    """A read during the init gives what the init made; also when that is an error."""
    for step, status in ((does(b"born"), "running"), (fails(ProcessorError("no")), "error")):
        with Gate() as door:
            play = theatre.play(door.holds(step))
            init = play.later("init")
            door.wait_entered()
            reads = [play.later("get") for _ in range(3)]
            assert play.tasks == ["init running"]
            assert not any(read.done() for read in reads)
            door.open()
            assert {read.result().status for read in reads} == {status}
            assert (init.exception() is None) == (status == "running")


def test_a_status_remembers_when_it_changed_and_from_what(theatre: Theatre) -> None:
    play = theatre.play(does(), fails(ProcessorError("no")), does(), does())
    play.init()
    born = play.get()
    assert (born.previous_status, born.status) == ("init", "running")
    assert born.created_at is not None
    assert born.status_changed_at is not None
    assert born.created_at <= born.status_changed_at
    with pytest.raises(ProcessorError):
        play.call()
    broken = play.get()
    assert (broken.previous_status, broken.status, broken.detail) == ("running", "error", "no")
    assert broken.corrupted_by == play.trace()[-1].task_id
    play.repair()
    repaired = play.get()
    assert (repaired.previous_status, repaired.status, repaired.detail) == ("error", "running", None)
    assert repaired.corrupted_by is None
    play.call()
    assert play.get().status_changed_at == repaired.status_changed_at
    assert broken.status_changed_at is not None
    assert repaired.status_changed_at is not None
    assert born.status_changed_at < broken.status_changed_at < repaired.status_changed_at
    assert play.get().created_at == born.created_at


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_namespace(theatre: Theatre, verb: str) -> None:
    play = theatre.play(ns="no/such")
    with pytest.raises(NamespaceNotFound, match=r"^namespace not found$"):
        VERBS[verb](play)


def test_an_unknown_namespace_of_a_listing_or_health_check(theatre: Theatre) -> None:
    with pytest.raises(NamespaceNotFound):
        theatre.node.client.list(ns="no/such")
    with pytest.raises(NamespaceNotFound):
        theatre.node.client.health_check(["a/b", "no/such"])
    assert issubclass(NamespaceNotFound, ProgressorError)


def test_processes_of_two_namespaces_with_the_same_id_are_two(theatre: Theatre) -> None:
    here, there = theatre.play(does(b"here"), id="same"), theatre.play(does(b"there"), ns="picky", id="same")
    here.init()
    there.init()
    assert (here.payloads, there.payloads) == ([b"here"], [b"there"])
    here.remove()
    assert there.payloads == [b"there"]
