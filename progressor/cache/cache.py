"""Which processes are in memory, and how a reading of the database becomes one that stays true.

A hit takes no lock and waits for nobody: it finds an entry in a dictionary and slices it. Only the first after a change
works out what the change made of the process. That and everything else (what the stream brings, readings that come in,
what is given up) is short and under one lock.

Invariants, for each process, as long as the stream lasts (docs/adr/0009-cache.md has the argument):

- An entry is what one reading has seen, followed by every transaction of the stream that this reading has not seen.
- A transaction that is streamed while a reading is under way is kept for it, and applied unless it was seen.
- A transaction that was streamed before the reading began must have been seen; else the reading is done again. Which
  ones these can be is known from `_recent`: streamed, and not in any snapshot so far.
- What was answered from a reading is in memory afterwards, or nothing older is: no reader goes back.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain
from threading import Event as Flag
from threading import Lock
from time import monotonic
from typing import TypeAlias

from progressor.cache.entry import Entry, Streamed
from progressor.cache.snapshot import Mark, Snapshot
from progressor.engine.ports import Reading
from progressor.errors import RequestTimeout
from progressor.model import Process, Range

logger = logging.getLogger(__name__)

STREAM_PATIENCE = 0.05
"""Seconds to wait for the stream to bring what a reader wants; it lags a few milliseconds behind."""
VISIBLE_PAUSE = 0.005
"""Seconds between readings when a committed change is not visible yet."""
UNFIT_TIME = 60.0
"""Seconds for which a process that is too large is read by range, and not as a whole."""
REMEMBERED = 50_000
"""How many processes that were given up are remembered, to tell why one is missing."""

Source: TypeAlias = Callable[[str, Range, float], Reading]
"""Reads process, range of its history and snapshot at once; the last argument is how many seconds it may wait."""


class _Again(Exception):
    """A reading that cannot be answered from."""


class Miss(StrEnum):
    """Why a reader had to go to the database."""

    COLD = "cold"
    EVICTED = "evicted"
    DISCONNECTED = "disconnected"
    TOO_OLD = "too_old"
    TOO_LARGE = "too_large"


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one namespace."""

    connected: bool
    entries: int
    hits: int
    misses: Mapping[Miss, int]


