"""The caches that one database feeds, and how its stream is doing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from progressor.cache.cache import Cache
from progressor.cache.snapshot import Snapshot


@dataclass(slots=True, eq=False)
class Feed:
    """Written by Replication and by the keeper, each its own part; read by everybody."""

    caches: Mapping[str, Cache]
    """By namespace."""
    connected: bool = False
    problem: str | None = "not connected yet"
    """Why it is not connected."""
    reconnects: int = 0
    position: int = 0
    """Up to where in the WAL the caches are."""
    delay: float = math.nan
    """Seconds from the commit of the last transaction, by the server's clock, until it was in the caches."""
    behind: int = 0
    """Bytes of WAL that were written but not received, when the keeper looked last."""
    broken: str | None = None
    """Why the keeper does not trust the stream."""

    @property
    def health(self) -> Mapping[str, Any]:
        """Details that JSON can carry."""
        delay = round(self.delay, 3) if math.isfinite(self.delay) else None
        return {
            "connected": self.connected,
            "problem": self.problem,
            "reconnects": self.reconnects,
            "lag_bytes": self.behind,
            "lag_seconds": delay,
        }

    def connect(self, barrier: Snapshot) -> None:
        for cache in self.caches.values():
            cache.connect(barrier)
        self.connected, self.problem, self.broken = True, None, None

    def disconnect(self, problem: str) -> None:
        self.connected, self.problem = False, problem
        for cache in self.caches.values():
            cache.disconnect()
