"""What a Kafka message says: a SinkEvent or a LifecycleEvent of the machinegun protocol (docs/notifications.md)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from progressor.engine.ports import Message, Notice
from progressor.representation import format_version
from progressor.rpc import codec, values
from progressor.rpc.gen.event_sink.ttypes import MachineEvent, SinkEvent
from progressor.rpc.gen.lifecycle_sink.ttypes import (
    LifecycleEvent,
    LifecycleEventData,
    MachineLifecycleCreatedEvent,
    MachineLifecycleEvent,
    MachineLifecycleRemovedEvent,
    MachineLifecycleStatusChangedEvent,
)
from progressor.rpc.gen.state_processing.ttypes import MachineStatus, MachineStatusFailed, MachineStatusWorking


class Unencodable(Exception):
    """The message can never be sent; the text says why."""


def key(ns: str, process_id: str) -> bytes:
    return f"{ns} {process_id}".encode()


def encode(ns: str, message: Message) -> bytes:
    """The bare struct in Thrift's strict binary protocol. Raises Unencodable."""
    try:
        return codec.encode(_event(ns, message) if message.notice is Notice.EVENT else _lifecycle(ns, message))
    except Exception as error:  # Thrift's C code raises many kinds: OverflowError, RecursionError, TProtocolException
        raise Unencodable(f"{type(error).__name__}: {error}") from error


def show_time(at: datetime) -> str:
    """RFC 3339 in UTC, as machinegun's own sink: six digits behind the second, three, or none, without losing any."""
    text = at.astimezone(UTC).isoformat().removesuffix("+00:00")
    return (text.removesuffix("000") if "." in text else text) + "Z"


def _event(ns: str, message: Message) -> SinkEvent:
    event = MachineEvent(
        source_ns=ns,
        source_id=message.process_id,
        event_id=message.event_id,
        created_at=show_time(message.at),
        format_version=format_version(message.metadata or {}),
        data=None if message.payload is None else values.load(message.payload),
    )
    return SinkEvent(event)


def _lifecycle(ns: str, message: Message) -> LifecycleEvent:
    data = LifecycleEventData(machine=MachineLifecycleEvent(**_turn(message)))
    return LifecycleEvent(ns, message.process_id, show_time(message.at), data)


def _turn(message: Message) -> dict[str, Any]:
    """The one member of the union."""
    match message.notice:
        case Notice.CREATED:
            return {"created": MachineLifecycleCreatedEvent()}
        case Notice.REMOVED:
            return {"removed": MachineLifecycleRemovedEvent()}
        case Notice.WORKING:
            status = MachineStatus(working=MachineStatusWorking())
        case _:
            status = MachineStatus(failed=MachineStatusFailed(message.reason))
    return {"status_changed": MachineLifecycleStatusChangedEvent(status)}
