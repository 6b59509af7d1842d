"""The cases of OTP's supervisor_SUITE that make sense for threads, under their names there.

Left out: simple_one_for_one, `ignore` as a value (an actor that exits in `init` stands for it), child_unlink (there is
nothing to unlink), extra_return, code_change and malformed specifications (the type checker's work).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest

from progressor.otp import (
    Actor,
    ChildAlreadyPresent,
    ChildCounts,
    ChildError,
    ChildInfo,
    ChildNotFound,
    ChildRestarting,
    ChildRunning,
    ChildSpec,
    ChildStartFailed,
    CountChildren,
    DeleteChild,
    Exit,
    Ref,
    Restart,
    RestartChild,
    RestartIntensityReached,
    Shutdown,
    StartChild,
    Strategy,
    Supervisor,
    TerminateChild,
    WhichChildren,
    actors,
)
from tests.eventually import eventually
from tests.unit.otp.conftest import Start
from tests.unit.otp.probe import (
    TIMEOUT,
    Broken,
    Crash,
    CrashError,
    Echo,
    Exits,
    Gate,
    Hang,
    Journal,
    Leave,
    Probe,
    children,
    probe,
    refs,
    replaced,
)

PERMANENT, TRANSIENT, TEMPORARY = Restart
ONE_FOR_ONE, ONE_FOR_ALL, REST_FOR_ONE = Strategy
NORMAL, SHUTDOWN, ABNORMAL = Leave(), Leave(Shutdown()), Crash()


@pytest.fixture
def journal() -> Journal:
    return Journal()


def counts(supervisor: Ref) -> ChildCounts:
    return supervisor.call(CountChildren(), TIMEOUT)


def supervisor(*specs: ChildSpec, strategy: Strategy = ONE_FOR_ONE, intensity: int = 1) -> Callable[[], Supervisor]:
    """As in supervisor_SUITE: {Strategy, Intensity, 3600}."""
    return lambda: Supervisor(specs, strategy=strategy, intensity=intensity, period=3600)


# sup_start


def test_sup_start_normal(start: Start, exits: Exits) -> None:
    sup = start(supervisor())
    assert sup.call(WhichChildren(), TIMEOUT) == []
    assert sup.stop(TIMEOUT)
    assert type(exits.next().reason) is Shutdown


def test_sup_start_ignore_child(start: Start) -> None:
    """An actor that exits in `init` was started, and is gone."""
    sup = start(supervisor())
    sup.call(StartChild(ChildSpec("ignore", Ignoring, TRANSIENT)), TIMEOUT)
    child = sup.call(StartChild(probe("child2")), TIMEOUT)
    eventually(lambda: refs(sup) == {"child2": child})
    assert counts(sup) == ChildCounts(specs=2, active=1, supervisors=0, workers=2)


def test_sup_start_ignore_temporary_child(start: Start) -> None:
    sup = start(supervisor(ChildSpec("ignore", Ignoring, TEMPORARY), probe("child2", TEMPORARY)))
    eventually(lambda: list(children(sup)) == ["child2"])
    assert counts(sup) == ChildCounts(specs=1, active=1, supervisors=0, workers=1)


class Ignoring(Actor):
    def init(self) -> None:
        self.exit()


def test_sup_start_fail(start: Start, exits: Exits, journal: Journal) -> None:
    """Those already started are stopped in reverse order; those after the failing one are not started."""
    specs = [probe("a", journal=journal), probe("b", journal=journal), probe("c", in_init=Broken(on=True)), probe("d")]
    with pytest.raises(ChildStartFailed, match="child 'c' failed to start: broken") as raised:
        start(supervisor(*specs))
    assert isinstance(raised.value.__cause__, CrashError)
    assert journal.take() == ["start a", "start b", "stop b", "stop a"]
    assert exits.empty()


def test_sup_start_fail_deep_in_the_tree_says_where(start: Start) -> None:
    inner = ChildSpec("inner", supervisor(probe("leaf", in_init=Broken(on=True))))
    with pytest.raises(ChildStartFailed, match="child 'inner' failed to start: child 'leaf' failed to start: broken"):
        start(supervisor(inner))


def test_sup_start_fail_in_the_factory(start: Start) -> None:
    def factory() -> Actor:
        raise CrashError("no such class")

    with pytest.raises(ChildStartFailed, match="no such class"):
        start(supervisor(ChildSpec("a", factory)))


def test_sup_start_error_return_of_two_children_with_one_id(start: Start) -> None:
    with pytest.raises(ChildError, match="child 'a' is already present"):
        start(supervisor(probe("a"), probe("a")))


def test_sup_start_gives_factories_the_children_before_theirs(start: Start) -> None:
    met: list[Ref] = []

    class Namespace(Supervisor):
        def specs(self) -> Sequence[ChildSpec]:
            return [probe("first"), ChildSpec("second", self.second)]

        def second(self) -> Actor:
            met.append(self.child("first"))
            return Probe()

    sup = start(lambda: Namespace(strategy=REST_FOR_ONE))
    first = refs(sup)["first"]
    first.cast(Crash())
    assert met == [first]
    new = replaced(sup, "first", first)
    eventually(lambda: met == [first, new])


def test_sup_start_fails_when_a_factory_wants_a_child_that_does_not_run_yet(start: Start) -> None:
    class Impatient(Supervisor):
        def specs(self) -> Sequence[ChildSpec]:
            return [ChildSpec("first", lambda: Probe(self.child("second").name)), probe("second")]

    with pytest.raises(ChildStartFailed, match="'second' is unknown"):
        start(Impatient)


# sup_stop


def test_sup_stop_infinity(start: Start, gate: Gate, exits: Exits) -> None:
    sup = start(supervisor(probe("a", shutdown=float("inf"))))
    refs(sup)["a"].cast(Hang(gate))
    gate.wait_until_reached()
    sup.request_stop()
    assert not sup.join(0.05)
    gate.open()
    assert sup.join(TIMEOUT)
    assert type(exits.next().reason) is Shutdown


def test_sup_stop_in_reverse_order(start: Start, journal: Journal) -> None:
    sup = start(supervisor(*[probe(name, journal=journal) for name in "abc"]))
    assert journal.take() == ["start a", "start b", "start c"]
    assert sup.stop(TIMEOUT)
    assert journal.take() == ["stop c", "stop b", "stop a"]


def test_sup_stop_timeout(start: Start, gate: Gate, journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    """The child that hangs is abandoned; it ends when it wakes up."""
    sup = start(supervisor(probe("a", journal=journal), probe("b", shutdown=0.01, journal=journal)))
    hung = refs(sup)["b"]
    hung.cast(Hang(gate))
    gate.wait_until_reached()
    assert sup.stop(TIMEOUT)
    assert journal.take() == ["start a", "start b", "stop a"]
    assert "did not stop in 0.01 s, abandoned" in caplog.text
    assert actors() == [hung]
    gate.open()
    assert hung.join(TIMEOUT)
    assert journal.take() == ["stop b"]


def test_sup_stop_brutal_kill(start: Start, gate: Gate) -> None:
    """The nearest to it: do not wait."""
    sup = start(supervisor(probe("a", shutdown=0)))
    hung = refs(sup)["a"]
    hung.cast(Hang(gate))
    gate.wait_until_reached()
    assert sup.stop(TIMEOUT)
    assert actors() == [hung]


@pytest.mark.parametrize(("is_supervisor", "seconds"), [(True, math.inf), (False, 5.0)])
def test_a_supervisor_is_given_all_the_time_it_needs(
    start: Start, monkeypatch: pytest.MonkeyPatch, *, is_supervisor: bool, seconds: float
) -> None:
    waits: list[float] = []
    join = Ref.join

    def recording_join(ref: Ref, timeout: float) -> bool:
        waits.append(timeout)
        return join(ref, timeout)

    sup = start(supervisor(ChildSpec("a", supervisor() if is_supervisor else Probe)))
    monkeypatch.setattr(Ref, "join", recording_join)
    sup.call(TerminateChild("a"), TIMEOUT)
    assert waits == [seconds]


def test_the_late_exit_of_an_abandoned_child_is_ignored(start: Start, gate: Gate) -> None:
    sup = start(supervisor(probe("a", shutdown=0), intensity=0))
    hung = refs(sup)["a"]
    hung.cast(Hang(gate))
    gate.wait_until_reached()
    sup.call(TerminateChild("a"), TIMEOUT)
    new = sup.call(RestartChild("a"), TIMEOUT)
    gate.open()
    assert hung.join(TIMEOUT)
    assert refs(sup) == {"a": new}


def test_an_exit_of_a_stranger_is_ignored(start: Start) -> None:
    sup, stranger = start(supervisor(probe("a"), intensity=0)), start(Probe)
    before = refs(sup)
    sup.cast(Exit(stranger, CrashError()))
    assert refs(sup) == before


def test_an_unknown_message_kills_the_supervisor_and_stops_its_children(start: Start, exits: Exits) -> None:
    sup = start(supervisor(probe("a"), probe("b")))
    sup.cast("what?")
    assert isinstance(exits.next().reason, TypeError)
    assert sup.join(TIMEOUT)
    assert actors() == []


# Child administration


def test_child_adm(start: Start) -> None:
    spec = probe("child1")
    sup = start(supervisor(spec))
    first = refs(sup)["child1"]

    # of a running child
    for message in (StartChild(spec), RestartChild("child1")):
        with pytest.raises(ChildRunning):
            sup.call(message, TIMEOUT)
    with pytest.raises(ChildRunning):
        sup.call(DeleteChild("child1"), TIMEOUT)
    assert sup.call(WhichChildren(), TIMEOUT) == [ChildInfo(spec, first, restarting=False)]

    # of a terminated child; terminating again is fine
    for _ in range(2):
        sup.call(TerminateChild("child1"), TIMEOUT)
    assert not first.is_alive
    assert sup.call(WhichChildren(), TIMEOUT) == [ChildInfo(spec, None, restarting=False)]
    with pytest.raises(ChildAlreadyPresent):
        sup.call(StartChild(spec), TIMEOUT)
    second = sup.call(RestartChild("child1"), TIMEOUT)
    assert second is not first
    assert refs(sup) == {"child1": second}

    # of a deleted child
    sup.call(TerminateChild("child1"), TIMEOUT)
    sup.call(DeleteChild("child1"), TIMEOUT)
    for refused in (TerminateChild("child1"), DeleteChild("child1")):
        with pytest.raises(ChildNotFound, match="child 'child1' is unknown"):
            sup.call(refused, TIMEOUT)
    with pytest.raises(ChildNotFound):
        sup.call(RestartChild("child1"), TIMEOUT)
    assert sup.call(StartChild(spec), TIMEOUT).call(Echo(1), TIMEOUT) == 1


def test_child_adm_of_a_child_that_fails_to_start(start: Start) -> None:
    sup, broken = start(supervisor()), Broken(on=True)
    spec = probe("a", in_init=broken)
    with pytest.raises(ChildStartFailed):
        sup.call(StartChild(spec), TIMEOUT)
    assert children(sup) == {}
    broken.on = False
    sup.call(StartChild(spec), TIMEOUT)
    sup.call(TerminateChild("a"), TIMEOUT)
    broken.on = True
    with pytest.raises(ChildStartFailed):
        sup.call(RestartChild("a"), TIMEOUT)
    assert children(sup)["a"] == ChildInfo(spec, None, restarting=False)


def test_child_specs(start: Start) -> None:
    specs = [probe("a"), probe("b", TRANSIENT, shutdown=1.5), probe("c", TEMPORARY)]
    sup = start(supervisor(*specs))
    assert [info.spec for info in sup.call(WhichChildren(), TIMEOUT)] == specs
    assert [info.spec.restart for info in sup.call(WhichChildren(), TIMEOUT)] == [PERMANENT, TRANSIENT, TEMPORARY]


def test_count_children(start: Start) -> None:
    sup = start(supervisor(ChildSpec("inner", supervisor()), probe("a"), probe("b")))
    assert counts(sup) == ChildCounts(specs=3, active=3, supervisors=1, workers=2)
    sup.call(TerminateChild("a"), TIMEOUT)
    assert counts(sup) == ChildCounts(specs=3, active=2, supervisors=1, workers=2)
    sup.call(TerminateChild("inner"), TIMEOUT)
    assert counts(sup) == ChildCounts(specs=3, active=1, supervisors=1, workers=2)


def test_do_not_save_child_specs_for_temporary_children(start: Start) -> None:
    sup = start(supervisor())
    for message in (NORMAL, ABNORMAL):
        sup.call(StartChild(probe("a", TEMPORARY)), TIMEOUT).cast(message)
        eventually(lambda: children(sup) == {})
    sup.call(StartChild(probe("a", TEMPORARY)), TIMEOUT)
    sup.call(TerminateChild("a"), TIMEOUT)
    assert children(sup) == {}


def test_scale_start_stop_many_children(start: Start) -> None:
    sup = start(supervisor())
    started = [sup.call(StartChild(probe(str(number), TEMPORARY)), TIMEOUT) for number in range(300)]
    assert counts(sup) == ChildCounts(specs=300, active=300, supervisors=0, workers=300)
    for ref in started[::2]:
        ref.cast(NORMAL)
    eventually(lambda: counts(sup).specs == 150)
    assert sup.stop(TIMEOUT)
    assert actors() == []


# normal, shutdown and abnormal termination


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(NORMAL, id="permanent_normal"),
        pytest.param(SHUTDOWN, id="permanent_shutdown"),
        pytest.param(ABNORMAL, id="permanent_abnormal"),
        pytest.param(Leave(CrashError()), id="permanent_exit_with_a_reason"),
    ],
)
def test_a_permanent_child_is_always_restarted(start: Start, message: object) -> None:
    sup = start(supervisor(probe("child1")))
    old = refs(sup)["child1"]
    old.cast(message)
    assert replaced(sup, "child1", old).call(Echo(1), TIMEOUT) == 1
    assert counts(sup) == ChildCounts(specs=1, active=1, supervisors=0, workers=1)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(NORMAL, id="transient_normal"),
        pytest.param(SHUTDOWN, id="transient_shutdown"),
        pytest.param(Leave(RestartIntensityReached()), id="transient_shutdown_with_a_term"),
    ],
)
def test_a_transient_child_may_end(start: Start, message: object) -> None:
    sup = start(supervisor(probe("child1", TRANSIENT), intensity=0))
    refs(sup)["child1"].cast(message)
    eventually(lambda: refs(sup) == {})
    assert counts(sup) == ChildCounts(specs=1, active=0, supervisors=0, workers=1)


def test_transient_abnormal(start: Start) -> None:
    sup = start(supervisor(probe("child1", TRANSIENT)))
    old = refs(sup)["child1"]
    old.cast(ABNORMAL)
    replaced(sup, "child1", old)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(NORMAL, id="temporary_normal"),
        pytest.param(SHUTDOWN, id="temporary_shutdown"),
        pytest.param(ABNORMAL, id="temporary_abnormal"),
    ],
)
def test_a_temporary_child_is_never_restarted(start: Start, message: object) -> None:
    sup = start(supervisor(probe("child1", TEMPORARY), intensity=0))
    refs(sup)["child1"].cast(message)
    eventually(lambda: children(sup) == {})
    assert counts(sup) == ChildCounts(specs=0, active=0, supervisors=0, workers=0)


@pytest.mark.parametrize("strategy", [ONE_FOR_ALL, REST_FOR_ONE])
def test_temporary_bystander(start: Start, strategy: Strategy) -> None:
    """A temporary child that is stopped because another died is not started again."""
    sup = start(supervisor(probe("a"), probe("b", TEMPORARY), strategy=strategy))
    a, b = refs(sup).values()
    a.cast(ABNORMAL)
    replaced(sup, "a", a)
    assert b.join(TIMEOUT)
    assert list(children(sup)) == ["a"]


# Strategies


def three(journal: Journal, strategy: Strategy, intensity: int = 1) -> Callable[[], Supervisor]:
    return supervisor(*[probe(name, journal=journal) for name in "abc"], strategy=strategy, intensity=intensity)


@pytest.mark.parametrize(
    ("strategy", "happens"),
    [
        pytest.param(ONE_FOR_ONE, ["stop b", "start b"], id="one_for_one"),
        pytest.param(ONE_FOR_ALL, ["stop b", "stop c", "stop a", "start a", "start b", "start c"], id="one_for_all"),
        pytest.param(REST_FOR_ONE, ["stop b", "stop c", "start b", "start c"], id="rest_for_one"),
    ],
)
def test_who_is_restarted(start: Start, journal: Journal, strategy: Strategy, happens: list[str]) -> None:
    sup = start(three(journal, strategy))
    before = refs(sup)
    journal.take()
    before["b"].cast(ABNORMAL)
    replaced(sup, "b", before["b"])
    assert journal.take() == happens
    after = refs(sup)
    assert list(after) == ["a", "b", "c"]
    assert {name for name in "abc" if after[name] is not before[name]} == {line[-1] for line in happens}


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param(ONE_FOR_ONE, id="one_for_one_escalation"),
        pytest.param(ONE_FOR_ALL, id="one_for_all_escalation"),
        pytest.param(REST_FOR_ONE, id="rest_for_one_escalation"),
    ],
)
def test_escalation(start: Start, exits: Exits, journal: Journal, strategy: Strategy) -> None:
    sup = start(three(journal, strategy, intensity=0))
    journal.take()
    refs(sup)["b"].cast(ABNORMAL)
    exit_ = exits.next()
    assert isinstance(exit_.reason, RestartIntensityReached)
    assert not exit_.crashed
    assert journal.take() == ["stop b", "stop c", "stop a"]
    assert sup.join(TIMEOUT)
    assert actors() == []


@pytest.mark.parametrize(
    ("strategy", "happens"),
    [
        pytest.param(
            ONE_FOR_ALL,
            ["stop a", "stop c", "stop b", "start a", "stop a", "start a", "start b", "start c"],
            id="one_for_all_other_child_fails_restart",
        ),
        pytest.param(
            REST_FOR_ONE,
            ["stop a", "stop c", "stop b", "start a", "start b", "start c"],
            id="rest_for_one_other_child_fails_restart",
        ),
    ],
)
def test_other_child_fails_restart(start: Start, journal: Journal, strategy: Strategy, happens: list[str]) -> None:
    """The child that does not start is tried again, by the strategy, until it starts."""
    failures = iter([None, CrashError("once")])

    def fail_once() -> None:
        error = next(failures, None)
        if error is not None:
            raise error

    specs = [probe("a", journal=journal), probe("b", journal=journal, in_init=fail_once), probe("c", journal=journal)]
    sup = start(supervisor(*specs, strategy=strategy, intensity=2))
    before = refs(sup)
    journal.take()
    before["a"].cast(ABNORMAL)
    replaced(sup, "c", before["c"])
    assert journal.take() == happens
    assert list(refs(sup)) == ["a", "b", "c"]


def test_tree(start: Start, exits: Exits, journal: Journal) -> None:
    """Escalation goes up one supervisor after the other, and each restarts its whole branch."""

    def branch(name: str) -> ChildSpec:
        leaves = [probe(f"{name}{number}", journal=journal) for number in (1, 2)]
        return ChildSpec(name, supervisor(*leaves, strategy=ONE_FOR_ALL, intensity=0))

    sup = start(supervisor(branch("a"), branch("b"), intensity=1))
    assert journal.take() == ["start a1", "start a2", "start b1", "start b2"]
    assert counts(sup) == ChildCounts(specs=2, active=2, supervisors=2, workers=0)
    b = refs(sup)["b"]
    refs(b)["b1"].cast(ABNORMAL)
    new_b = replaced(sup, "b", b)
    assert journal.take() == ["stop b1", "stop b2", "start b1", "start b2"]
    refs(new_b)["b2"].cast(ABNORMAL)
    assert exits.next().ref is sup
    assert journal.take() == ["stop b2", "stop b1", "stop a2", "stop a1"]


def test_a_transient_supervisor_that_gave_up_is_not_restarted(start: Start) -> None:
    """As in OTP: its reason is a shutdown."""
    sup = start(supervisor(ChildSpec("inner", supervisor(probe("a"), intensity=0), TRANSIENT)))
    refs(refs(sup)["inner"])["a"].cast(ABNORMAL)
    eventually(lambda: refs(sup) == {})


# Intensity


def test_multiple_restarts(start: Start, exits: Exits) -> None:
    """As many as `intensity`; one more is too many."""
    sup = start(supervisor(probe("child1"), intensity=3))
    child = refs(sup)["child1"]
    for _ in range(3):
        child.cast(ABNORMAL)
        child = replaced(sup, "child1", child)
    child.cast(ABNORMAL)
    assert "over 3 restarts in 3600 s, last of 'child1'" in str(exits.next().reason)


def test_intensity_counts_the_restarts_of_all_children(start: Start, exits: Exits) -> None:
    sup = start(supervisor(probe("a"), probe("b"), intensity=1))
    a, b = refs(sup).values()
    a.cast(ABNORMAL)
    replaced(sup, "a", a)
    b.cast(ABNORMAL)
    assert isinstance(exits.next().reason, RestartIntensityReached)


def test_intensity_forgets_restarts_older_than_the_period(
    start: Start, exits: Exits, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("progressor.otp.supervisor.monotonic", lambda: now)
    sup = start(supervisor(probe("a"), intensity=1))
    child = refs(sup)["a"]
    for _ in range(3):
        now += 3601
        child.cast(ABNORMAL)
        child = replaced(sup, "a", child)
    now += 3600  # the last one is just within
    child.cast(ABNORMAL)
    assert isinstance(exits.next().reason, RestartIntensityReached)


@pytest.mark.parametrize("strategy", Strategy)
def test_intensity_counts_restarts_that_fail(start: Start, exits: Exits, journal: Journal, strategy: Strategy) -> None:
    broken = Broken()
    specs = [probe("a", journal=journal), probe("b", in_init=broken), probe("c", journal=journal)]
    sup = start(supervisor(*specs, strategy=strategy, intensity=3))
    broken.on = True
    refs(sup)["b"].cast(ABNORMAL)
    assert isinstance(exits.next().reason, RestartIntensityReached)
    assert broken.tries == 1 + 3
    assert sup.join(TIMEOUT)
    assert actors() == []


def hanging_restart_loop(start: Start, strategy: Strategy, broken: Broken) -> Ref:
    """A supervisor that tries over and over to restart its child `b`."""
    sup = start(supervisor(probe("a"), probe("b", in_init=broken), strategy=strategy, intensity=10**9))
    broken.on = True
    refs(sup)["b"].cast(ABNORMAL)
    eventually(lambda: children(sup)["b"].restarting)
    return sup


@pytest.mark.parametrize("strategy", Strategy)
def test_hanging_restart_loop(start: Start, strategy: Strategy) -> None:
    """Calls come between the attempts, and terminating the child ends them."""
    broken = Broken()
    sup = hanging_restart_loop(start, strategy, broken)
    with pytest.raises(ChildRestarting):
        sup.call(RestartChild("b"), TIMEOUT)
    with pytest.raises(ChildRestarting):
        sup.call(DeleteChild("b"), TIMEOUT)
    with pytest.raises(ChildAlreadyPresent):
        sup.call(StartChild(probe("b")), TIMEOUT)
    assert counts(sup) == ChildCounts(specs=2, active=1, supervisors=0, workers=2)
    tries = broken.tries
    eventually(lambda: broken.tries > tries)
    sup.call(TerminateChild("b"), TIMEOUT)
    tries = broken.tries
    assert not children(sup)["b"].restarting
    assert broken.tries == tries
    broken.on = False
    assert sup.call(RestartChild("b"), TIMEOUT).is_alive


def test_hanging_restart_loop_ends_when_the_child_starts(start: Start) -> None:
    broken = Broken()
    sup = hanging_restart_loop(start, ONE_FOR_ONE, broken)
    broken.on = False
    eventually(lambda: "b" in refs(sup))
    assert not children(sup)["b"].restarting


@pytest.mark.parametrize("strategy", Strategy)
def test_hanging_restart_loop_ends_when_the_supervisor_is_stopped(start: Start, strategy: Strategy) -> None:
    assert hanging_restart_loop(start, strategy, Broken()).stop(TIMEOUT)
    assert actors() == []


def test_hanging_restart_loop_ends_when_the_child_is_deleted(start: Start) -> None:
    broken = Broken()
    sup = hanging_restart_loop(start, ONE_FOR_ONE, broken)
    sup.call(TerminateChild("b"), TIMEOUT)
    sup.call(DeleteChild("b"), TIMEOUT)
    assert list(children(sup)) == ["a"]
