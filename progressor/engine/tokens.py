"""Numbers that name runs and requests."""

from __future__ import annotations

import itertools
import secrets


class Tokens:
    """Unique among all nodes, for all practical purposes: they count from a random 62-bit number. Thread-safe."""

    def __init__(self) -> None:
        self._numbers = itertools.count(secrets.randbits(62))

    def next(self) -> int:
        return next(self._numbers)
