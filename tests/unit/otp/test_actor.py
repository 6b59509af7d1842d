from __future__ import annotations

import gc
import logging
import threading
import weakref
from dataclasses import dataclass

import pytest

from progressor.otp import (
    Actor,
    ActorDead,
    Call,
    CallTimeout,
    Exit,
    Normal,
    Ref,
    Refuse,
    Shutdown,
    actors,
    start_root,
)
from tests.eventually import eventually
from tests.unit.otp.conftest import Start
from tests.unit.otp.probe import (
    TIMEOUT,
    Crash,
    CrashCall,
    CrashError,
    Echo,
    Exits,
    Gate,
    Hang,
    Journal,
    Leave,
    Note,
    Probe,
)

# Starting


def test_init_runs_in_the_actors_own_thread(start: Start) -> None:
    threads: list[int] = []
    ref = start(lambda: Probe(in_init=lambda: threads.append(threading.get_ident())))
    assert threads == [ref.thread]
    assert threads != [threading.get_ident()]


def test_an_error_in_init_is_raised_at_the_starter_and_is_no_exit(start: Start, exits: Exits) -> None:
    def fail() -> None:
        raise CrashError("no database")

    with pytest.raises(CrashError, match="no database"):
        start(lambda: Probe(in_init=fail))
    assert exits.empty()


def test_a_system_exit_in_init_is_raised_as_an_exception(start: Start) -> None:
    def fail() -> None:
        raise SystemExit(1)

    with pytest.raises(RuntimeError, match="SystemExit"):
        start(lambda: Probe(in_init=fail))


def test_a_failed_init_stops_what_it_had_started(start: Start) -> None:
    class Parent(Actor):
        def init(self) -> None:
            self.start_link(Probe)
            raise CrashError

    with pytest.raises(CrashError):
        start(Parent)
    eventually(lambda: not actors())


def test_its_own_name_goes_before_the_starters_and_that_before_the_class(start: Start) -> None:
    own, starters, class_ = Probe("own"), Probe(), Probe()
    refs = [own.launch("starter's", None), starters.launch("starter's", None), class_.launch("", None)]
    assert [ref.name for ref in refs] == ["own", "starter's", "Probe"]
    names = {thread.name for thread in threading.enumerate()}
    assert {ref.name for ref in refs} <= names
    assert all(ref.stop(TIMEOUT) for ref in refs)


def test_the_threads_are_daemons(start: Start) -> None:
    ref = start(Probe)
    assert [t.daemon for t in threading.enumerate() if t.ident == ref.thread] == [True]


# Messages


def test_casts_are_handled_in_order(start: Start) -> None:
    journal = Journal()
    ref = start(lambda: Probe(journal=journal))
    for number in range(100):
        assert ref.cast(Note(str(number)))
    assert ref.call(Echo(1), TIMEOUT) == 1
    assert journal.take() == ["start root", *(str(number) for number in range(100))]


def test_a_call_that_raises_gives_its_caller_the_exception_and_kills(start: Start, exits: Exits) -> None:
    ref = start(Probe)
    error = CrashError("x")
    with pytest.raises(CrashError) as raised:
        ref.call(CrashCall(error), TIMEOUT)
    assert raised.value is error
    assert not ref.is_alive
    assert exits.next() == Exit(ref, error)


def test_a_cast_that_raises_kills(start: Start, exits: Exits, caplog: pytest.LogCaptureFixture) -> None:
    ref = start(Probe)
    error = CrashError("x")
    ref.cast(Crash(error))
    exit_ = exits.next()
    assert exit_ == Exit(ref, error)
    assert exit_.crashed
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [(logging.ERROR, "actor root died")]


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit()])
def test_a_base_exception_kills_its_actor_only(start: Start, exits: Exits, error: BaseException) -> None:
    bystander, ref = start(Probe), start(Probe)
    with pytest.raises(RuntimeError, match=type(error).__name__) as raised:
        ref.call(CrashCall(error), TIMEOUT)
    assert raised.value.__cause__ is error
    assert exits.next() == Exit(ref, raised.value)
    assert bystander.call(Echo(1), TIMEOUT) == 1


