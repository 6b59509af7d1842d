"""What a reading of the database contains, told exactly for each transaction of the stream.

The order of commits in the WAL is not the order in which they become visible: a transaction may have been streamed that
a reading does not see yet, and a reading sees transactions that are still on their way. PostgreSQL's snapshot says
which: those below `xmax` that were not `running`.

A stream names transactions by 32 bits, a snapshot by 64. They are compared only up to `lsn`, the end of the WAL just
after the snapshot was taken: what is committed behind it is not contained. So both belong to the same moment, and
the number that is meant is the one nearest to `xmax`.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import NamedTuple, Self

_XIDS = 2**32


class Mark(NamedTuple):
    """A transaction of the stream: where its commit is in the WAL, and its 32-bit xid."""

    lsn: int
    xid: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    xmax: int
    running: AbstractSet[int]
    lsn: int

    @classmethod
    def parse(cls, text: str, lsn: int) -> Self:
        """Of a pg_snapshot, `xmin:xmax:xid,xid...`, and the end of the WAL after it was taken."""
        _, xmax, running = text.split(":")
        return cls(int(xmax), frozenset(map(int, filter(None, running.split(",")))), lsn)

    def contains(self, mark: Mark) -> bool:
        if mark.lsn >= self.lsn:
            return False
        behind = (self.xmax - mark.xid) % _XIDS
        xid = self.xmax - (behind if behind < _XIDS // 2 else behind - _XIDS)
        return xid < self.xmax and xid not in self.running

    def is_newer(self, other: Snapshot) -> bool:
        """Of two snapshots of one server: with time `xmax` grows, and at the same `xmax` transactions only end."""
        return (self.xmax, -len(self.running)) > (other.xmax, -len(other.running))
