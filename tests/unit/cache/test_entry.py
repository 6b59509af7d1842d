"""One state of a process in memory, and the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from progressor.cache.entry import Change, Entry
from progressor.cache.snapshot import Snapshot
from progressor.model import Direction, Event, Process, Range

BASE = Snapshot(100, frozenset(), 1000)
BOUNDS = st.none() | st.integers(0, 12) | st.just(2**63 - 1)


def events(first: int, last: int) -> list[Event]:
    return [Event(b"%d" % n, {"n": n}, n) for n in range(first, last + 1)]


def process(last: int) -> Process:
    return Process("p", aux_state=b"state", metadata={"a": 1}, history=events(1, last), last_event_id=last)


def entry(last: int) -> Entry:
    made = Entry.read(process(last), BASE, 0.0)
    assert made is not None
    return made


def ids(found: Process) -> Sequence[int | None]:
    return [event.event_id for event in found.history]


@given(st.integers(0, 10), BOUNDS, BOUNDS, st.sampled_from(Direction))
def test_a_range_is_what_the_database_answers(
    last: int, offset: int | None, limit: int | None, direction: Direction
) -> None:
    wanted = Range(offset, limit, direction)
    if direction is Direction.FORWARD:
        expected = [n for n in range(1, last + 1) if offset is None or n > offset][:limit]
    else:
        expected = [n for n in range(last, 0, -1) if offset is None or n < offset][:limit]
    found = entry(last).process(wanted)
    assert ids(found) == expected
    assert found == replace(process(last), history=found.history, range=wanted)


def test_a_new_event_leaves_earlier_states_as_they_were() -> None:
    first = entry(2)
    second = first.after([Change(appended=events(3, 4), columns={"aux_state": b"new"})])
    assert second is not None
    third = second.after([Change(appended=events(5, 5))])
    assert third is not None
    states = [(ids(state.process(Range())), state.process(Range()).aux_state) for state in (first, second, third)]
    assert states == [([1, 2], b"state"), ([1, 2, 3, 4], b"new"), ([1, 2, 3, 4, 5], b"new")]


def test_events_of_a_transaction_may_come_in_any_order() -> None:
    made = entry(1).after([Change(appended=list(reversed(events(2, 4))))])
    assert made is not None
    assert ids(made.process(Range())) == [1, 2, 3, 4]


def test_an_event_that_is_changed_in_place_is_changed_from_this_state_on() -> None:
    before = entry(3)
    after = before.after([Change(appended=events(4, 4), replaced={2: {"payload": b"new"}, 4: {"payload": b"newer"}})])
    assert after is not None
    assert [event.payload for event in before.process(Range()).history] == [b"1", b"2", b"3"]
    assert [event.payload for event in after.process(Range()).history] == [b"1", b"new", b"3", b"newer"]
    assert after.process(Range()).history[1].metadata == {"n": 2}


@pytest.mark.parametrize("change", [Change(appended=events(4, 4)), Change(appended=events(2, 2))])
def test_what_cannot_follow_is_unknown(change: Change) -> None:
    assert entry(2).after([change]) is None


def test_a_history_with_gaps_is_not_kept() -> None:
    for history in ([Event(b"", event_id=2)], [Event(b"", event_id=1), Event(b"", event_id=3)]):
        last = history[-1].event_id or 0
        assert Entry.read(Process("p", history=history, last_event_id=last), BASE, 0.0) is None


def test_the_size_grows_with_events_state_and_metadata() -> None:
    small = entry(1)
    for change in (
        Change(appended=[Event(bytes(5000), {}, 2)]),
        Change(columns={"aux_state": bytes(5000)}),
        Change(columns={"metadata": {"long": "x" * 5000}}),
    ):
        large = entry(1).after([change])
        assert large is not None
        assert large.size >= small.size + 5000 - len(b"state")
