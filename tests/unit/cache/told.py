"""What was streamed of a process, as a test knows it."""

from __future__ import annotations

from dataclasses import dataclass, field

from progressor.cache.entry import Change


@dataclass(frozen=True)
class Told:
    """See `progressor.cache.entry.Streamed`."""

    told: Change = field(default_factory=Change)
    size: int = 0
    ends: bool = False

    def change(self) -> Change:
        return self.told
