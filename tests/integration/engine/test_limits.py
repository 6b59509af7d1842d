"""Sizes and names at the edge: large payloads, long histories, ids and namespaces that try to be SQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from progressor import Event, Intent, InvalidRequest, ProcessorError, Range, SetTimer, StepRequest, now
from tests import stage
from tests.conftest import Database
from tests.eventually import eventually
from tests.stage import Gate, Play, Theatre, does, fails, returns

MEGABYTE = bytes(range(256)) * 4096
MANY = 50_000
NAMES = [
    "it's",
    'quo"te "" \'\'',
    " spaces  in it ",
    "per%cent %s %(id)s %%",
    "{brace} {0} {{}} {processes}",
    "back\\slash \\' \\n",
    "имя 名前 🜂",
    "a/b:c,1:2",
    "$1 $$ $a$",
    "x'; drop table y; --",
    "NULL",
]


def test_megabytes_everywhere(theatre: Theatre) -> None:
    def echo(request: StepRequest) -> Intent:
        events = [Event(request.args, {"n": "ä" * 100_000}) for _ in range(8)]
        return Intent(events, aux_state=request.args, response=request.args, metadata={"m": "x" * 1_000_000})

    play = theatre.play(echo, echo, does())
    assert play.init(MEGABYTE, context=MEGABYTE) == MEGABYTE
    assert play.call(MEGABYTE, context=MEGABYTE, idempotency_key="large") == MEGABYTE
    play.call()
    assert play.seen[1].context == MEGABYTE
    assert play.seen[2].payloads == 16 * [MEGABYTE]
    process = play.get()
    assert (process.aux_state, process.metadata) == (MEGABYTE, {"m": "x" * 1_000_000})
    assert play.payloads == 16 * [MEGABYTE]
    assert play.trace()[1].args == MEGABYTE
    play.remove()


def test_many_large_requests_at_once(theatre: Theatre) -> None:
    """More than a transaction can be allowed to hold without pain, from many processes."""
    plays = [theatre.play(returns(Intent([Event(MEGABYTE)], response=MEGABYTE))) for _ in range(40)]
    for init in [play.later("init", args=MEGABYTE) for play in plays]:
        assert init.result() == MEGABYTE
    for play in plays:
        assert play.get().history[0].payload == MEGABYTE
        play.remove()


def test_a_history_of_fifty_thousand_events(theatre: Theatre) -> None:
    def more(request: StepRequest) -> Intent:
        last = request.process.last_event_id
        return Intent([Event(b"%d" % n) for n in range(last + 1, last + 5001)])

    play = theatre.play(*4 * [more], does(), does(response=b"ok"))
    play.put(history=[Event(b"%d" % n) for n in range(1, MANY - 20_000 + 1)])
    for _ in range(4):
        play.call()
    assert play.get(range=Range(limit=0)).last_event_id == MANY
    ids = [event.event_id for event in play.get().history]
    assert ids == list(range(1, MANY + 1))
    for wanted, found in (
        (Range(offset=MANY - 3), [MANY - 2, MANY - 1, MANY]),
        (Range(offset=40_000, limit=2), [40_001, 40_002]),
        (Range(limit=2, direction="backward"), [MANY, MANY - 1]),
        (Range(offset=32_769, limit=3, direction="backward"), [32_768, 32_767, 32_766]),
        (Range(offset=MANY), []),
    ):
        history = play.get(range=wanted).history
        assert [event.event_id for event in history] == found
        assert [event.payload for event in history] == [b"%d" % n for n in found]
    play.call(range=Range(offset=MANY - 2))
    assert play.seen[-1].payloads == [b"%d" % (MANY - 1), b"%d" % MANY]
    assert play.call() == b"ok"
    assert len(play.seen[-1].payloads) == MANY
    assert len(play.trace()) == 7
    play.remove()
    assert play.rows == {}


@pytest.mark.parametrize("verb", ["init", "call", "notify", "repair", "simple_repair", "remove", "get", "put", "trace"])
def test_ids_of_300_characters_are_refused(theatre: Theatre, verb: str) -> None:
    play = theatre.play(id="x" * 300)
    with pytest.raises(InvalidRequest, match=r"^id: has 300 characters, at most 256 are allowed$"):
        getattr(play, verb)()


def live(play: Play) -> None:
    """A whole life: every operation once."""
    assert play.init(play.id.encode(), idempotency_key=play.id) == b"born"
    assert play.call() == b"called"
    play.becomes(b"1", b"2", b"3")
    with pytest.raises(ProcessorError):
        play.call()
    assert play.repair() == b"repaired"
    play.notify()
    play.becomes(b"1", b"2", b"3", b"4", b"5")
    found = play.client.list(ns=play.ns, id_prefix=play.id).items
    assert [process.process_id for process in found] == [play.id]
    assert [str(unit.task_type) for unit in play.trace()] == play.types
    assert play.types == ["init", "call", "timeout", "call", "repair", "notify"]
    assert play.seen[0].request.args == play.id.encode()
    play.remove()
    assert play.rows == {}
    play.put(SetTimer(now()))
    eventually(lambda: play.types[-1] == "timeout")
    play.becomes(b"6")
    play.remove()


LIFE = [
    does(b"1", response=b"born"),
    does(b"2", response=b"called", action=lambda: SetTimer(now())),
    does(b"3"),
    fails(ProcessorError("no")),
    does(b"4", response=b"repaired"),
    does(b"5"),
    does(b"6"),
]


@pytest.mark.parametrize(
    "id", [*NAMES, "new\nline\ttab", "я" * 256, "p'; delete from \"a/b_processes\" where ''='", "%", "_", "\\"]
)
def test_any_text_can_be_an_id(theatre: Theatre, id: str) -> None:
    bystander = theatre.play(does(b"untouched"))
    bystander.init()
    live(theatre.play(*LIFE, id=id))
    assert bystander.payloads == [b"untouched"]
    bystander.remove()


@pytest.fixture(scope="module")
def oddly_named(shared_database: Database) -> Iterator[tuple[Theatre, Theatre]]:
    """Two nodes with all these namespaces, which never look into the database by themselves."""
    small = {"worker_pool_size": 2, "task_scan_timeout": 60, "call_scan_timeout": 60}
    first, second = Theatre(shared_database), Theatre(shared_database)
    with ExitStack() as stack:
        for name, theatre in (('it\'s "first"', first), ("%s", second)):
            settings = {"node": {"node_name": name}, "defaults": small}
            node = stage.node(shared_database, dict.fromkeys(NAMES, first), **settings)
            theatre.node = stack.enter_context(node)
        yield first, second


@pytest.mark.parametrize("ns", NAMES)
def test_any_text_can_be_a_namespace(oddly_named: tuple[Theatre, Theatre], ns: str) -> None:
    first, _ = oddly_named
    live(first.play(*LIFE, ns=ns))
    health, details = first.node.client.health_check([ns])
    assert (health, list(details)) == ("passing", [ns])
    assert (
        first.node.metrics.registry.get_sample_value("progressor_fenced_completions_total", {"prg_namespace": ns}) == 0
    )


@pytest.mark.parametrize("ns", NAMES)
def test_nodes_tell_each_other_of_namespaces_with_any_name(
    oddly_named: tuple[Theatre, Theatre], gate: Gate, ns: str
) -> None:
    first, second = oddly_named
    play = first.play(does(), gate.holds(does()), does(response=b"answer"), ns=ns)
    play.init()
    play.later("call")
    gate.wait_entered()
    waiting = play.at(second.node).later("call")
    eventually(lambda: play.tasks[-1] == "call waiting")
    gate.open()
    assert waiting.result() == b"answer"
    play.remove()
