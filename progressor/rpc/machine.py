"""Processes as the machines of the machinegun protocol, and back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from progressor import rfc3339
from progressor.config import Dialect
from progressor.model import Direction, Event, Process, ProcessStatus, Range
from progressor.representation import format_version, with_version
from progressor.rpc import values
from progressor.rpc.gen.state_processing import ttypes as mg


def machine(ns: str, process: Process, timer: datetime | None) -> mg.Machine:
    failed = process.status == ProcessStatus.ERROR
    return mg.Machine(
        ns=ns,
        id=process.process_id,
        history=[event(each) for each in process.history],
        history_range=from_range(process.range),
        status=mg.MachineStatus(failed=mg.MachineStatusFailed(reason=process.detail))
        if failed
        else mg.MachineStatus(working=mg.MachineStatusWorking()),
        aux_state=values.load_content(process.aux_state),
        timer=None if timer is None else rfc3339.show(timer),
    )


def process(machine: mg.Machine) -> Process:
    """What a processor in Python is shown of a machine. Its last event id is that of the slice."""
    failed = machine.status is not None and machine.status.failed is not None
    state = machine.aux_state
    history = [
        Event(
            values.store(event.data),
            with_version({}, event.format_version),
            event.id,
            rfc3339.read(event.created_at),
        )
        for event in machine.history
    ]
    return Process(
        machine.id,
        ProcessStatus.ERROR if failed else ProcessStatus.RUNNING,
        machine.status.failed.reason if failed else None,
        aux_state=None if state is None or state.data.nl is not None else values.store_content(state, Dialect.PLAIN),
        history=history,
        last_event_id=max((event.id for event in machine.history), default=0),
        range=to_range(machine.history_range),
    )


def to_range(range_: mg.HistoryRange) -> Range:
    backward = range_.direction == mg.Direction.backward
    return Range(range_.after, range_.limit, Direction.BACKWARD if backward else Direction.FORWARD)


def from_range(range_: Range) -> mg.HistoryRange:
    backward = range_.direction == Direction.BACKWARD
    return mg.HistoryRange(range_.offset, range_.limit, mg.Direction.backward if backward else mg.Direction.forward)


def events(bodies: Sequence[mg.Content], dialect: Dialect) -> list[Event]:
    """What a step of a remote processor adds."""
    return [Event(values.store(body.data, dialect), with_version({}, body.format_version)) for body in bodies]


def event(event: Event) -> mg.Event:
    return mg.Event(
        id=event.event_id,
        created_at=None if event.timestamp is None else rfc3339.show(event.timestamp),
        format_version=format_version(event.metadata),
        data=values.load(event.payload),
    )
