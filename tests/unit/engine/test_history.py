"""Ranges (docs/design.md, "Things"), and the memory that histories may take."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from progressor.engine.history import EVENT_OVERHEAD, HISTORY_OVERHEAD, Histories, History
from progressor.model import Direction, Event, Range

LONGEST = 12
RANGES = st.builds(
    Range,
    offset=st.none() | st.integers(-3, LONGEST + 3) | st.just(2**63 - 1),
    limit=st.none() | st.integers(0, LONGEST + 3) | st.just(2**31 - 1),
    direction=st.sampled_from([*Direction, "forward", "backward"]),
)
LENGTHS = st.integers(0, LONGEST)
INDEXES = st.integers(-LONGEST - 3, LONGEST + 3)


@cache
def event(event_id: int) -> Event:
    return Event(b"%d" % event_id, event_id=event_id)


def events(length: int, after: int = 0) -> list[Event]:
    return [event(event_id) for event_id in range(after + 1, length + 1)]


def model(length: int, range: Range) -> list[Event]:
    """docs/design.md, "Things", word by word."""
    offset, found = range.offset, events(length)
    if range.direction == "backward":
        found = [e for e in reversed(found) if offset is None or ident(e) < offset]
    else:
        found = [e for e in found if offset is None or ident(e) > offset]
    return found if range.limit is None else found[: range.limit]


def ident(event: Event) -> int:
    assert event.event_id is not None
    return event.event_id


def unread(range: Range) -> Sequence[Event]:
    raise AssertionError(f"all is in memory, {range} was read")


# A slice


@given(LENGTHS, RANGES)
def test_a_slice_is_what_the_range_says(length: int, range: Range) -> None:
    assert list(History(events(length)).slice(range, unread)) == model(length, range)


@pytest.mark.parametrize(
    ("range", "ids"),
    [
        (Range(), [1, 2, 3, 4, 5]),
        (Range(limit=2), [1, 2]),
        (Range(offset=2), [3, 4, 5]),
        (Range(offset=2, limit=2), [3, 4]),
        (Range(offset=5), []),
        (Range(limit=0), []),
        (Range(direction="backward"), [5, 4, 3, 2, 1]),
        (Range(limit=2, direction="backward"), [5, 4]),
        (Range(offset=3, direction="backward"), [2, 1]),
        (Range(offset=5, limit=2, direction="backward"), [4, 3]),
        (Range(offset=9, limit=2, direction="backward"), [5, 4]),
        (Range(offset=1, direction="backward"), []),
        (Range(limit=0, direction="backward"), []),
    ],
)
def test_the_slices_of_five_events(range: Range, ids: list[int]) -> None:
    assert [e.event_id for e in History(events(5)).slice(range, unread)] == ids


@given(LENGTHS, st.integers(0, 5), RANGES)
def test_a_slice_stays_as_it_is_when_the_history_grows(length: int, more: int, range: Range) -> None:
    history = History(events(length))
    slice_ = history.slice(range, unread)
    history.extend(events(length + more, after=length))
    assert list(slice_) == model(length, range)
    assert len(slice_) == len(model(length, range))
    assert history.last_event_id == length + more


@given(LENGTHS, RANGES, INDEXES)
def test_a_slice_is_indexed_like_a_list(length: int, range: Range, index: int) -> None:
    history, expected = History(events(length)), model(length, range)
    slice_ = history.slice(range, unread)
    history.extend(events(length + 3, after=length))
    if -len(expected) <= index < len(expected):
        assert slice_[index] is expected[index]
    else:
        with pytest.raises(IndexError):
            slice_[index]


@given(LENGTHS, RANGES, st.slices(LONGEST + 3))
def test_a_slice_is_sliced_like_a_list(length: int, range: Range, part: slice) -> None:
    history, expected = History(events(length)), model(length, range)
    slice_ = history.slice(range, unread)
    history.extend(events(length + 3, after=length))
    assert list(slice_[part]) == expected[part]


@given(LENGTHS, RANGES)
def test_a_slice_is_a_sequence(length: int, range: Range) -> None:
    slice_, expected = History(events(length)).slice(range, unread), model(length, range)
    assert isinstance(slice_, Sequence)
    assert list(reversed(slice_)) == expected[::-1]
    assert bool(slice_) is bool(expected)
    assert all(e in slice_ and slice_.index(e) == n for n, e in enumerate(expected))
    assert event(LONGEST + 1) not in slice_


@given(LENGTHS, LENGTHS, RANGES)
def test_slices_are_equal_when_their_events_are(length: int, other: int, range: Range) -> None:
    slice_ = History(events(length)).slice(range, unread)
    assert slice_ == History(events(length)).slice(range, unread)
    assert slice_ == tuple(model(length, range))
    assert (slice_ == History(events(other)).slice(range, unread)) is (model(length, range) == model(other, range))


def test_the_whole_history_is_not_copied() -> None:
    assert repr(History(events(5)).slice(Range(), unread)) == "<5 events>"


# A history


def test_the_size_of_a_history_counts_its_payloads_and_something_for_the_rest() -> None:
    history = History([Event(b"12345")])
    history.extend([Event(b""), Event(b"1")])
    assert history.size == HISTORY_OVERHEAD + 6 + 3 * EVENT_OVERHEAD
    assert History().size > 0


# What is not in memory


@given(LENGTHS, LENGTHS, RANGES)
def test_what_is_not_in_memory_is_read_when_looked_at(length: int, first: int, range: Range) -> None:
    looks: list[Range] = []

    def read(range: Range) -> Sequence[Event]:
        looks.append(range)
        return model(length, range)

    first = min(first, length)
    seen, expected = History(events(length, first), first=first).slice(range, read), model(length, range)
    assert len(seen) == len(expected)
    assert not looks
    assert list(seen) == list(seen) == expected
    assert seen == tuple(expected)
    assert len(looks) == (1 if expected and min(map(ident, expected)) <= first else 0)


def test_what_a_step_was_shown_stays_as_it_is() -> None:
    seen = History(events(2), first=0).slice(Range(), unread)
    history = History(first=2)
    late = history.slice(Range(), lambda _: events(3))
    history.extend([event(3)])
    assert (len(seen), list(late), history.last_event_id) == (2, events(2), 3)


# Histories


def sized(extra: int) -> History:
    """A history of exactly `extra` bytes beyond the least one with an event."""
    return History([Event(b"x" * extra)])


LEAST = sized(0).size


def test_a_history_is_taken_out() -> None:
    histories, history = Histories(10 * LEAST), sized(0)
    histories.put("a", history)
    assert histories.take("a") is history
    assert histories.take("a") is None
    assert histories.take("b") is None


def test_the_least_recently_used_leave_first() -> None:
    histories = Histories(3 * LEAST)
    for process_id in "abc":
        histories.put(process_id, sized(0))
    a = histories.take("a")
    assert a is not None
    histories.put("a", a)
    histories.put("d", sized(0))
    assert [i for i in "abcd" if histories.take(i)] == ["a", "c", "d"]


def test_one_that_is_put_twice_counts_once() -> None:
    histories, last = Histories(2 * LEAST), sized(0)
    histories.put("a", sized(0))
    histories.put("b", sized(0))
    histories.put("b", last)
    assert histories.take("b") is last
    assert histories.take("a") is not None


def test_one_that_is_too_big_is_not_kept() -> None:
    histories = Histories(2 * LEAST)
    histories.put("a", sized(2 * LEAST))
    assert histories.take("a") is None


def test_what_grew_while_it_was_out_counts_with_its_new_size() -> None:
    histories, history = Histories(3 * LEAST), sized(0)
    histories.put("a", history)
    histories.put("b", sized(0))
    taken = histories.take("a")
    assert taken is history
    history.extend([Event(b"x" * 2 * LEAST)])
    histories.put("a", history)
    assert histories.take("b") is None
    assert histories.take("a") is None
    for process_id in "cde":
        histories.put(process_id, sized(0))
    assert all(histories.take(i) for i in "cde")


def test_histories_without_events_are_bounded_too() -> None:
    histories = Histories(100 * HISTORY_OVERHEAD)
    for n in range(1000):
        histories.put(str(n), History())
    assert len([n for n in range(1000) if histories.take(str(n))]) == 100


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.none() | st.integers(0, 2 * LEAST))))
def test_histories_behave_like_a_bounded_list_in_order_of_use(uses: list[tuple[str, int | None]]) -> None:
    histories, expected, bound = Histories(4 * LEAST), list[tuple[str, History]](), 4 * LEAST
    taken: dict[str, int] = {}
    for process_id, extra in uses:
        known = dict(expected).get(process_id)
        expected = [entry for entry in expected if entry[0] != process_id]
        if extra is None:
            assert histories.take(process_id) is known
            taken |= {} if known is None else {process_id: known.size}
            continue
        taken.pop(process_id, None)
        history = sized(extra)
        histories.put(process_id, history)
        expected.append((process_id, history))
        while expected and sum(h.size for _, h in expected) + sum(taken.values()) > bound:
            del expected[0]


def test_threads_share_histories() -> None:
    """A history is in one pair of hands, or in none; nothing is lost while there is room."""
    histories = Histories(100 * LEAST)
    shared = {str(n): sized(0) for n in range(5)}
    for process_id, history in shared.items():
        histories.put(process_id, history)

    def use(seed: int) -> None:
        choose = random.Random(seed)
        for _ in range(2000):
            process_id = choose.choice("01234")
            history = histories.take(process_id)
            if history is not None:
                assert history is shared[process_id]
                histories.put(process_id, history)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(use, range(8)))
    assert {i: histories.take(i) for i in shared} == shared
    for n in range(100):  # the bytes are counted right, else these would not fit
        histories.put(str(n), sized(0))
    assert all(histories.take(str(n)) for n in range(100))


def test_what_is_in_use_counts() -> None:
    histories = Histories(2 * LEAST)
    for name in "ab":
        histories.put(name, sized(0))
        assert histories.take(name) is not None
    histories.put("c", sized(0))
    assert histories.take("c") is None
    histories.forget("a")
    histories.put("c", sized(0))
    assert histories.take("c") is not None
    histories.clear()
    histories.put("a", sized(0))
    histories.put("b", sized(0))
    assert histories.take("a") is not None
