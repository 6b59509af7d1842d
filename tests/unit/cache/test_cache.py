"""What stays in memory, what leaves it, and what is counted. The source is a dictionary of processes."""

from __future__ import annotations

import tracemalloc
import weakref
from collections.abc import Callable
from threading import Event as Flag
from threading import Thread
from time import monotonic

import pytest

from progressor.cache.cache import Cache, Memory, Miss
from progressor.cache.entry import OVERHEAD, UNREAD, Change
from progressor.cache.snapshot import Mark, Snapshot
from progressor.engine.history import EVENT_OVERHEAD, HISTORY_OVERHEAD
from progressor.engine.ports import Reading
from progressor.errors import RequestTimeout
from progressor.model import Event, Process, Range, now
from tests.unit.cache.told import Told

EVERYTHING = Range()
EMPTY = OVERHEAD + HISTORY_OVERHEAD
"""The size of a process with nothing in it."""


class Source:
    """A database in which nothing runs."""

    def __init__(self) -> None:
        self.processes: dict[str, Process] = {}
        self.readings: list[tuple[str, Range]] = []
        self.snapshot = Snapshot(100, frozenset(), 1000)

    def put(self, process_id: str, *payloads: bytes, aux_state: bytes | None = None) -> None:
        history = [Event(payload, event_id=n) for n, payload in enumerate(payloads, 1)]
        self.processes[process_id] = Process(
            process_id, aux_state=aux_state, history=history, last_event_id=len(history)
        )

    def __call__(self, process_id: str, range: Range, _: float) -> Reading:
        self.readings.append((process_id, range))
        running = ",".join(map(str, self.snapshot.running))
        return Reading(self.processes.get(process_id), f"1:{self.snapshot.xmax}:{running}", self.snapshot.lsn)


@pytest.fixture
def source() -> Source:
    return Source()


def connected(source: Source, max_bytes: int = 100 * EMPTY) -> tuple[Cache, Memory]:
    memory = Memory(max_bytes)
    cache = Cache("a/b", source, memory)
    cache.connect(source.snapshot)
    return cache, memory


def get(cache: Cache, process_id: str) -> Process | None:
    found = cache.look(process_id, EVERYTHING, 0)
    return cache.read(process_id, EVERYTHING, 1.0) if found is None else found


def streamed(cache: Cache, process_id: str, change: Change, size: int = 0) -> None:
    cache.apply(Mark(2000, 200), {process_id: Told(change, size)})


def test_the_least_recently_used_leave_when_room_is_needed(source: Source) -> None:
    cache, memory = connected(source, 3 * EMPTY)
    for name in "abc":
        source.put(name)
        get(cache, name)
    get(cache, "a")
    source.put("d")
    get(cache, "d")
    assert [cache.look(name, EVERYTHING, 0) is not None for name in "abcd"] == [True, False, True, True]
    assert memory.bytes == 3 * EMPTY
    assert cache.figures().misses[Miss.EVICTED] == 1


def test_room_is_needed_when_processes_grow(source: Source) -> None:
    cache, memory = connected(source, 3 * EMPTY)
    for name in "abc":
        source.put(name)
        get(cache, name)
    get(cache, "c")
    streamed(cache, "c", Change(appended=[Event(bytes(EMPTY - EVENT_OVERHEAD), event_id=1)]), size=EMPTY)
    assert (cache.figures().entries, memory.bytes) == (2, 3 * EMPTY)
    assert cache.look("c", EVERYTHING, 1) is not None
    assert (cache.figures().entries, memory.bytes) == (2, 3 * EMPTY)


def test_room_is_needed_when_a_reader_wants_to_know_what_was_streamed(source: Source) -> None:
    cache, memory = connected(source, 3 * EMPTY)
    for name in "abc":
        source.put(name)
        get(cache, name)
    streamed(cache, "c", Change(appended=[Event(bytes(EMPTY - EVENT_OVERHEAD), event_id=1)]))
    assert cache.figures().entries == 3
    assert cache.look("c", EVERYTHING, 1) is not None
    assert (cache.figures().entries, memory.bytes) == (2, 3 * EMPTY)


def test_two_namespaces_share_the_memory(source: Source) -> None:
    first, memory = connected(source, 2 * EMPTY)
    second = Cache("c/d", source, memory)
    second.connect(source.snapshot)
    source.put("p")
    source.put("q")
    get(first, "p")
    get(second, "p")
    get(second, "q")
    assert (first.figures().entries, second.figures().entries, memory.bytes) == (0, 2, 2 * EMPTY)