class Memory:
    """What the caches of a node may take together. Used under its lock."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.lock = Lock()
        self._order: OrderedDict[tuple[Cache, str], float] = OrderedDict()

    def add(self, cache: Cache, process_id: str, used: float, size: int) -> None:
        self._order[cache, process_id] = used
        self.grow(size)

    def grow(self, size: int) -> None:
        """Makes room: who was passed once and was not looked at since is given up."""
        self.bytes += size
        while self.bytes > self.max_bytes:
            (cache, process_id), used_then = next(iter(self._order.items()))
            used = cache.used(process_id)
            if used > used_then:
                self._order[cache, process_id] = used
                self._order.move_to_end((cache, process_id))
            else:
                cache.evict(process_id)

    def remove(self, cache: Cache, process_id: str, size: int) -> None:
        del self._order[cache, process_id]
        self.bytes -= size


@dataclass(frozen=True, slots=True)
class _Recent:
    """A transaction that was streamed, and the processes that it changed; None: it may be any."""

    mark: Mark
    processes: AbstractSet[str] | None

    def concerns(self, process_id: str) -> bool:
        return self.processes is None or process_id in self.processes


@dataclass(slots=True, eq=False)
class _Fill:
    """A reading of the database that is under way."""

    before: list[Mark]
    """Transactions that it must have seen."""
    whole: bool
    """Whether it reads the whole history, so as to stay in memory."""
    may_stay: bool
    """Whether `changes` are all that was streamed since, and nothing newer was answered."""
    barrier: Snapshot | None
    """Transactions that run in it may never be streamed."""
    changes: list[tuple[Mark, Streamed]] = field(default_factory=list)


class Cache:
    """The processes of one namespace. Thread-safe."""

    def __init__(self, ns: str, source: Source, memory: Memory) -> None:
        self.ns = ns
        self._source = source
        self._memory = memory
        self._lock = memory.lock
        self._entries: dict[str, Entry] = {}
        self._fills: dict[str, list[_Fill]] = {}
        self._waiting: dict[str, list[Flag]] = {}
        self._recent: list[_Recent] = []
        self._barrier: Snapshot | None = None
        self._connected = False
        self._evicted: OrderedDict[str, None] = OrderedDict()
        self._unfit: dict[str, float] = {}
        """Processes that are too large, or not to be followed, and until when they are taken for that."""
        self._hits = 0
        self._misses: Counter[Miss] = Counter()

    # For readers

    def look(self, process_id: str, range: Range, least: int) -> Process | None:
        """The process from memory; waits a moment for event `least`. None: a miss, `read` it."""
        entry = self._entries.get(process_id)
        if entry is not None and entry.pending:
            entry = self._current(process_id)
        if entry is None:
            self._misses[self._reason(process_id)] += 1
            return None
        if entry.last_event_id < least:
            entry = self._await(process_id, least)
            if entry is None:
                self._misses[Miss.TOO_OLD] += 1
                return None
        self._hits += 1  # a count that is lost between two threads would not matter
        entry.used = monotonic()
        return entry.process(range)

    def read(self, process_id: str, range: Range, patience: float) -> Process | None:
        """The process from the database, at least as new as anything in memory before; it stays in memory then.

        Raises StorageUnavailable; RequestTimeout when a change that is committed is not visible within `patience`
        seconds.
        """
        deadline = monotonic() + patience
        while True:
            with suppress(_Again):
                return self._read_once(process_id, range, max(0.0, deadline - monotonic()))
            if monotonic() >= deadline:
                raise RequestTimeout("timeout: the last change of the process is committed, but not visible yet")
            Flag().wait(VISIBLE_PAUSE)

    # For the stream

    def connect(self, barrier: Snapshot) -> None:
        """From now on every transaction is streamed, but some of those that run in `barrier`."""
        with self._lock:
            self._confirm(barrier)
            kept = {xid % 2**32 for xid in barrier.running}  # what else is not in it was never on this server
            self._recent = [streamed for streamed in self._recent if streamed.mark.xid in kept]
            self._barrier = barrier
            self._connected = True

    def disconnect(self) -> None:
        """Forgets everything; nothing stays in memory any more."""
        with self._lock:
            self._connected = False
            self._clear()

    def apply(self, mark: Mark, changes: Mapping[str, Streamed]) -> None:
        """What a transaction did, by process."""
        with self._lock:
            self._recent.append(_Recent(mark, frozenset(changes)))
            wanted = (changes.keys() & self._entries.keys()) | (changes.keys() & self._fills.keys())
        for process_id in wanted:
            with self._lock:
                self._apply(process_id, mark, changes[process_id])

    def empty(self, mark: Mark) -> None:
        """A transaction changed more than can be told."""
        with self._lock:
            self._recent.append(_Recent(mark, None))
            self._clear()

    def confirm(self, seen: Snapshot) -> None:
        """A snapshot that was taken now: what it contains is visible to every reading that begins later."""
        with self._lock:
            self._confirm(seen)

    def forget(self, before: float) -> None:
        """Gives up what was not looked at since then (`time.monotonic`)."""
        for process_id, entry in list(self._entries.items()):
            if entry.used < before:
                with self._lock:
                    self.evict(process_id)
        with self._lock:
            self._unfit = {process_id: until for process_id, until in self._unfit.items() if until > monotonic()}

    def figures(self) -> Figures:
        misses = {reason: self._misses[reason] for reason in Miss}
        return Figures(self._connected, len(self._entries), self._hits, misses)

    # For the memory, under its lock

    def used(self, process_id: str) -> float:
        return self._entries[process_id].used

    def evict(self, process_id: str) -> None:
        if self._drop(process_id):
            self._evicted[process_id] = None
        if len(self._evicted) > REMEMBERED:
            self._evicted.popitem(last=False)

    # Readings

    def _read_once(self, process_id: str, range: Range, patience: float) -> Process | None:
        fill = self._begin(process_id)
        try:
            reading = self._source(process_id, Range() if fill.whole else range, patience)
            snapshot = Snapshot.parse(reading.snapshot, reading.lsn)
            if not all(map(snapshot.contains, fill.before)):
                raise _Again
            return self._end(process_id, fill, reading.process, snapshot, range)
        finally:
            self._leave(process_id, fill)

    def _begin(self, process_id: str) -> _Fill:
        with self._lock:
            before = [streamed.mark for streamed in self._recent if streamed.concerns(process_id)]
            whole = self._connected and self._unfit.get(process_id, 0.0) <= monotonic()
            fill = _Fill(before, whole, may_stay=whole, barrier=self._barrier)
            self._fills.setdefault(process_id, []).append(fill)
            return fill

    def _end(
        self, process_id: str, fill: _Fill, process: Process | None, seen: Snapshot, range: Range
    ) -> Process | None:
        """What the reader is answered; from now on nothing older is in memory."""
        read = Entry.read(process, seen, monotonic()) if process is not None and fill.whole else None
        with self._lock:
            known = self._entries.get(process_id)
            if known is not None and known.base.is_newer(seen) and (current := self._fold(process_id)) is not None:
                return current.process(range)
            if process is not None and fill.whole and read is None:
                self._unfit[process_id] = monotonic() + UNFIT_TIME
                raise _Again
            missed = [streamed for mark, streamed in fill.changes if not seen.contains(mark)]
            may_stay = fill.may_stay and _is_followed(seen, fill.barrier) and not any(s.ends for s in missed)
            newest = read if may_stay else None
            if newest is not None:
                for streamed in missed:
                    newest.add(streamed, streamed.size)
            self._keep(process_id, newest)
            answer = self._fold(process_id) or read
        return process if answer is None else answer.process(range)

    def _leave(self, process_id: str, fill: _Fill) -> None:
        with self._lock:
            fills = self._fills[process_id]
            fills.remove(fill)
            if not fills:
                del self._fills[process_id]

    # What is in memory

    def _apply(self, process_id: str, mark: Mark, streamed: Streamed) -> None:
        for fill in self._fills.get(process_id, ()):
            fill.changes.append((mark, streamed))
        entry = self._entries.get(process_id)
        if entry is not None and not entry.is_worth_following:
            self.evict(process_id)
        elif entry is not None and not entry.base.contains(mark):
            size = streamed.size
            if streamed.ends or not self._fits(process_id, entry.size + size):
                self._drop(process_id)
            else:
                entry.add(streamed, size)
                self._memory.grow(size)
        for flag in self._waiting.get(process_id, ()):
            flag.set()

    def _current(self, process_id: str) -> Entry | None:
        with self._lock:
            return self._fold(process_id)

    def _fold(self, process_id: str) -> Entry | None:
        """What is in memory, with all that was streamed."""
        entry = self._entries.get(process_id)
        if entry is None or not entry.pending:
            return entry
        try:
            following = entry.after(streamed.change() for streamed in entry.pending)
        except Exception:
            logger.exception('what was streamed of process "%s" cannot be read: the database is asked', process_id)
            following = None
        self._keep(process_id, following)
        return following

    def _keep(self, process_id: str, entry: Entry | None) -> None:
        """In place of what was there, if it is not too large."""
        if entry is None or not self._fits(process_id, entry.size):
            self._drop(process_id)
            return
        before = self._entries.get(process_id)
        self._entries[process_id] = entry
        if before is None:
            self._evicted.pop(process_id, None)
            self._memory.add(self, process_id, entry.used, entry.size)
        else:
            self._memory.grow(entry.size - before.size)

    def _fits(self, process_id: str, size: int) -> bool:
        fits = size <= self._memory.max_bytes
        if not fits:
            self._unfit[process_id] = monotonic() + UNFIT_TIME
        return fits

    def _drop(self, process_id: str) -> bool:
        """Nothing is in memory. A reading under way may be older than what was there, or than what was answered
        without being kept, so it does not stay."""
        for fill in self._fills.get(process_id, ()):
            fill.may_stay = False
        entry = self._entries.pop(process_id, None)
        if entry is not None:
            self._memory.remove(self, process_id, entry.size)
        return entry is not None

    def _clear(self) -> None:
        for process_id in list(self._entries):
            self._drop(process_id)
        for fill in chain.from_iterable(self._fills.values()):
            fill.may_stay = False
        for flag in chain.from_iterable(self._waiting.values()):
            flag.set()
        self._evicted.clear()
        self._unfit.clear()

    def _confirm(self, seen: Snapshot) -> None:
        self._recent = [streamed for streamed in self._recent if not seen.contains(streamed.mark)]
        if self._barrier is not None and not self._barrier.is_newer(seen) and _is_followed(seen, self._barrier):
            self._barrier = None

    # Waiting for the stream

    def _await(self, process_id: str, least: int) -> Entry | None:
        """The process with event `least`; None when it does not come."""
        deadline = monotonic() + STREAM_PATIENCE
        while (entry := self._current(process_id)) is not None and entry.last_event_id < least:
            if not self._changes(process_id, entry, deadline - monotonic()):
                return None
        return entry

    def _changes(self, process_id: str, entry: Entry, seconds: float) -> bool:
        """Whether it becomes another one in this time."""
        flag = Flag()
        with self._lock:
            if self._entries.get(process_id) is not entry or entry.pending:
                return True
            self._waiting.setdefault(process_id, []).append(flag)
        changed = flag.wait(max(0.0, seconds))
        with self._lock:
            flags = self._waiting[process_id]
            flags.remove(flag)
            if not flags:
                del self._waiting[process_id]
        return changed

    def _reason(self, process_id: str) -> Miss:
        if not self._connected:
            return Miss.DISCONNECTED
        if process_id in self._unfit:
            return Miss.TOO_LARGE
        return Miss.EVICTED if process_id in self._evicted else Miss.COLD


def _is_followed(seen: Snapshot, barrier: Snapshot | None) -> bool:
    """Whether all that the snapshot does not contain is streamed."""
    return barrier is None or not barrier.running & seen.running
