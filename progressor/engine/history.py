"""The history of a process in memory, shared between the steps that extend it.

A process of 100,000 events must not cost more a step than one of ten, so a step is given a view, not a copy: only the
events that it looks at are copied. A `History` only ever grows at its end, and a `Slice` of it has a fixed length. What
is not in memory is read when the step looks at it, and not before: most never do.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from threading import Lock
from typing import overload

from progressor.metadata import own
from progressor.model import Direction, Event, Range

EVENT_OVERHEAD = 400
"""Bytes that an event takes in memory beyond its payload; a rough figure."""

HISTORY_OVERHEAD = 500
"""Bytes that a history takes without any event: else there could be any number of empty ones."""


class History:
    """The events of a process behind the first `first`, which are not in memory. One owner at a time appends: the
    step that was committed last."""

    __slots__ = ("created_at", "events", "first", "size")

    def __init__(self, events: Iterable[Event] = (), created_at: datetime | None = None, first: int = 0) -> None:
        """`created_at` of the process tells it from a later one of the same id."""
        self.created_at = created_at
        self.first = first
        self.events: list[Event] = []
        self.size = HISTORY_OVERHEAD
        self.extend(events)

    def extend(self, events: Iterable[Event]) -> None:
        for event in events:
            self.events.append(event)
            self.size += len(event.payload) + EVENT_OVERHEAD

    @property
    def last_event_id(self) -> int:
        return self.first + len(self.events)

    @property
    def last_writer(self) -> int | None:
        """The task that wrote the last event in memory."""
        return self.events[-1].task_id if self.events else None

    def slice(self, range: Range, read: Callable[[Range], Sequence[Event]]) -> Slice | Unread:
        """The events of a range; no copy of those in memory. The others are had from `read` when they are looked at."""
        start, stop = bounds(range, self.last_event_id)
        if start < self.first and start < stop:
            return Unread(range, stop - start, read)
        step = -1 if range.direction == Direction.BACKWARD else 1
        return Slice(self.events, start - self.first, stop - self.first, step)


def bounds(range: Range, last: int) -> tuple[int, int]:
    """The positions [start, stop) of a range in a history of the events 1..last."""
    if range.direction == Direction.BACKWARD:
        stop = last if range.offset is None else max(0, min(last, range.offset - 1))
        start = 0 if range.limit is None else max(0, stop - range.limit)
        return start, stop
    start = 0 if range.offset is None else max(0, min(last, range.offset))
    stop = last if range.limit is None else min(last, start + range.limit)
    return start, stop


class Events(Sequence[Event]):
    """A slice of a history, as a sequence that compares as a list does."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(_same, self, other))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"<{len(self)} events>"


class Slice(Events):
    """A fixed part of a list that may grow, in its order or (`step` -1) from its end."""

    __slots__ = ("_events", "_start", "_step", "_stop")

    def __init__(self, events: list[Event], start: int, stop: int, step: int) -> None:
        self._events = events
        self._start = start
        self._stop = stop
        self._step = step

    def __len__(self) -> int:
        return max(0, self._stop - self._start)

    @overload
    def __getitem__(self, index: int) -> Event: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Event]: ...
    def __getitem__(self, index: int | slice) -> Event | Sequence[Event]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        at_start = (index >= 0) == (self._step > 0)
        return self._events[(self._start if at_start else self._stop) + (index if self._step > 0 else -1 - index)]

    def __iter__(self) -> Iterator[Event]:
        places = range(self._start, self._stop)
        return map(self._events.__getitem__, places if self._step > 0 else reversed(places))


class Unread(Events):
    """Events that are read from the database when somebody looks. Their number is known before."""

    __slots__ = ("_length", "_lock", "_range", "_read", "events")

    def __init__(self, range: Range, length: int, read: Callable[[Range], Sequence[Event]]) -> None:
        self._range = range
        self._length = length
        self._read = read
        self._lock = Lock()
        self.events: Sequence[Event] | None = None
        """None as long as nobody has looked."""

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Event: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Event]: ...
    def __getitem__(self, index: int | slice) -> Event | Sequence[Event]:
        return self._look()[index]

    def __iter__(self) -> Iterator[Event]:
        return iter(self._look())

    def _look(self) -> Sequence[Event]:
        with self._lock:
            if self.events is None:
                # A removal of the process or a lost lease may have taken some: then this step will not be committed.
                self.events = tuple(self._read(self._range)[: self._length])
            return self.events


class Given(Events):
    """Events as a step is given them: each is a copy, so that whatever the step does with it, `events` stay."""

    __slots__ = ("events",)

    def __init__(self, events: Sequence[Event]) -> None:
        self.events = events

    def __len__(self) -> int:
        return len(self.events)

    @overload
    def __getitem__(self, index: int) -> Event: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Event]: ...
    def __getitem__(self, index: int | slice) -> Event | Sequence[Event]:
        found = self.events[index]
        return _copy(found) if isinstance(found, Event) else tuple(map(_copy, found))

    def __iter__(self) -> Iterator[Event]:
        return map(_copy, self.events)


def _copy(event: Event) -> Event:
    return Event(event.payload, own(event.metadata), event.event_id, event.timestamp, event.task_id)


def _same(a: Event, b: Event) -> bool:
    return a == b


class Histories:
    """Histories of processes that ran here lately, bounded by bytes; the least recently used leave first.

    A history is taken out while a step uses it, so nobody else can extend it; its bytes still count, until it is put
    back or forgotten. Whether it is still whole, the last event id of the process tells. Thread-safe.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._size = 0
        self._entries: OrderedDict[str, History] = OrderedDict()
        self._taken: dict[str, int] = {}
        self._lock = Lock()

    def take(self, process_id: str) -> History | None:
        with self._lock:
            history = self._entries.pop(process_id, None)
            if history is not None:
                self._taken[process_id] = history.size
            return history

    def put(self, process_id: str, history: History) -> None:
        with self._lock:
            self._drop(process_id)
            self._size += history.size
            self._entries[process_id] = history
            while self._size > self._max_bytes and self._entries:
                _, evicted = self._entries.popitem(last=False)
                self._size -= evicted.size

    def forget(self, process_id: str) -> None:
        with self._lock:
            self._drop(process_id)

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self._taken.clear()
            self._size = 0

    def _drop(self, process_id: str) -> None:
        self._size -= self._taken.pop(process_id, 0)
        old = self._entries.pop(process_id, None)
        if old is not None:
            self._size -= old.size