def test_an_unknown_message_kills(start: Start, exits: Exits) -> None:
    start(Probe).cast("what?")
    assert isinstance(exits.next().reason, TypeError)


def test_a_refusal_is_raised_at_the_caller_and_the_actor_lives(start: Start) -> None:
    class Refusing(Actor):
        def handle(self, message: object) -> object:
            return Refuse(KeyError("unknown"))

    ref = start(Refusing)
    for _ in range(2):
        ref.cast(Echo(1))
        with pytest.raises(KeyError, match="unknown"):
            ref.call(Echo(1), TIMEOUT)


def test_a_call_that_is_not_answered_in_time_raises(start: Start, gate: Gate) -> None:
    ref = start(Probe)
    ref.cast(Hang(gate))
    with pytest.raises(CallTimeout, match=r"root did not answer Echo in 0.01 s"):
        ref.call(Echo(1), 0.01)
    assert issubclass(CallTimeout, TimeoutError)


def test_an_actor_that_calls_itself_is_told_so(start: Start) -> None:
    class Narcissus(Probe):
        def handle(self, message: object) -> object:
            return self.ref.call(Echo(1), TIMEOUT)

    with pytest.raises(RuntimeError, match="calls itself"):
        start(Narcissus).call(Echo(1), TIMEOUT)


def test_the_dead_are_not_alive_take_no_casts_and_answer_no_calls(start: Start) -> None:
    ref = start(Probe)
    assert ref.is_alive
    assert ref.stop(TIMEOUT)
    assert not ref.is_alive
    assert not ref.cast(Note("x"))
    with pytest.raises(ActorDead, match="root is dead"):
        ref.call(Echo(1), TIMEOUT)
    assert ref.stop(TIMEOUT)
    assert "dead" in repr(ref)


