"""One key, one effect, one answer (docs/design.md, "Operations")."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import Barrier
from typing import Any

import pytest

from progressor import IdempotencyConflict, Node, ProcessInError, ProcessNotFound, ProcessorError, SetTimer, now
from tests import stage
from tests.conftest import Database
from tests.eventually import eventually
from tests.stage import Gate, Play, Step, Theatre, does, fails

THREADS = 8
VERBS = ("init", "call", "notify", "repair", "simple_repair", "remove")


def prepared(theatre: Theatre, verb: str, *script: Step) -> Play:
    """A process for which the verb will go well; its steps are the given ones."""
    begin = {"init": [], "repair": [fails(ProcessorError("no"))], "simple_repair": [fails(ProcessorError("no"))]}
    play = theatre.play(*begin.get(verb, [does(b"born")]), *script)
    if verb in ("repair", "simple_repair"):
        with pytest.raises(ProcessorError):
            play.init()
    elif verb != "init":
        play.init()
    return play


def key_of(play: Play) -> str:
    return f"key of {play.id}"


def ask(play: Play, verb: str, key: str | None = None, **options: Any) -> Any:
    return play.later(verb, idempotency_key=key or key_of(play), **options).result()


@pytest.mark.parametrize("verb", VERBS)
def test_a_second_request_gets_the_same_answer_and_has_no_effect(theatre: Theatre, verb: str) -> None:
    play = prepared(theatre, verb, does(b"once", response=b"answer"), does(b"twice", response=b"another"))
    first = ask(play, verb)
    if verb == "notify":
        play.becomes(b"born", b"once")
    rows = play.rows
    assert [ask(play, verb) for _ in range(3)] == 3 * [first]
    assert play.rows == rows
    expected = {"init": b"answer", "call": b"answer", "repair": b"answer", "notify": first}
    assert first == expected.get(verb)
    if verb != "remove":
        assert play.trace()[-1].idempotency_key == key_of(play)
        assert b"twice" not in play.payloads


@pytest.mark.parametrize("verb", ["init", "call", "repair"])
def test_an_error_is_an_answer_too(theatre: Theatre, verb: str) -> None:
    play = prepared(theatre, verb, fails(ProcessorError("declined")), does(b"twice"))
    for _ in range(3):
        with pytest.raises(ProcessorError, match=r"^declined$") as told:
            ask(play, verb)
        assert type(told.value) is ProcessorError
        assert told.value.reason == "declined"
    assert b"twice" not in play.payloads


def test_the_answer_outlives_the_repair_of_the_process(theatre: Theatre) -> None:
    play = prepared(theatre, "call", fails(ProcessorError("declined")), does(b"repair"))
    for round_ in range(2):
        with pytest.raises(ProcessorError, match=r"^declined$"):
            ask(play, "call")
        if round_ == 0:
            play.repair()
    assert play.payloads == [b"born", b"repair"]


@pytest.mark.parametrize("verb", ["init", "call", "repair"])
def test_a_request_in_progress_is_waited_for(theatre: Theatre, gate: Gate, verb: str) -> None:
    play = prepared(theatre, verb, gate.holds(does(b"once", response=b"answer")), does(b"twice"))
    asked = [play.later(verb, idempotency_key=key_of(play)) for _ in range(3)]
    gate.wait_entered()
    asked.append(play.later(verb, idempotency_key=key_of(play)))
    assert not any(future.done() for future in asked)
    gate.open()
    assert [future.result() for future in asked] == 4 * [b"answer"]
    assert b"twice" not in play.payloads


def test_a_call_that_waits_in_the_queue_is_waited_for(theatre: Theatre, gate: Gate) -> None:
    play = prepared(theatre, "call", gate.holds(does(b"other")), does(b"once", response=b"answer"), does(b"twice"))
    play.later("call")
    gate.wait_entered()
    asked = [play.later("call", idempotency_key=key_of(play)) for _ in range(3)]
    eventually(lambda: play.tasks[-1] == "call waiting")
    gate.open()
    assert [future.result() for future in asked] == 3 * [b"answer"]
    assert play.payloads == [b"born", b"other", b"once"]


def test_a_call_that_was_cancelled_stays_cancelled(theatre: Theatre, gate: Gate) -> None:
    play = prepared(theatre, "call", gate.holds(fails(ProcessorError("no"))), does(b"repair"), does(b"too late"))
    play.later("call")
    gate.wait_entered()
    waiting = play.later("call", idempotency_key=key_of(play))
    eventually(lambda: play.tasks[-1] == "call waiting")
    gate.open()
    assert isinstance(waiting.exception(), ProcessInError)
    play.repair()
    with pytest.raises(ProcessInError, match=r"^process is error$"):
        ask(play, "call")
    assert play.payloads == [b"born", b"repair"]


def test_a_removal_in_progress_is_waited_for(theatre: Theatre, gate: Gate) -> None:
    play = prepared(theatre, "remove", gate.holds(does()))
    play.later("call")
    gate.wait_entered()
    asked = [play.later("remove", idempotency_key=key_of(play)) for _ in range(3)]
    eventually(lambda: len(play.trace()) == 3)
    gate.open()
    assert [future.result() for future in asked] == 3 * [None]
    assert ask(play, "remove") is None


def test_a_removal_that_was_answered_does_not_remove_a_later_process(theatre: Theatre) -> None:
    play = prepared(theatre, "remove", does(b"born again"))
    ask(play, "remove")
    play.init()
    assert ask(play, "remove") is None
    assert play.payloads == [b"born again"]
    assert play.tasks == ["init finished"]


def test_a_simple_repair_of_a_timer_runs_it_once(theatre: Theatre, gate: Gate) -> None:
    play = theatre.play(
        does(action=lambda: SetTimer(now())), fails(KeyError("x")), gate.holds(does(b"timer")), does(b"twice")
    )
    play.init()
    play.breaks()
    assert [ask(play, "simple_repair") for _ in range(2)] == [None, None]
    gate.wait_entered()
    assert ask(play, "simple_repair") is None
    gate.open()
    play.becomes(b"timer")
    assert ask(play, "simple_repair") is None
    assert play.types == ["init", "timeout", "timeout"]


def test_a_refusal_leaves_the_key_free(theatre: Theatre) -> None:
    """Nothing was stored, so the request may be made again when its time has come."""
    play = theatre.play(does(), does(response=b"answer"))
    with pytest.raises(ProcessNotFound):
        ask(play, "call")
    play.init()
    assert ask(play, "call") == b"answer"


CONFLICTS: dict[str, Callable[[Play, Play], object]] = {
    "another process": lambda play, other: ask(other, "call", key_of(play), args=b"args"),
    "other arguments": lambda play, _: ask(play, "call", args=b"ARGS"),
    "no arguments": lambda play, _: ask(play, "call"),
    "notify": lambda play, _: ask(play, "notify", args=b"args"),
    "init": lambda play, _: ask(play, "init", args=b"args"),
    "repair": lambda play, _: ask(play, "repair", args=b"args"),
    "simple_repair": lambda play, _: ask(play, "simple_repair"),
    "remove": lambda play, _: ask(play, "remove"),
}


@pytest.mark.parametrize("conflict", CONFLICTS.values(), ids=CONFLICTS)
def test_a_key_of_something_else_is_a_conflict(theatre: Theatre, conflict: Callable[[Play, Play], object]) -> None:
    play, other = prepared(theatre, "call", does(b"once")), prepared(theatre, "call")
    ask(play, "call", args=b"args")
    with pytest.raises(IdempotencyConflict):
        conflict(play, other)
    assert (play.payloads, other.payloads) == ([b"born", b"once"], [b"born"])
    assert play.tasks == ["init finished", "call finished"]


@pytest.mark.parametrize(("first", "second"), [("repair", "simple_repair"), ("simple_repair", "repair")])
def test_the_two_repairs_are_two_operations(theatre: Theatre, first: str, second: str) -> None:
    play = prepared(theatre, "repair", does())
    ask(play, first)
    with pytest.raises(IdempotencyConflict):
        ask(play, second)


def test_keys_of_two_namespaces_are_two(theatre: Theatre) -> None:
    here, there = theatre.play(does(response=b"here")), theatre.play(does(response=b"there"), ns="picky")
    assert ask(here, "init", "same key") == b"here"
    assert ask(there, "init", "same key") == b"there"


@pytest.mark.parametrize("key", ["k" * 256, "ключ 'quoted\" \\ % {x} $1 ;--"])
def test_any_text_can_be_a_key(theatre: Theatre, key: str) -> None:
    play = theatre.play(does(response=b"once"))
    assert [ask(play, "init", key), ask(play, "init", key)] == [b"once", b"once"]
    assert play.trace()[0].idempotency_key == key


@pytest.mark.parametrize("verb", VERBS)
def test_of_simultaneous_first_requests_one_wins(theatre: Theatre, verb: str) -> None:
    play = prepared(theatre, verb, does(b"once", response=b"answer"), does(b"twice"))
    answers = at_the_same_time([partial(ask, play, verb) for _ in range(THREADS)])
    assert answers == THREADS * answers[:1]
    assert b"twice" not in ([] if verb == "remove" else play.payloads)


@pytest.fixture(scope="module")
def second_node(theatre: Theatre) -> Iterator[Node]:
    """On the same database, with the same processor."""
    with other_node(theatre.database, theatre) as node:
        yield node


@contextmanager
def other_node(database: Database, theatre: Theatre) -> Iterator[Node]:
    with stage.node(database, {"a/b": theatre}, node={"node_name": "second"}) as node:
        yield node


@pytest.mark.parametrize("verb", VERBS)
def test_of_simultaneous_first_requests_to_two_nodes_one_wins(theatre: Theatre, second_node: Node, verb: str) -> None:
    for _ in range(3):
        play = prepared(theatre, verb, does(b"once", response=b"answer"), does(b"twice"))
        here = [partial(ask, play, verb) for _ in range(THREADS // 2)]
        there = [partial(ask, play.at(second_node), verb) for _ in range(THREADS // 2)]
        answers = at_the_same_time(here + there)
        assert answers == THREADS * answers[:1]
        assert b"twice" not in ([] if verb == "remove" else play.payloads)


def test_simultaneous_conflicting_requests_to_two_nodes(theatre: Theatre, second_node: Node) -> None:
    """One of them wins, and the others conflict with it."""
    plays = [theatre.play(does(response=b"%d" % n)) for n in range(THREADS)]

    def init(n: int) -> bytes | str:
        play = plays[n] if n % 2 else plays[n].at(second_node)
        try:
            return play.init(idempotency_key=f"contested {plays[0].id}") or b""
        except IdempotencyConflict:
            return "conflict"

    answers = at_the_same_time([partial(init, n) for n in range(THREADS)])
    assert answers.count("conflict") == THREADS - 1
    assert sum(bool(play.rows) for play in plays) == 1


def at_the_same_time(requests: Sequence[Callable[[], Any]]) -> list[Any]:
    barrier = Barrier(len(requests))

    def run(request: Callable[[], Any]) -> Any:
        barrier.wait()
        return request()

    with ThreadPoolExecutor(len(requests)) as threads:
        return list(threads.map(run, requests))
