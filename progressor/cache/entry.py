"""A process in memory: one committed state of it, with its whole history, and what was streamed since.

Readers take an entry without a lock, so the state of an entry never changes; the next one is another entry, which
shares the list of events and counts more of them. A new event costs the same at event 50,000 as at event 5. What is
streamed is kept as it came until somebody reads the process: few of its states are ever looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

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


class Streamed(Protocol):
    """What one transaction did to one process, as it came."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def ends(self) -> bool:
        """Whether the process is removed, made anew, or changed in a way that cannot be followed."""

    def change(self) -> Change:
        """Of what does not end it."""


class Entry:
    """Frozen, but for `used` (when it was looked at last, written without a lock), and `pending` with the `size`."""

    __slots__ = ("_count", "_history", "_process", "_weight", "base", "pending", "size", "used")

    def __init__(
        self, process: Process, weight: int, history: History, count: int, base: Snapshot, used: float
    ) -> None:
        self._process = process
        self._weight = weight
        self._history = history
        self._count = count
        self.base = base
        """The reading that this began with: transactions in it are not applied again."""
        self.used = used
        self.pending: list[Streamed] = []
        """What came after this state, in the order of the WAL."""
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
        return len(self.pending) <= UNREAD + self._count // 10

    def add(self, streamed: Streamed, size: int) -> None:
        self.pending.append(streamed)
        self.size += size

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

    def after(self, changes: Iterable[Change]) -> Entry | None:
        """The state behind these; None when it is not known. Asked once of each entry."""
        history, process, weight, last = self._history, self._process, self._weight, self._count
        for change in changes:
            appended = sorted(change.appended, key=_event_id) if len(change.appended) > 1 else change.appended
            for event in appended:
                last += 1
                if event.event_id != last:
                    return None
            history.extend(appended)
            if change.replaced:
                history = _changed(history, change.replaced)
            if change.columns:
                process = replace(process, **change.columns)
                weight = _weight(process)
        return Entry(process, weight, history, last, self.base, self.used)

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
