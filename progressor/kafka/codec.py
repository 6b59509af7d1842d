"""What a Kafka message says: a SinkEvent or a LifecycleEvent of the machinegun protocol (docs/notifications.md).

Events are written by hand: the generated code with its checks takes four times as long, which is half of all that the
publisher does with a message. The tests hold them against the generated code.
"""

from __future__ import annotations

from datetime import datetime
from struct import Struct
from typing import Any

from progressor import rfc3339, terms
from progressor.engine.ports import Message, Notice
from progressor.representation import format_version
from progressor.rpc import codec, values
from progressor.rpc.gen.lifecycle_sink.ttypes import (
    LifecycleEvent,
    LifecycleEventData,
    MachineLifecycleCreatedEvent,
    MachineLifecycleEvent,
    MachineLifecycleRemovedEvent,
    MachineLifecycleStatusChangedEvent,
)
from progressor.rpc.gen.state_processing.ttypes import MachineStatus, MachineStatusFailed, MachineStatusWorking

_LENGTH, _I32, _I64 = Struct(">I").pack, Struct(">i").pack, Struct(">q").pack
_EVENT = b"\x0c\0\1"
_NS, _ID, _EVENT_ID, _CREATED_AT = b"\x0b\0\1", b"\x0b\0\2", b"\x0a\0\3", b"\x0b\0\4"
_VERSION, _DATA, _BIN = b"\x08\0\5", b"\x0c\0\6", b"\x0b\0\6"
_STOP, _END = b"\0", b"\0\0"


class Unencodable(Exception):
    """The message can never be sent; the text says why."""


def key(ns: str, process_id: str) -> bytes:
    return f"{ns} {process_id}".encode()


def encode(ns: str, message: Message) -> bytes:
    """The bare struct in Thrift's strict binary protocol. Raises Unencodable."""
    try:
        return _event(ns, message) if message.notice is Notice.EVENT else _lifecycle(ns, message)
    except Exception as error:  # of struct, of Thrift's C code, which raises many kinds: RecursionError, TypeError
        raise Unencodable(f"{type(error).__name__}: {error}") from error


def show_time(at: datetime) -> str:
    """RFC 3339 in UTC, as machinegun's own sink: six digits behind the second, three, or none, without losing any."""
    whole_milliseconds = at.microsecond and at.microsecond % 1000 == 0
    return rfc3339.show(at, "milliseconds" if whole_milliseconds else "auto")


def _event(ns: str, message: Message) -> bytes:
    """A SinkEvent. Strings are preceded by their length, fields by type and number; a 0 ends a struct."""
    if message.payload is None:
        raise ValueError("an event has a payload")
    version = format_version(message.metadata or {})
    return b"".join((
        _EVENT, _NS, _string(ns), _ID, _string(message.process_id), _EVENT_ID, _I64(message.event_id),
        _CREATED_AT, _string(show_time(message.at)), b"" if version is None else _VERSION + _I32(version),
        _DATA, _value(message.payload), _END,
    ))  # fmt: skip


def _string(text: str) -> bytes:
    data = text.encode()
    return _LENGTH(len(data)) + data


def _value(payload: bytes) -> bytes:
    """The Value that the payload is the external term of, else the payload as a `bin`."""
    if payload.startswith(terms.VERSION):
        return codec.encode(values.load(payload))
    return b"".join((_BIN, _LENGTH(len(payload)), payload, _STOP))


def _lifecycle(ns: str, message: Message) -> bytes:
    data = LifecycleEventData(machine=MachineLifecycleEvent(**_turn(message)))
    return codec.encode(LifecycleEvent(ns, message.process_id, show_time(message.at), data))


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