def test_a_process_that_is_larger_than_the_memory_is_read_by_its_range(source: Source) -> None:
    cache, memory = connected(source, 2 * EMPTY)
    source.put("p", bytes(2 * EMPTY))
    wanted = Range(limit=0)
    for _ in range(3):
        assert cache.look("p", wanted, 0) is None
        assert cache.read("p", wanted, 1.0) is not None
    assert source.readings == [("p", EVERYTHING), ("p", wanted), ("p", wanted)]
    assert (cache.figures().misses[Miss.TOO_LARGE], memory.bytes) == (2, 0)


def test_a_process_that_grows_beyond_the_memory_leaves_it(source: Source) -> None:
    cache, memory = connected(source, 2 * EMPTY)
    source.put("p")
    get(cache, "p")
    streamed(cache, "p", Change(columns={"aux_state": bytes(2 * EMPTY)}), size=2 * EMPTY)
    assert cache.look("p", EVERYTHING, 0) is None
    assert (cache.figures().misses[Miss.TOO_LARGE], memory.bytes) == (1, 0)


def test_a_process_that_turns_out_to_be_larger_than_the_memory_leaves_it(source: Source) -> None:
    cache, memory = connected(source, 2 * EMPTY)
    source.put("p")
    get(cache, "p")
    large = bytes(2 * EMPTY)
    streamed(cache, "p", Change(columns={"aux_state": large}))
    found = cache.look("p", EVERYTHING, 0)
    assert found is not None
    assert found.aux_state == large
    assert cache.look("p", EVERYTHING, 0) is None
    assert (cache.figures().misses[Miss.TOO_LARGE], memory.bytes) == (1, 0)


def test_what_is_streamed_is_looked_into_when_somebody_reads_the_process(source: Source) -> None:
    class Counted(Told):
        def change(self) -> Change:
            looks.append(self.told)
            return super().change()

    looks: list[Change] = []
    cache, _ = connected(source)
    source.put("p")
    get(cache, "p")
    changes = [Change(appended=[Event(b"", event_id=n)]) for n in (1, 2, 3)]
    for change in changes:
        cache.apply(Mark(2000, 200), {"p": Counted(change)})
    assert looks == []
    for _ in range(2):
        found = cache.look("p", EVERYTHING, 0)
        assert found is not None
        assert [event.event_id for event in found.history] == [1, 2, 3]
    assert looks == changes


