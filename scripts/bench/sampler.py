"""Where the time of this process goes: CPU by the role of its threads, and what they are doing when one looks.

CPU is read from the clocks of the threads, and exact. What they are doing is sampled every few milliseconds, and a
guess: the sampler cannot see who holds the GIL, so a thread that runs, one that waits for the GIL and one that waits
inside a call of C look the same. It makes threads give the GIL away sooner than usual, else it would find each of them
where it did so by itself; that changes the figures of a profiled run. Samples of threads that plainly wait for
work are left out, but in the last tables, which show the two threads that everything goes through.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType, TracebackType
from typing import Self

INTERVAL = 0.005
SWITCH_INTERVAL = 0.0001
SHOWN = 12
SINGLE = ("writer", "scheduler")
OURS = ("progressor", "bench")
WAITS = {
    "threading:Condition.wait",
    "psycopg.connection:Connection.wait",
    "progressor.otp.actor:Actor.__receive",
    "concurrent.futures.thread:_worker",
}


class Sampler:
    """Samples while its block runs."""

    def __init__(self, backends: Counter[str]) -> None:
        """`backends`: microseconds that the server's processes have used so far."""
        self._backends = backends
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._roles = {thread.ident or 0: _role(thread) for thread in _others()}
        self._busy: Counter[str] = Counter()
        self._all: Mapping[str, Counter[str]] = {role: Counter() for role in SINGLE}

    def __enter__(self) -> Self:
        self._clocks = _clocks()
        self._switch_interval = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_INTERVAL)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()
        sys.setswitchinterval(self._switch_interval)
        clocks = _clocks()
        clocks.subtract(self._clocks)
        self._clocks = clocks

    def report(self, backends: Counter[str]) -> Sequence[str]:
        """`backends` as before, now."""
        backends.subtract(self._backends)
        return [
            *_shares("CPU by role of the thread", self._clocks),
            *_shares("CPU of PostgreSQL by process", backends),
            *_shares("samples of threads that are at work", self._busy),
            *(line for role in SINGLE for line in _shares(f"all samples of the {role}", self._all[role])),
        ]

    def _run(self) -> None:
        while not self._stopped.wait(INTERVAL):
            for ident, frame in sys._current_frames().items():  # noqa: SLF001 - the documented way to the stacks
                role = self._roles.get(ident)
                if role is not None:
                    self._look(role, frame)

    def _look(self, role: str, frame: FrameType) -> None:
        leaf = _place(frame)
        if leaf not in WAITS:
            self._busy[f"{role}: {_ours(frame, leaf)}"] += 1
        if role in self._all:
            self._all[role][_ours(frame, leaf)] += 1


def _others() -> Sequence[threading.Thread]:
    """All but the one that measures, and waits."""
    return [thread for thread in threading.enumerate() if thread is not threading.main_thread()]


def _clocks() -> Counter[str]:
    """Microseconds of CPU that the threads have used, by role.

    The number of a thread's clock is made of its kernel id as clock_getcpuclockid(3) does it: unlike the way over
    pthread_getcpuclockid this is safe when the thread has just ended.
    """
    found: Counter[str] = Counter()
    for thread in _others():
        try:
            found[_role(thread)] += round(1e6 * time.clock_gettime((~(thread.native_id or 0) << 3) | 6))
        except OSError:
            continue
    return found


def _role(thread: threading.Thread) -> str:
    return re.sub(r"[ _-]?\d+$", "", thread.name)


def _ours(frame: FrameType, leaf: str) -> str:
    """The innermost function of ours, and where it is now."""
    inner: FrameType | None = frame
    while inner is not None and inner.f_globals.get("__name__", "").partition(".")[0] not in OURS:
        inner = inner.f_back
    return leaf if inner is None or inner is frame else f"{_place(inner)} > {leaf}"


def _place(frame: FrameType) -> str:
    return f"{frame.f_globals.get('__name__', '?')}:{frame.f_code.co_qualname}"


def _shares(title: str, used: Counter[str]) -> Iterator[str]:
    total = used.total() or 1
    yield f"{title}:"
    for name, amount in used.most_common(SHOWN):
        if amount > 0:
            yield f"  {100 * amount / total:5.1f} %  {name}"
