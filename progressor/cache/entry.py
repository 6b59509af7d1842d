"""A process in memory: one committed state of it, with its whole history.

Readers take an entry without a lock, so an entry never changes; the next state is another entry, which shares the list
of events and counts more of them. A new event costs the same at event 50,000 as at event 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from progressor.cache.snapshot import Snapshot
from progressor.engine.history import History, bounds
from progressor.model import Direction, Event, Process, Range

OVERHEAD = 600
"""Bytes that an entry takes beyond its events and its state; a rough figure."""
UNREAD = 100
"""Changes after which a process that nobody has read since is not worth following: to read it again costs less. More
with a long history, a tenth of its events."""
METADATA_WEIGHT = 4
"""Bytes in memory for each character of metadata; a rough figure."""


@dataclass(slots=True)
class Change:
    """What one transaction did to one process."""

    columns: dict[str, Any] = field(default_factory=dict)
    """Fields of Process; what is left out is as it was."""
    appended: list[Event] = field(default_factory=list)
    replaced: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Fields of events that were changed in place, by their ids."""
    ends: bool = False
    """The process is removed, made anew, or changed in a way that cannot be followed."""


class Entry:
    """Frozen, but for `used`: when it was looked at last, written without a lock."""

    __slots__ = ("_count", "_history", "_process", "_unread", "_used_before", "_weight", "base", "size", "used")

    def __init__(
        self, process: Process, weight: int, history: History, count: int, base: Snapshot, used: float
    ) -> None:
        self._process = process
        self._weight = weight
        self._history = history
        self._count = count
        self.base = base
        """The reading that this began with: transactions in it are not applied again."""
        self.used = self._used_before = used
        self._unread = 0
        self.size = OVERHEAD + weight + history.size

    @classmethod
    def read(cls, process: Process, base: Snapshot, now: float) -> Self | None:
        """Of a process with its whole history; None when its events are not 1, 2, 3 ... and places tell no ids."""
        events = process.history
        if len(events) != process.last_event_id or (events and events[0].event_id != 1):
            return None
        return cls(replace(process, history=()), _weight(process), History(events), len(events), base, now)

    @property
    def last_event_id(self) -> int:
        return self._count

    @property
    def is_worth_following(self) -> bool:
        """Whether somebody has read it lately, counted in changes."""
        return self._unread <= UNREAD + self._count // 10

    def process(self, range: Range) -> Process:
        """What a reading of this range would have answered."""
        found = self._process
        return Process(
            found.process_id,
            found.status,
            found.detail,
            found.aux_state,
            found.metadata,
            self._events(range),
            self._count,
            range,
            found.created_at,
            found.previous_status,
            found.status_changed_at,
            found.corrupted_by,
        )

    def after(self, change: Change) -> Entry | None:
        """The next state; None when there is none that is known. Asked once of each entry, in the order of the WAL."""
        appended = sorted(change.appended, key=_event_id) if len(change.appended) > 1 else change.appended
        last = self._count
        for event in appended:
            last += 1
            if event.event_id != last:
                return None
        if change.ends:
            return None
        history, process, weight = self._history, self._process, self._weight
        history.extend(appended)
        if change.replaced:
            history = _changed(history, change.replaced)
        if change.columns:
            process = replace(process, **change.columns)
            weight = _weight(process)
        following = Entry(process, weight, history, last, self.base, self.used)
        following._unread = self._unread + 1 if self.used == self._used_before else 1
        return following

    def _events(self, range: Range) -> Sequence[Event]:
        start, stop = bounds(range, self._count)
        found = self._history.events[start:stop]
        if range.direction == Direction.BACKWARD:
            found.reverse()
        return found


def _event_id(event: Event) -> int:
    return event.event_id or 0


def _changed(history: History, changes: Mapping[int, Mapping[str, Any]]) -> History:
    """A copy in which these events are other ones."""
    changed = History()
    changed.events, changed.size = history.events.copy(), history.size
    for event_id, fields in changes.items():
        before = changed.events[event_id - 1]
        after = changed.events[event_id - 1] = replace(before, **fields)
        changed.size += len(after.payload) - len(before.payload)
    return changed


def _weight(process: Process) -> int:
    metadata = METADATA_WEIGHT * len(str(process.metadata)) if process.metadata else 0
    return len(process.aux_state or b"") + len(process.detail or "") + metadata
