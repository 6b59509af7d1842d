"""One thread with a heap of things to do later.

Invariants:

- Nothing is done early. Callbacks run one after another on the timer's thread, so they must be short: a cast.
- Adding and cancelling are cheap (10,000 pairs a second are usual): a cancelled entry stays in the heap until
  it is due or more than half of the heap is cancelled; only an entry earlier than all others
  wakes the thread.
- A callback that raises is logged and forgotten.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import random
import threading
from collections.abc import Callable
from functools import partial
from time import monotonic

from progressor.otp.ref import Ref

logger = logging.getLogger(__name__)

COMPACT_FROM = 64  # below this size dropping cancelled entries is not worth the bother


class TimerHandle:
    """One thing to do later."""

    __slots__ = ("_timer", "callback", "pause")

    def __init__(self, timer: Timer, callback: Callable[[], object], pause: Callable[[], float] | None) -> None:
        self._timer = timer
        self.callback: Callable[[], object] | None = callback  # None: done or cancelled
        self.pause = pause  # seconds to the next time; None: once

    def cancel(self) -> bool:
        """Whether this kept it from being done (for periodic ones: done again)."""
        return self._timer.cancel(self)


class Timer:
    """`after`, `send_after` and `every` may be called in any thread, also in callbacks."""

    def __init__(self, name: str = "timer") -> None:
        self._heap: list[tuple[float, int, TimerHandle]] = []
        self._cancelled = 0
        self._closed = False
        self._numbers = itertools.count()  # equal instants are done in the order of adding
        self._changed = threading.Condition(threading.Lock())
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """How many are waiting."""
        with self._changed:
            return len(self._heap) - self._cancelled

    def after(self, delay: float, callback: Callable[[], object]) -> TimerHandle:
        """Call `callback` in `delay` seconds, on the timer's thread."""
        return self._add(delay, TimerHandle(self, callback, None))

    def send_after(self, delay: float, ref: Ref, message: object) -> TimerHandle:
        """Cast `message` to `ref` in `delay` seconds."""
        return self._add(delay, TimerHandle(self, partial(ref.cast, message), None))

    def every(self, interval: float, ref: Ref, message: object, jitter: float = 0.0) -> TimerHandle:
        """Cast `message` every `interval` seconds until cancelled or `ref` is dead; first in one interval.

        `jitter` is the part of the interval, 0 to 1, by which each pause may be longer or shorter.
        """

        def pause() -> float:
            return interval * (1 + random.uniform(-jitter, jitter))  # noqa: S311 - no secret

        return self._add(pause(), TimerHandle(self, partial(ref.cast, message), pause))

    def cancel(self, handle: TimerHandle) -> bool:
        """See `TimerHandle.cancel`."""
        with self._changed:
            if handle.callback is None:
                return False
            handle.callback = None
            self._cancelled += 1
            if self._cancelled * 2 > len(self._heap) >= COMPACT_FROM:
                self._compact()
            return True

    def close(self) -> None:
        """Do nothing more; waits for the callback that runs. Adding afterwards raises RuntimeError."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _add(self, delay: float, handle: TimerHandle) -> TimerHandle:
        with self._changed:
            if self._closed:
                raise RuntimeError("the timer is closed")
            self._push(delay, handle)
        return handle

    def _push(self, delay: float, handle: TimerHandle) -> None:
        heapq.heappush(self._heap, (monotonic() + delay, next(self._numbers), handle))
        if self._heap[0][2] is handle:
            self._changed.notify()

    def _compact(self) -> None:
        self._heap = [entry for entry in self._heap if entry[2].callback is not None]
        heapq.heapify(self._heap)
        self._cancelled = 0

    def _run(self) -> None:
        while (due := self._next()) is not None:
            self._fire(*due)

    def _next(self) -> tuple[TimerHandle, Callable[[], object]] | None:
        """Wait for the next thing to do; None when closed."""
        with self._changed:
            while not self._closed:
                wait = self._heap[0][0] - monotonic() if self._heap else threading.TIMEOUT_MAX
                if wait > 0:
                    self._changed.wait(min(wait, threading.TIMEOUT_MAX))
                    continue
                handle = heapq.heappop(self._heap)[2]
                callback = self._take(handle)
                if callback is not None:
                    return handle, callback
            return None

    def _take(self, handle: TimerHandle) -> Callable[[], object] | None:
        callback = handle.callback
        if callback is None:
            self._cancelled -= 1
        elif handle.pause is None:
            handle.callback = None
        else:  # at once, so that a handle not yet done is always in the heap
            self._push(handle.pause(), handle)
        return callback

    def _fire(self, handle: TimerHandle, callback: Callable[[], object]) -> None:
        try:
            result = callback()
        except Exception:
            logger.exception("a timer's callback failed")
            return
        if handle.pause is not None and result is False:  # the receiver is dead
            handle.cancel()