def test_a_call_put_after_the_last_look_into_the_inbox_is_answered(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = start(Probe)
    ref.stop(TIMEOUT)
    monkeypatch.setattr(ref._actor, "is_alive", lambda: True)  # as the caller saw it just before
    with pytest.raises(ActorDead):
        ref.call(Echo(1), TIMEOUT)


def test_no_caller_waits_for_an_actor_that_dies_meanwhile(start: Start) -> None:
    ref = start(Probe)
    fates: list[type] = []

    def call_until_dead() -> None:
        try:
            while True:
                ref.call(Echo(1), TIMEOUT)
        except Exception as exc:
            fates.append(type(exc))

    callers = [threading.Thread(target=call_until_dead) for _ in range(8)]
    for caller in callers:
        caller.start()
    ref.cast(Crash())
    for caller in callers:
        caller.join()
    assert fates == [ActorDead] * 8


# Stopping


def test_a_stop_overtakes_the_backlog(start: Start, gate: Gate, exits: Exits) -> None:
    journal = Journal()
    ref = start(lambda: Probe(journal=journal))
    ref.cast(Hang(gate))
    gate.wait_until_reached()
    ref.cast(Note("never"))
    caller_got: list[type] = []

    def call() -> None:
        try:
            ref.call(Echo(1), TIMEOUT)
        except ActorDead:
            caller_got.append(ActorDead)

    caller = threading.Thread(target=call)
    caller.start()
    eventually(lambda: ref.mailbox_length == 2)
    assert not ref.stop(0)
    gate.open()
    assert ref.join(TIMEOUT)
    caller.join()
    assert caller_got == [ActorDead]
    assert journal.take() == ["start root", "stop root"]
    assert isinstance(exits.next().reason, Shutdown)


def test_an_actor_may_stop_itself_after_its_reply(start: Start, exits: Exits) -> None:
    class Mortal(Actor):
        def handle(self, message: object) -> object:
            self.exit()
            assert not self.ref.stop(TIMEOUT)  # not yet
            return 42

    ref = start(Mortal)
    assert ref.call(Echo(1), TIMEOUT) == 42
    exit_ = exits.next()
    assert isinstance(exit_.reason, Normal)
    assert not exit_.crashed


def test_an_actor_may_exit_with_a_reason(start: Start, exits: Exits) -> None:
    ref, error = start(Probe), CrashError("x")
    ref.cast(Leave(error))
    assert exits.next() == Exit(ref, error)


def test_an_actor_may_exit_in_init(start: Start, exits: Exits) -> None:
    class Ignoring(Actor):
        def init(self) -> None:
            self.exit()

    assert start(Ignoring).join(TIMEOUT)
    assert isinstance(exits.next().reason, Normal)


def test_terminate_runs_after_a_crash_and_is_told_why(start: Start) -> None:
    reasons: list[Exception] = []

    class Careful(Probe):
        def terminate(self, reason: Exception) -> None:
            assert not self.ref.is_alive
            reasons.append(reason)

    error = CrashError("x")
    ref = start(Careful)
    ref.cast(Crash(error))
    assert ref.join(TIMEOUT)
    assert reasons == [error]


def test_an_error_in_terminate_becomes_the_reason(start: Start, exits: Exits) -> None:
    class Careless(Actor):
        def terminate(self, reason: Exception) -> None:
            raise CrashError("while dying") from reason

    start(Careless).stop(TIMEOUT)
    assert isinstance(exits.next().reason, CrashError)


def test_an_on_exit_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def fail(exit_: Exit) -> None:
        raise CrashError

    assert start_root(Probe, on_exit=fail).stop(TIMEOUT)
    assert caplog.messages == ["on_exit of root failed"]


# Links


@dataclass(frozen=True, slots=True)
class Beget(Call[Ref]):
    pass


class Parent(Probe):
    def handle(self, message: object) -> object:
        match message:
            case Beget():
                return self.start_link(Probe, "child")
            case _:
                return super().handle(message)


def test_who_starts_an_actor_is_told_of_its_exit(start: Start) -> None:
    seen: list[object] = []

    class Watching(Parent):
        def handle(self, message: object) -> object:
            if not isinstance(message, Exit):
                return super().handle(message)
            seen.append(message)
            return None

    parent, error = start(Watching), CrashError("x")
    child = parent.call(Beget(), TIMEOUT)
    child.cast(Crash(error))
    eventually(lambda: seen == [Exit(child, error)])


def test_who_does_not_handle_the_exit_dies_of_it(start: Start, exits: Exits) -> None:
    start(Parent).call(Beget(), TIMEOUT).cast(Crash())
    assert isinstance(exits.next().reason, TypeError)


@pytest.mark.parametrize("message", [Crash(), Leave()])
def test_when_an_actor_dies_those_it_started_are_asked_to_stop(start: Start, message: object) -> None:
    parent = start(Parent)
    children = [parent.call(Beget(), TIMEOUT) for _ in range(3)]
    parent.cast(message)
    assert all(child.join(TIMEOUT) for child in children)


# Draining


class Batching(Probe):
    limit = 100

    def handle(self, message: object) -> object:
        match message:
            case Note(text):
                more = [note.text for note in self.drain(self.limit) if isinstance(note, Note)]
                self.journal.write(" ".join([text, *more]))
            case Echo(value):
                self.journal.write(f"echo {value}")
                return value
            case _:
                return super().handle(message)
        return None


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
def batching(start: Start, journal: Journal, gate: Gate) -> Ref:
    """Hangs in the gate, so that a backlog can be made."""
    ref = start(lambda: Batching(journal=journal))
    journal.take()
    ref.cast(Hang(gate))
    gate.wait_until_reached()
    return ref


def call_in_thread(ref: Ref, results: list[object]) -> threading.Thread:
    def call() -> None:
        try:
            results.append(ref.call(Echo(7), TIMEOUT))
        except ActorDead:
            results.append(ActorDead)

    before = ref.mailbox_length
    thread = threading.Thread(target=call)
    thread.start()
    eventually(lambda: ref.mailbox_length == before + 1)
    return thread


def test_drain_takes_the_casts_that_wait(batching: Ref, journal: Journal, gate: Gate) -> None:
    for text in "abcd":
        batching.cast(Note(text))
    gate.open()
    batching.call(Echo(0), TIMEOUT)
    assert journal.take() == ["a b c d", "echo 0"]


def test_drain_takes_no_more_than_its_limit(
    batching: Ref, journal: Journal, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Batching, "limit", 2)
    for text in "abcd":
        batching.cast(Note(text))
    gate.open()
    batching.call(Echo(0), TIMEOUT)
    assert journal.take() == ["a b c", "d", "echo 0"]


def test_drain_ends_at_a_call_which_is_handled_next(batching: Ref, journal: Journal, gate: Gate) -> None:
    results: list[object] = []
    batching.cast(Note("a"))
    batching.cast(Note("b"))
    caller = call_in_thread(batching, results)
    batching.cast(Note("c"))
    gate.open()
    caller.join()
    assert results == [7]
    batching.call(Echo(8), TIMEOUT)
    assert journal.take() == ["a b", "echo 7", "c", "echo 8"]


class StopsInDrain(Batching):
    """Drains up to the call that waits, then is asked to stop, or crashes."""

    crash = False

    def handle(self, message: object) -> object:
        if message == Note("a"):
            assert self.drain(10) == []
            self.ref.request_stop()
            assert self.drain(10) == []
            if self.crash:
                raise CrashError
            return None
        return super().handle(message)


@pytest.mark.parametrize("crash", [False, True])
def test_a_call_put_aside_by_drain_is_not_forgotten_at_death(
    start: Start, journal: Journal, gate: Gate, monkeypatch: pytest.MonkeyPatch, *, crash: bool
) -> None:
    monkeypatch.setattr(StopsInDrain, "crash", crash)
    ref = start(lambda: StopsInDrain(journal=journal))
    ref.cast(Hang(gate))
    gate.wait_until_reached()
    results: list[object] = []
    ref.cast(Note("a"))
    caller = call_in_thread(ref, results)
    ref.cast(Note("b"))
    gate.open()
    caller.join()
    assert results == [ActorDead]
    assert ref.join(TIMEOUT)
    assert journal.take() == ["start root", "stop root"]


# The dump, and memory


def test_actors_lists_the_living(start: Start, gate: Gate) -> None:
    one, two = start(lambda: Probe("one")), start(lambda: Batching("two"))
    two.cast(Hang(gate))
    gate.wait_until_reached()
    two.cast(Note("x"))
    assert {(ref.name, ref.mailbox_length, ref.thread, ref.actor_class) for ref in actors()} == {
        ("one", 0, one.thread, Probe),
        ("two", 1, two.thread, Batching),
    }
    assert repr(two) == f"<Batching 'two' mailbox=1 thread={two.thread}>"
    one.stop(TIMEOUT)
    assert actors() == [two]


def test_a_ref_does_not_keep_the_dead_actor_in_memory(start: Start) -> None:
    objects: list[weakref.ref[Probe]] = []

    def factory() -> Probe:
        actor = Probe()
        objects.append(weakref.ref(actor))
        return actor

    ref = start(factory)
    ref.stop(TIMEOUT)
    gc.collect()
    assert objects[0]() is None


def test_an_idle_actor_does_not_keep_its_last_message(start: Start) -> None:
    class Heavy:
        pass

    class Taking(Actor):
        def handle(self, message: object) -> object:
            return None

    ref, heavy = start(Taking), Heavy()
    message = weakref.ref(heavy)
    ref.cast(heavy)
    del heavy
    eventually(lambda: message() is None)
