"""Whether a snapshot contains a transaction of the stream."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from progressor.cache.snapshot import Mark, Snapshot

LSN = 1000


def test_a_snapshot_contains_what_had_ended() -> None:
    seen = Snapshot.parse("100:105:100,103", LSN)
    assert [xid for xid in range(95, 110) if seen.contains(Mark(1, xid))] == [95, 96, 97, 98, 99, 101, 102, 104]


def test_a_snapshot_without_running_transactions() -> None:
    seen = Snapshot.parse("105:105:", LSN)
    assert seen.contains(Mark(1, 104))
    assert not seen.contains(Mark(1, 105))


def test_what_was_committed_behind_it_is_not_contained_whatever_its_number() -> None:
    assert not Snapshot.parse("105:105:", LSN).contains(Mark(LSN, 7))


@given(
    xmax=st.integers(2**31, 2**60),
    distance=st.integers(-(2**31) + 1, 2**31 - 1),
    is_running=st.booleans(),
)
def test_numbers_of_32_bits_are_those_nearest_to_the_snapshot(xmax: int, distance: int, is_running: bool) -> None:
    xid = xmax + distance
    running = {xid} if is_running and distance < 0 else set()
    assert Snapshot(xmax, running, LSN).contains(Mark(1, xid % 2**32)) == (distance < 0 and not running)


def test_the_newer_of_two_snapshots() -> None:
    first = Snapshot.parse("100:105:100,103", LSN)
    ended = Snapshot.parse("103:105:103", LSN)
    later = Snapshot.parse("103:106:103,105", LSN)
    assert ended.is_newer(first)
    assert later.is_newer(ended)
    assert not any(snapshot.is_newer(later) for snapshot in (first, ended, later))
