"""What the processes of the benchmark do; everything that matters is in their arguments.

The payload is random, as in the benchmark of the original: it does not compress. It is not os.urandom's, which gives
the GIL away at each call.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from progressor import Event, Intent, SetTimer, StepRequest, TaskType, UnsetTimer, now, seconds

PAYLOAD_BYTES = 64
GO, REST, STOP = b"go", b"rest", b"stop"


def event() -> Event:
    return Event(random.randbytes(PAYLOAD_BYTES))


class Plain:
    """One event a step."""

    def process(self, request: StepRequest, options: Mapping[str, Any], context: bytes) -> Intent:
        return Intent(events=[event()], response=b"ok")


class Loop:
    """One event a step and a timer due now, until it is told to stop; told to rest, it leaves the timer as it is."""

    def process(self, request: StepRequest, options: Mapping[str, Any], context: bytes) -> Intent:
        match request.args:
            case b"rest":
                return Intent(events=[event()], response=b"ok")
            case b"stop":
                return Intent(response=b"ok", action=UnsetTimer())
        return Intent(events=[event()], response=b"ok", action=SetTimer(now()))


class Pace:
    """One event about every second. With one exactly each second, processes that were late together would stay
    together, and a load that is meant to be even would come in ever larger lumps."""

    def process(self, request: StepRequest, options: Mapping[str, Any], context: bytes) -> Intent:
        pause = random.uniform(0.0 if request.task_type is TaskType.INIT else 0.5, 1.5)
        return Intent(events=[event()], response=b"ok", action=SetTimer(now() + seconds(pause)))
