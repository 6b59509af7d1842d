"""The history of a process in memory, shared between the steps that extend it.

A process of 100,000 events must not cost more a step than one of ten, so a step is given a view, not a copy:
a `History` only ever grows at its end, and a `Slice` of it has a fixed length.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from datetime import datetime
from threading import Lock
from typing import overload

from progressor.model import Direction, Event, Range

EVENT_OVERHEAD = 400
"""Bytes that an event takes in memory beyond its payload; a rough figure."""

HISTORY_OVERHEAD = 500
"""Bytes that a history takes without any event: else there could be any number of empty ones."""


class History:
    """All events of a process, 1..n. One owner at a time appends: the step that was committed last."""

    __slots__ = ("created_at", "events", "size")

    def __init__(self, events: Iterable[Event] = (), created_at: datetime | None = None) -> None:
        """`created_at` of the process tells it from a later one of the same id."""
        self.created_at = created_at
        self.events: list[Event] = []
        self.size = HISTORY_OVERHEAD
        self.extend(events)

    def extend(self, events: Iterable[Event]) -> None:
        for event in events:
            self.events.append(event)
            self.size += len(event.payload) + EVENT_OVERHEAD

    @property
    def last_event_id(self) -> int:
        return len(self.events)

    def slice(self, range: Range) -> Sequence[Event]:
        """The events of a range, without copying any when all are asked for in order."""
        start, stop = bounds(range, len(self.events))
        if range.direction == Direction.BACKWARD:
            return tuple(reversed(self.events[start:stop]))
        return Slice(self.events, start, stop)


def bounds(range: Range, last: int) -> tuple[int, int]:
    """The positions [start, stop) of a range in a history of the events 1..last."""
    if range.direction == Direction.BACKWARD:
        stop = last if range.offset is None else max(0, min(last, range.offset - 1))
        start = 0 if range.limit is None else max(0, stop - range.limit)
        return start, stop
    start = 0 if range.offset is None else max(0, min(last, range.offset))
    stop = last if range.limit is None else min(last, start + range.limit)
    return start, stop


class Slice(Sequence[Event]):
    """A fixed part of a list that may grow."""

    __slots__ = ("_events", "_start", "_stop")

    def __init__(self, events: list[Event], start: int, stop: int) -> None:
        self._events = events
        self._start = start
        self._stop = stop

    def __len__(self) -> int:
        return self._stop - self._start

    @overload
    def __getitem__(self, index: int) -> Event: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Event]: ...
    def __getitem__(self, index: int | slice) -> Event | Sequence[Event]:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return tuple(self._events[self._start + i] for i in range(start, stop, step))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._events[(self._stop if index < 0 else self._start) + index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(_same, self, other))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"<{len(self)} events>"


def _same(a: Event, b: Event) -> bool:
    return a == b


class Histories:
    """Histories of processes that ran here lately, bounded by bytes; the least recently used leave first.

    A history is taken out while a step uses it, so nobody else can extend it. Whether it is still whole, the
    last event id of the process tells. Thread-safe.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._size = 0
        self._entries: OrderedDict[str, History] = OrderedDict()
        self._lock = Lock()

    def take(self, process_id: str) -> History | None:
        with self._lock:
            history = self._entries.pop(process_id, None)
            if history is not None:
                self._size -= history.size
            return history

    def put(self, process_id: str, history: History) -> None:
        with self._lock:
            old = self._entries.pop(process_id, None)
            self._size += history.size - (old.size if old is not None else 0)
            self._entries[process_id] = history
            while self._size > self._max_bytes and self._entries:
                _, evicted = self._entries.popitem(last=False)
                self._size -= evicted.size
