"""Clients who do one operation after the other, and how long each takes.

They are threads, of the engine's process and with its own verbs, or of another one and with verbs over the network.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from time import perf_counter
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias

from bench.meter import Figures
from progressor import ProgressorError

logger = logging.getLogger(__name__)


class Verbs(Protocol):
    """What a client can do."""

    def init(self, *, ns: str, id: str, args: bytes = ...) -> bytes | None: ...
    def call(self, *, ns: str, id: str, args: bytes = ...) -> bytes | None: ...
    def get(self, *, ns: str, id: str, cache: bool = ...) -> Any: ...


Operation: TypeAlias = Callable[[Verbs, Random], object]
"""One operation of a client; each client has a source of random numbers of its own."""


class Load:
    """Runs the clients while its block runs; counts what ends within `recording`."""

    def __init__(self, verbs: Verbs, clients: int, operation: Operation) -> None:
        self._verbs = verbs
        self._operation = operation
        self._stopped = False
        self._recording = False
        self._seconds: list[list[float]] = [[] for _ in range(clients)]
        self._elapsed = 0.0
        self._failures: Counter[str] = Counter()
        self._threads = [
            threading.Thread(target=self._run, args=(number, seconds), name=f"client {number}", daemon=True)
            for number, seconds in enumerate(self._seconds)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped = True
        for thread in self._threads:
            thread.join()
        if self._failures:
            logger.warning("operations failed: %s", dict(self._failures))

    @contextmanager
    def recording(self) -> Iterator[None]:
        started = perf_counter()
        self._recording = True
        try:
            yield
        finally:
            self._recording = False
            self._elapsed = perf_counter() - started

    @property
    def operations(self) -> int:
        return sum(map(len, self._seconds))

    @property
    def per_second(self) -> float:
        return self.operations / self._elapsed

    @property
    def latencies(self) -> Sequence[float]:
        """Seconds."""
        return [each for seconds in self._seconds for each in seconds]

    def figures(self) -> Figures:
        failed = {"failed operations": float(self._failures.total())} if self._failures else {}
        return {**latency_figures(self.latencies), **failed}

    def _run(self, number: int, seconds: list[float]) -> None:
        random = Random(number)
        while not self._stopped:
            started = perf_counter()
            try:
                self._operation(self._verbs, random)
            except ProgressorError as error:
                self._failures[type(error).__name__] += 1
            else:
                if self._recording:
                    seconds.append(perf_counter() - started)


def latency_figures(seconds: Sequence[float]) -> Figures:
    """Milliseconds: the median, the 99th percentile, the longest."""
    if not seconds:
        return {}
    ordered = sorted(seconds)
    return {
        "p50": 1000 * percentile(ordered, 50),
        "p99": 1000 * percentile(ordered, 99),
        "max": 1000 * ordered[-1],
    }


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest value that at least so many percent do not exceed."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
