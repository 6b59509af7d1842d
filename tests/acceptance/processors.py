"""Processors that a test can stop in the middle of a step, or tell what to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from threading import Event as Signal
from typing import Any

from progressor import Event, Intent, ModernizeRequest, ProcessorError, Remove, SetTimer, StepRequest, now, seconds
from progressor.rpc import values


def gated(request: StepRequest, options: Mapping[str, Any], context: bytes) -> Intent:
    """Leaves an event. Where there is a pipe `gate PROCESS` in the directory, waits until somebody has opened and
    closed its other end."""
    directory = Path(options["directory"])
    gate = directory / f"gate {request.process.process_id}"
    if gate.exists():
        (directory / f"began {request.process.process_id}").touch()
        gate.read_bytes()
    return Intent(events=[Event(b"done")])


def talk(request: StepRequest, options: Mapping[str, Any], context: bytes) -> Intent:
    """Does what its arguments say, or without any the state; what is no JSON becomes an event and the response."""
    try:
        told = json.loads(request.args or request.process.aux_state or b"")
    except ValueError:
        return Intent([Event(request.args)], response=request.args)
    if "fail" in told:
        raise ProcessorError(told["fail"])
    if "hang" in told:
        Path(told["hang"]).touch()
        Signal().wait()
    response = context if "context" in told else None
    if "echo" in told:
        response = ",".join(str(event.event_id) for event in request.process.history).encode()
    return Intent(
        [Event(b"event" * told.get("size", 1), {"format_version": 1}) for _ in range(told.get("events", 0))],
        aux_state=told["aux"].encode() if "aux" in told else None,
        response=response,
        action=_action(told),
    )


def _action(told: Mapping[str, Any]) -> SetTimer | Remove | None:
    if "timer" in told:
        return SetTimer(now() + seconds(told["timer"]), remove="remove" in told)
    return Remove() if "remove" in told else None


def versioned(request: StepRequest, options: Mapping[str, Any], context: bytes) -> Intent:
    """Leaves the events that it is told: pairs of payload and metadata."""
    told = json.loads(values.load(request.args).bin)
    return Intent([Event(payload.encode(), metadata) for payload, metadata in told])


def newer(request: ModernizeRequest, options: Mapping[str, Any], context: bytes) -> Event:
    """A modernizer in Python."""
    if request.event.payload == b"defect":
        raise ValueError("no idea")
    return Event(request.event.payload.upper(), {**request.event.metadata, "format_version": 2})
