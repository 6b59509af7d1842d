"""Where the CPU time of this process goes: by the role of its threads, and by function.

Every few milliseconds each thread's own CPU clock is read, and what it has used since the last look is booked on the
function where it is now. Threads that wait cost nothing, those that wait for the GIL neither. How much a role uses is
exact. The functions are a guess: the sampler needs the GIL itself, so it finds the others where they gave it up, which
favours what does I/O or takes locks.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

INTERVAL = 0.01
SHOWN = 12
_OURS = ("progressor", "bench")


class Sampler:
    """Samples while its block runs."""

    def __init__(self, backends: Counter[str]) -> None:
        """`backends`: what the server's processes have used so far."""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._clocks: dict[int, float] = {}
        self._roles: Counter[str] = Counter()
        self._functions: Counter[str] = Counter()
        self._inclusive: Counter[str] = Counter()
        self._backends = backends

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def report(self, backends: Counter[str]) -> Sequence[str]:
        backends.subtract(self._backends)
        return [
            *_shares("CPU by role of the thread", self._roles),
            *_shares("by function (its own time; a guess, see sampler.py)", self._functions),
            *_shares("by function of Progressor (with what it calls)", self._inclusive),
            *_shares("PostgreSQL, by process", backends),
        ]

    def _run(self) -> None:
        self._sample(book=False)
        while not self._stopped.wait(INTERVAL):
            self._sample(book=True)

    def _sample(self, *, book: bool) -> None:
        frames = sys._current_frames()  # noqa: SLF001 - the documented way to other threads' stacks
        for thread in threading.enumerate():
            used = self._used(thread)
            frame = frames.get(thread.ident or 0)
            if book and used > 0 and frame is not None:
                self._book(thread.name, frame, used)

    def _used(self, thread: threading.Thread) -> float:
        """Seconds since the last look."""
        if thread.native_id is None:
            return 0.0
        try:
            # The clock of a thread, by its kernel id: clock_getcpuclockid(3) makes the same number. Unlike
            # pthread_getcpuclockid it is safe when the thread has just ended.
            now = time.clock_gettime((~thread.native_id << 3) | 6)
        except OSError:
            return 0.0
        before = self._clocks.get(thread.native_id, now)
        self._clocks[thread.native_id] = now
        return now - before

    def _book(self, name: str, frame: FrameType, used: float) -> None:
        role = re.sub(r"[ _-]?\d+$", "", name)
        microseconds = round(used * 1e6)
        self._roles[role] += microseconds
        self._functions[f"{role}: {_place(frame)}"] += microseconds
        for place in {_place(each) for each in _stack(frame) if _module(each).partition(".")[0] in _OURS}:
            self._inclusive[f"{role}: {place}"] += microseconds


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _module(frame: FrameType) -> str:
    name: str = frame.f_globals.get("__name__", "?")
    return name


def _place(frame: FrameType) -> str:
    code = frame.f_code
    module = _module(frame)
    where = Path(code.co_filename).name if module == "__main__" else module
    return f"{where}:{code.co_qualname}"


def _shares(title: str, used: Counter[str]) -> Iterator[str]:
    total = used.total() or 1
    yield f"{title}:"
    for name, amount in used.most_common(SHOWN):
        if amount > 0:
            yield f"  {100 * amount / total:5.1f} %  {name}"
