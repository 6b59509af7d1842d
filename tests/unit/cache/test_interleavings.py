"""Readers, the stream and the database in every order that PostgreSQL allows.

The database here is a list of states of one process. A transaction is committed, then it is visible and it is streamed,
in this or the other order; the next one begins when it is visible, since it waits for the row. A reading is a list of
things that happen before its snapshot is taken, and of things that happen before its answer arrives, other readings
included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from progressor.cache.cache import Cache, Memory
from progressor.cache.entry import Change
from progressor.cache.snapshot import Mark, Snapshot
from progressor.engine.ports import Reading
from progressor.errors import RequestTimeout
from progressor.model import Event, Process, Range
from tests.unit.cache.told import Told

FIRST_XID = 2**32 - 5  # the numbers of the stream begin anew in the middle of a test
State: TypeAlias = tuple[int, int, int] | None
"""Which life of the process this is, how many events it has, and how often its state was changed without one; None:
there is no such process."""


@dataclass
class World:
    states: list[State] = field(default_factory=lambda: [(0, 1, 0)])
    """After each transaction; the one before the first."""
    changes: list[Told] = field(default_factory=list)
    visible: int = 0
    streamed: int = 0
    others: int = 0
    """Transactions of other processes, which only take numbers."""
    seen: dict[int, int] = field(default_factory=dict)
    """The newest state that each reader has seen."""
    plans: list[tuple[Plan, Plan]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cache = Cache("a/b", self.read, Memory(100_000))
        self.cache.connect(self.snapshot())

    # What may happen

    def commit(self, what: str) -> None:
        if self.visible < len(self.changes):
            return
        before = self.states[-1]
        if before is None:
            after, change = (len(self.states), 1, 0), Told(ends=True)
        elif what == "remove":
            after, change = None, Told(ends=True)
        elif what == "change":
            after = before[0], before[1], before[2] + 1
            change = Told(Change(columns={"aux_state": state_of(after)}))
        else:
            after = before[0], before[1] + 1, before[2]
            change = Told(Change(appended=[event(after[1])], columns={"aux_state": state_of(after)}))
        self.states.append(after)
        self.changes.append(change)

    def show(self) -> None:
        self.visible = len(self.changes)

    def stream(self) -> None:
        if self.streamed < len(self.changes):
            change = self.changes[self.streamed]
            self.streamed += 1
            self.cache.apply(self.mark(self.streamed), {"p": change})

    def other(self) -> None:
        self.others += 1

    def confirm(self) -> None:
        self.cache.confirm(self.snapshot())

    def evict(self) -> None:
        self.cache.forget(float("inf"))

    def empty(self) -> None:
        if self.streamed < len(self.changes):
            self.streamed += 1
            self.cache.empty(self.mark(self.streamed))

    def reconnect(self) -> None:
        self.cache.disconnect()
        self.streamed = len(self.changes)  # the slot begins behind all that is committed
        self.cache.connect(self.snapshot())

    def disconnect(self) -> None:
        self.cache.disconnect()

    def get(self, reader: int, before: Plan, after: Plan) -> None:
        least = self.seen.get(reader, 0)
        process = self.cache.look("p", Range(), 0)
        if process is None:
            self.plans.append((before, after))
            try:
                process = self.cache.read("p", Range(), 0.0)
            except RequestTimeout:  # what was streamed was not visible yet
                return
        newer = [n for n in range(least, len(self.states)) if self.states[n] == known(process)]
        assert newer, f"reader {reader} saw {known(process)} after state {least} of {self.states}"
        self.seen[reader] = max(newer[0], self.seen.get(reader, 0))

    # The database

    def mark(self, number: int) -> Mark:
        return Mark(10 * number, (FIRST_XID + 2 * number) % 2**32)

    def snapshot(self) -> Snapshot:
        running = {FIRST_XID + 2 * len(self.changes)} if self.visible < len(self.changes) else set()
        xmax = FIRST_XID + 2 * len(self.changes) + 1 + (self.others > 0)
        return Snapshot(xmax, frozenset(running), 10 * len(self.changes) + 1)

    def read(self, _: str, __: Range, ___: float) -> Reading:
        before, after = self.plans.pop() if self.plans else ((), ())
        self.run(before)
        seen, state = self.snapshot(), self.states[self.visible]
        self.run(after)
        running = ",".join(map(str, seen.running))
        return Reading(made(state), f"1:{seen.xmax}:{running}", seen.lsn)

    def run(self, plan: Plan) -> None:
        for step in plan:
            step(self)


Step: TypeAlias = Callable[[World], object]
Plan: TypeAlias = Sequence[Step]


def event(number: int) -> Event:
    return Event(b"%d" % number, event_id=number)


def state_of(state: tuple[int, int, int]) -> bytes:
    return b"%d:%d:%d" % state


def made(state: State) -> Process | None:
    if state is None:
        return None
    history = [event(n) for n in range(1, state[1] + 1)]
    return Process("p", aux_state=state_of(state), history=history, last_event_id=state[1])


def known(process: Process | None) -> State:
    """The state; events without their aux_state are none."""
    if process is None:
        return None
    life, events, changes = map(int, (process.aux_state or b"").split(b":"))
    assert events == process.last_event_id == len(process.history)
    return life, events, changes


OFTEN: list[Step] = [
    lambda world: world.commit("step"),
    lambda world: world.commit("change"),
    World.show,
    World.stream,
]
SELDOM: list[Step] = [
    lambda world: world.commit("remove"),
    World.other,
    World.confirm,
    World.evict,
    World.empty,
    World.reconnect,
    World.disconnect,
]
SIMPLE = st.sampled_from([*OFTEN * 4, *SELDOM])


def _get(reader: int, before: Plan, after: Plan) -> Step:
    return lambda world: world.get(reader, before, after)


def _with_readings(inner: st.SearchStrategy[Step]) -> st.SearchStrategy[Step]:
    plan = st.lists(inner, max_size=5)
    reading = st.builds(_get, st.integers(1, 2), plan, plan)
    return reading | reading | inner


STEPS = st.recursive(SIMPLE, _with_readings, max_leaves=30)


def _commit(world: World) -> None:
    world.commit("change")


READ = _get(1, (), ())
PLANS: Mapping[str, Plan] = {
    "seen by the reading, streamed later": [_commit, World.show, _commit, World.show, READ, World.stream, READ],
    "seen by the reading, streamed meanwhile": [
        _get(1, [_commit, World.show, _commit, World.show], [World.stream]),
        READ,
    ],
    "not seen by the reading, streamed meanwhile": [_get(1, [], [_commit, World.stream]), READ],
    "streamed, given up, and not visible yet": [READ, _commit, World.stream, READ, World.confirm, World.evict, READ],
    "streamed before the stream was lost, and not visible yet": [
        READ,
        _commit,
        World.stream,
        READ,
        World.reconnect,
        READ,
    ],
    "neither visible nor streamed when the stream began": [_commit, World.reconnect, READ, World.show, READ],
    "neither visible nor streamed when the stream began, visible meanwhile": [
        _commit,
        World.reconnect,
        _get(1, [], [World.show, World.confirm]),
    ],
    "an older reading that comes in after the process was removed": [
        _get(1, [], [lambda world: world.commit("remove"), World.show, _get(2, [], [])]),
        _get(2, [], []),
    ],
    "an older reading that comes in after a newer one has left": [
        _get(1, [], [_commit, World.show, _get(2, [], []), World.evict]),
        _get(2, [], []),
    ],
    "an older reading that comes in later": [_get(1, [], [_commit, World.show, _get(2, [], [])]), _get(2, [], [])],
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_a_transaction(plan: Plan) -> None:
    check(plan)


@given(st.lists(STEPS, max_size=40))
@settings(max_examples=500, deadline=None)
def test_no_reader_goes_back_or_sees_what_never_was(plan: Plan) -> None:
    check(plan)


def check(plan: Plan) -> None:
    """No reader goes back meanwhile, and in the end all see the last state."""
    world = World()
    world.run(plan)
    world.run([World.show, *[World.stream] * len(world.changes)])
    for reader in (1, 2):
        world.get(reader, (), ())
        assert world.states[world.seen[reader]] == world.states[-1]
