"""Processes as the machines of the machinegun protocol."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from progressor.model import Direction, Event, Metadata, Process, ProcessStatus, Range
from progressor.rpc import values
from progressor.rpc.gen.state_processing import ttypes as mg

VERSION_KEYS = ("format_version", "format")
"""Where an event's metadata may say the version of its representation: hellgate's key and machinery's."""


def machine(ns: str, process: Process, timer: datetime | None, range_: mg.HistoryRange) -> mg.Machine:
    failed = process.status == ProcessStatus.ERROR
    return mg.Machine(
        ns=ns,
        id=process.process_id,
        history=[_event(event) for event in process.history],
        history_range=range_,
        status=mg.MachineStatus(failed=mg.MachineStatusFailed(reason=process.detail))
        if failed
        else mg.MachineStatus(working=mg.MachineStatusWorking()),
        aux_state=values.load_content(process.aux_state),
        timer=None if timer is None else timestamp(timer),
    )


def to_range(range_: mg.HistoryRange) -> Range:
    backward = range_.direction == mg.Direction.backward
    return Range(range_.after, range_.limit, Direction.BACKWARD if backward else Direction.FORWARD)


def timestamp(at: datetime) -> str:
    """RFC 3339 in UTC with microseconds."""
    return at.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def format_version(metadata: Metadata) -> int | None:
    for key in VERSION_KEYS:
        version: Any = metadata.get(key)
        if isinstance(version, int) and not isinstance(version, bool) and -(2**31) <= version < 2**31:
            return version
    return None


def _event(event: Event) -> mg.Event:
    return mg.Event(
        id=event.event_id,
        created_at=None if event.timestamp is None else timestamp(event.timestamp),
        format_version=format_version(event.metadata),
        data=values.load(event.payload),
    )
