"""A `get` under way: one look at the process after the other, until it is as its reader wants it.

A look needs a thread for a moment. Between two of them a reader may have to wait long, for an init above all: how, is
for whoever reads. The pauses grow with the time that has passed, so that many readers do not keep the database busy;
an init that ends on this node ends a pause too.
"""

from __future__ import annotations

from concurrent.futures import Future
from time import monotonic

from progressor.engine.directory import Directory, Role
from progressor.engine.messages import AwaitInit
from progressor.engine.ports import Cache, Storage
from progressor.errors import ProcessNotFound, RequestTimeout, StorageUnavailable
from progressor.model import Process, ProcessStatus, Range

SHORTEST_PAUSE = 0.25
PART = 0.25
"""How long a pause is, of what has passed before."""


class Reader:
    def __init__(
        self,
        ns: str,
        process_id: str,
        range: Range,
        least: int,
        storage: Storage,
        cache: Cache | None,
        directory: Directory,
        seconds: float,
    ) -> None:
        """Of a process whose init has ended and that has event `least`, within so many seconds. The memory of the cache
        was asked for it, unless there is an event to wait for."""
        self._ns = ns
        self._process_id = process_id
        self._range = range
        self._least = least
        self._storage = storage
        self._cache = cache
        self._directory = directory
        self._began = monotonic()
        self._deadline = self._began + seconds
        self._memory = cache if least else None
        self._listens = False
        self._missing = "the process was not read"
        self.news: Future[None] = Future()
        """Done when another look is worth it. To be cancelled when there will be none."""

    def look(self) -> Process | None:
        """The process; None: not yet, there may be more to see after a pause.

        Raises ProcessNotFound, RequestTimeout, StorageUnavailable.
        """
        found = self._look_in_memory() or self._read()
        if found.status == ProcessStatus.INIT:
            self._missing = "the init of the process has not ended"
            return None if self._hears() else self.look()  # it may have ended before anybody listened
        if found.last_event_id < self._least:
            self._missing = f"the process has no event {self._least}"
            return None
        return found

    @property
    def left(self) -> float:
        """Seconds that it may still take."""
        return max(0.0, self._deadline - monotonic())

    def late(self) -> RequestTimeout:
        """The error when they are over: says what was missing last."""
        return RequestTimeout(f"timeout: {self._missing}")

    @property
    def pause(self) -> float:
        """Seconds to the next look, when there are no news before."""
        now = monotonic()
        return max(0.0, min(max(SHORTEST_PAUSE, PART * (now - self._began)), self._deadline - now))

    def _look_in_memory(self) -> Process | None:
        """Once, at the beginning: what is not there as it is wanted, is read."""
        cache, self._memory = self._memory, None
        return None if cache is None else remembered(cache, self._process_id, self._range, self._least)

    def _read(self) -> Process:
        left = self._deadline - monotonic()
        if left <= 0:
            raise self.late()
        try:
            if self._cache is None:
                found = self._storage.get(self._ns, self._process_id, self._range, left)
            else:
                found = self._cache.read(self._process_id, self._range, left)
        except StorageUnavailable as error:
            if self.left:
                raise
            raise self.late() from error
        if found is None:
            raise ProcessNotFound
        return found

    def _hears(self) -> bool:
        """Whether the end of the init is waited for already; from now on it is."""
        if self._listens and not self.news.done():
            return True
        if self.news.done():
            self.news = Future()
        self._listens = True
        self._directory.cast(Role.SCHEDULER, self._ns, AwaitInit(self._process_id, self.news))
        return False


def remembered(cache: Cache, process_id: str, range: Range, least: int) -> Process | None:
    """The process from memory, if its init has ended; waits a moment for event `least`."""
    found = cache.look(process_id, range, least)
    return None if found is None or found.status == ProcessStatus.INIT else found
