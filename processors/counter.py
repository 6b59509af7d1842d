"""Counts: the smallest processor with a state and a timer."""

from collections.abc import Mapping
from typing import Any

from progressor import Event, Intent, ProcessorError, SetTimer, StepRequest, TaskType, now, seconds


class Counter:
    """The aux_state is the count. Each step adds the number in its args, by default 1, and answers the sum.

    An init begins at 0 and a repair goes on where the count was, unless they are given a number. Option `tick`
    (seconds): a timer that adds 1 again and again.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._tick: float | None = options.get("tick")

    def process(self, request: StepRequest, options: Mapping[str, Any], context: bytes) -> Intent:
        before = int(request.process.aux_state or b"0")
        step = _number(request.args, default=0 if request.task_type in (TaskType.INIT, TaskType.REPAIR) else 1)
        count = str(before + step).encode()
        return Intent(
            events=[Event(payload=count, metadata={"format_version": 1})],
            aux_state=count,
            response=count,
            action=None if self._tick is None else SetTimer(now() + seconds(self._tick)),
        )


def _number(args: bytes, default: int) -> int:
    try:
        return int(args) if args else default
    except ValueError:
        raise ProcessorError(f"not a number: {args.decode(errors='replace')}") from None
