"""Who waits for which task on this node."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

from progressor.engine.ports import Refused
from progressor.errors import ProcessNotFound
from progressor.model import Answered, Op

OUTCOME_UNKNOWN = "timeout: the node stops or restarts, the outcome is unknown"


def answer(future: Future[Answered], result: Answered | Refused) -> None:
    """Resolves a future, unless its caller has given up."""
    try:
        if isinstance(result, Answered):
            future.set_result(result)
        else:
            future.set_exception(result.error)
    except InvalidStateError:
        pass


def wake(future: Future[None]) -> None:
    """Ends a pause, unless nobody waits any more."""
    with suppress(InvalidStateError):
        future.set_result(None)


class Callers:
    """Futures by the task they wait for."""

    def __init__(self) -> None:
        self._waiting: defaultdict[int, list[tuple[Op, Future[Answered]]]] = defaultdict(list)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, task_id: int, op: Op, future: Future[Answered]) -> None:
        self._waiting[task_id].append((op, future))

    def answer(self, task_id: int, result: Answered | Refused) -> None:
        for op, future in self._waiting.pop(task_id, ()):
            answer(future, _as_seen_by(op, result))

    def fail_all(self, error: Exception) -> None:
        for task_id in list(self._waiting):
            self.answer(task_id, Refused(error))

    def open_tasks(self) -> Collection[int]:
        """The tasks that somebody still waits for; forgets those whose callers have all given up."""
        for task_id, callers in list(self._waiting.items()):
            if all(future.done() for _, future in callers):
                del self._waiting[task_id]
        return self._waiting.keys()


def _as_seen_by(op: Op, result: Answered | Refused) -> Answered | Refused:
    """Who asked for the removal of a process is not disappointed that it is gone."""
    if op is Op.REMOVE and isinstance(result, Refused) and isinstance(result.error, ProcessNotFound):
        return Answered(None)
    return result
