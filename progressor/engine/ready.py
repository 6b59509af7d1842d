"""The ready queue of a namespace, and the workers that wait for it.

Workers take tasks themselves: a message for each task would wake a thread for each, and most steps are shorter
than that. One worker is woken at a time, and wakes the next one if it finds more to do: while steps are short one
thread does them all, and when a step blocks the next worker is there at once.

The queue is fair: what becomes ready goes behind what is ready already.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import Lock
from time import monotonic

from progressor.engine.ports import Claimed
from progressor.otp import Ref


@dataclass(frozen=True, slots=True)
class Work:
    """Take tasks until there are none."""


class ReadyQueue:
    """Thread-safe. Hands out nothing while `may_run` says no."""

    def __init__(self, may_run: Callable[[], bool]) -> None:
        self._may_run = may_run
        self._lock = Lock()
        self._tasks: deque[tuple[float, Claimed]] = deque()
        self._idle: list[Ref] = []
        self._waking = False

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def idle_workers(self) -> int:
        return len(self._idle)

    @property
    def oldest_age(self) -> float:
        """Seconds that the first task has been waiting."""
        with self._lock:
            return monotonic() - self._tasks[0][0] if self._tasks else 0.0

    def put(self, claimed: Claimed) -> None:
        """Wakes nobody: call `wake` after the last one."""
        self._tasks.append((monotonic(), claimed))

    def take(self, worker: Ref, *, woken: bool) -> Claimed | None:
        """The next task; None when there is none, and then `worker` is idle until it gets `Work`."""
        with self._lock:
            if woken:
                self._waking = False
            if not (self._tasks and self._may_run()):
                self._idle.append(worker)
                return None
            _, claimed = self._tasks.popleft()
            self._wake()
            return claimed

    def wake(self) -> None:
        """Sees to it that somebody is at work, if there is some."""
        with self._lock:
            self._wake()

    def nudge(self) -> None:
        """As `wake`, also when the worker that was woken last has died of it."""
        with self._lock:
            self._waking = False
            self._wake()

    def take_all(self) -> Iterable[Claimed]:
        """Empties the queue."""
        with self._lock:
            tasks = [claimed for _, claimed in self._tasks]
            self._tasks.clear()
            return tasks

    def forget_workers(self) -> None:
        """A new pool begins."""
        with self._lock:
            self._idle.clear()
            self._waking = False

    def _wake(self) -> None:
        while self._tasks and self._idle and not self._waking and self._may_run():
            self._waking = self._idle.pop().cast(Work())
