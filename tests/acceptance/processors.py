"""A processor that a test can stop in the middle of a step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from progressor import Event, Intent, StepRequest


def gated(request: StepRequest, options: Mapping[str, Any], context: bytes) -> Intent:
    """Leaves an event. Where there is a pipe `gate PROCESS` in the directory, waits until somebody has opened and
    closed its other end."""
    directory = Path(options["directory"])
    gate = directory / f"gate {request.process.process_id}"
    if gate.exists():
        (directory / f"began {request.process.process_id}").touch()
        gate.read_bytes()
    return Intent(events=[Event(b"done")])