def test_what_cannot_be_read_of_the_stream_is_read_from_the_database(
    source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    class Rubbish(Told):
        def change(self) -> Change:
            raise ValueError("year 10000")

    cache, memory = connected(source)
    source.put("p")
    get(cache, "p")
    cache.apply(Mark(2000, 200), {"p": Rubbish(Change())})
    assert cache.look("p", EVERYTHING, 0) is None
    assert memory.bytes == 0
    assert 'process "p"' in caplog.text
    source.snapshot = Snapshot(201, frozenset(), 3000)
    assert get(cache, "p") is not None


def test_what_changes_and_changes_and_is_not_read_leaves(source: Source) -> None:
    cache, _ = connected(source)
    source.put("p")
    source.put("q")
    get(cache, "p")
    get(cache, "q")
    for _ in range(2 * UNREAD):
        get(cache, "q")
        for name in "pq":
            streamed(cache, name, Change(columns={"detail": "x"}))
    assert (cache.look("p", EVERYTHING, 0), cache.figures().misses[Miss.EVICTED]) == (None, 1)
    assert cache.look("q", EVERYTHING, 0) is not None


def test_what_nobody_reads_is_forgotten(source: Source) -> None:
    cache, memory = connected(source)
    source.put("p")
    source.put("q")
    get(cache, "p")
    before = monotonic()
    get(cache, "q")
    streamed(cache, "p", Change(columns={"detail": "x"}))
    cache.forget(before)
    assert cache.look("p", EVERYTHING, 0) is None
    assert cache.look("q", EVERYTHING, 0) is not None
    assert memory.bytes == EMPTY


def test_nothing_is_kept_without_a_stream(source: Source) -> None:
    cache, memory = connected(source)
    source.put("p")
    get(cache, "p")
    cache.disconnect()
    for _ in range(2):
        assert get(cache, "p") is not None
    figures = cache.figures()
    assert (figures.entries, figures.misses[Miss.DISCONNECTED], memory.bytes) == (0, 2, 0)


def test_a_reading_that_was_begun_before_the_stream_was_lost_is_not_kept(source: Source) -> None:
    source.put("p")

    def losing(process_id: str, range: Range, patience: float) -> Reading:
        reading = source(process_id, range, patience)
        cache.disconnect()
        cache.connect(source.snapshot)
        return reading

    cache = Cache("a/b", losing, Memory(10 * EMPTY))
    cache.connect(source.snapshot)
    assert cache.read("p", EVERYTHING, 1.0) is not None
    assert cache.figures().entries == 0


def test_a_snapshot_that_is_older_than_the_barrier_does_not_lift_it(source: Source) -> None:
    cache, _ = connected(source)
    before, source.snapshot = source.snapshot, Snapshot(101, frozenset({100}), 1500)
    cache.disconnect()
    cache.connect(source.snapshot)
    cache.confirm(before)
    source.put("p")
    get(cache, "p")
    assert cache.figures().entries == 0


def test_a_reading_that_fails_leaves_nothing(source: Source) -> None:
    def failing(process_id: str, range: Range, patience: float) -> Reading:
        raise ConnectionError

    cache = Cache("a/b", failing, Memory(10 * EMPTY))
    cache.connect(source.snapshot)
    with pytest.raises(ConnectionError):
        cache.read("p", EVERYTHING, 1.0)
    told = Told(Change())
    cache.apply(Mark(2000, 200), {"p": told})
    kept = weakref.ref(told)
    del told
    assert kept() is None


def test_a_change_that_does_not_become_visible_is_a_timeout(source: Source) -> None:
    cache, _ = connected(source)
    source.put("p")
    streamed(cache, "p", Change())
    with pytest.raises(RequestTimeout, match="committed, but not visible yet"):
        cache.read("p", EVERYTHING, 0.05)
    source.snapshot = Snapshot(201, frozenset(), 3000)
    assert cache.read("p", EVERYTHING, 0.05) is not None


def test_a_reader_waits_for_the_stream_a_moment(source: Source) -> None:
    cache, _ = connected(source)
    source.put("p")
    get(cache, "p")
    assert cache.look("p", EVERYTHING, 1) is None
    assert cache.figures().misses[Miss.TOO_OLD] == 1
    found = _waiting(cache, lambda: streamed(cache, "p", Change(appended=[Event(b"", event_id=1)])))
    assert found is not None
    assert found.last_event_id == 1


def test_a_reader_that_waits_is_told_that_the_stream_is_lost(source: Source) -> None:
    cache, _ = connected(source)
    source.put("p")
    get(cache, "p")
    assert _waiting(cache, cache.disconnect) is None


def _waiting(cache: Cache, then: Callable[[], object]) -> Process | None:
    """What a reader of event 1 is answered when this happens while it waits."""
    found: list[Process | None] = []
    reader = Thread(target=lambda: found.append(cache.look("p", EVERYTHING, 1)))
    reader.start()
    then()
    reader.join()
    return found[0]


def test_a_hit_waits_for_nobody(source: Source) -> None:
    """While somebody holds the lock, and while the database does not answer."""
    entered, leave = Flag(), Flag()

    def slow(process_id: str, range: Range, patience: float) -> Reading:
        if process_id == "slow":
            entered.set()
            leave.wait()
        return source(process_id, range, patience)

    memory = Memory(10 * EMPTY)
    cache = Cache("a/b", slow, memory)
    cache.connect(source.snapshot)
    source.put("p")
    get(cache, "p")
    reader = Thread(target=cache.read, args=("slow", EVERYTHING, 1.0))
    reader.start()
    assert entered.wait(10)
    with memory.lock:
        assert cache.look("p", EVERYTHING, 0) is not None
    leave.set()
    reader.join()


def test_a_hundred_thousand_processes_stay_within_the_bytes(source: Source) -> None:
    cache, memory = connected(source, 64 * 1024 * 1024)
    for n in range(100_000):
        _fill(cache, source, n)
    assert memory.bytes <= memory.max_bytes
    assert cache.figures().entries == pytest.approx(memory.max_bytes / (EMPTY + EVENT_OVERHEAD + 164), rel=0.01)


def test_the_bytes_are_about_those_that_python_takes(source: Source) -> None:
    cache, memory = connected(source, 2**30)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for n in range(2000):
        _fill(cache, source, n)
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert 0.7 * memory.bytes < taken < 1.2 * memory.bytes


def _fill(cache: Cache, source: Source, number: int) -> None:
    at = now()
    event = Event(b"x" * 32 + b"%32d" % number, {}, 1, at, 1000 + number)
    state = b"y" * 50 + b"%50d" % number
    made = Process(f"process {number}", "running", None, state, None, [event], 1, EVERYTHING, at, "init", at)
    source.processes = {made.process_id: made}
    cache.read(made.process_id, EVERYTHING, 1.0)
    source.readings.clear()


def test_fifty_thousand_events(source: Source) -> None:
    """The list is not copied when an event comes: its place in memory stays the same."""
    cache, memory = connected(source, 2**30)
    source.put("p", *[b""] * 50_000)
    get(cache, "p")
    size = memory.bytes
    for n in range(50_001, 50_101):
        streamed(cache, "p", Change(appended=[Event(b"", event_id=n)]))
    last = cache.look("p", Range(limit=1, direction="backward"), 50_100)
    assert last is not None
    assert memory.bytes - size == 100 * EVENT_OVERHEAD
    assert last.history[0].event_id == 50_100
    assert len(source.readings) == 1
