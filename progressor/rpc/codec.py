"""Thrift's binary protocol, strict, one message or struct at a time.

The generated code takes what it gets: unions with no member or two, structs without required fields, numbers that are
no member of an enum. Here all of that is an error, as it is for the Erlang codec.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, TypeVar

from thrift.protocol.TBinaryProtocol import TBinaryProtocol, TBinaryProtocolAccelerated
from thrift.protocol.TProtocol import TProtocolException
from thrift.Thrift import TMessageType
from thrift.transport.TTransport import TMemoryBuffer

from progressor.rpc.gen.base import ttypes as base
from progressor.rpc.gen.event_sink import ttypes as event_sink
from progressor.rpc.gen.lifecycle_sink import ttypes as lifecycle_sink
from progressor.rpc.gen.msgpack import ttypes as msgpack
from progressor.rpc.gen.state_processing import ttypes as state_processing

T = TypeVar("T")
VERSION = 0x80010000
LARGEST = 2**31 - 1
"""Bytes of a message, and of a string in it: lengths have 32 bits with a sign."""
BEGINNING = 8
"""Bytes that tell how long the head of a message is."""
REPLACEMENT = "\ufffd"
_PLAIN = frozenset((bytes, int, float, bool, type(None)))
_UNIONS = frozenset((
    base.Timer,
    msgpack.Value,
    event_sink.SinkEvent,
    lifecycle_sink.LifecycleEventData,
    lifecycle_sink.MachineLifecycleEvent,
    state_processing.MachineStatus,
    state_processing.Reference,
    state_processing.Signal,
    state_processing.TimerAction,
))  # fmt: skip
_ENUMS: dict[type, tuple[str, Any]] = {
    state_processing.HistoryRange: ("direction", state_processing.Direction),
    base.TimestampIntervalBound: ("bound_type", base.BoundType),
}


class DecodeError(Exception):
    """The bytes are not what they should be; the text says why."""


class NotStrict(DecodeError):
    """The message does not begin as the strict binary protocol does."""


def encode(value: Any) -> bytes:
    """A bare struct. Raises ValueError when it is incomplete."""
    return _write(value.write, value)


def encode_message(name: str, kind: int, seqid: int, value: Any) -> bytes:
    """Raises ValueError when the struct is incomplete, OverflowError when a number or a string of it has no room."""

    def write(protocol: Any) -> None:
        protocol.writeMessageBegin(name, kind, seqid)
        value.write(protocol)
        protocol.writeMessageEnd()

    return _write(write, value)


def decode(cls: type[T], data: bytes) -> T:
    """A bare struct, and nothing behind it."""
    value: Any = cls()
    transport = TMemoryBuffer(data)
    try:
        value.read(TBinaryProtocolAccelerated(transport, fallback=False, string_length_limit=None))
        if check(value):
            cls().read(TBinaryProtocol(TMemoryBuffer(data), string_length_limit=None))  # type: ignore[attr-defined]  # refuses bad UTF-8
    except DecodeError:
        raise
    except RecursionError:
        raise DecodeError("too deep") from None
    except Exception as error:  # the C code raises many kinds: EOFError, TypeError, OverflowError, TProtocolException
        raise DecodeError(f"{type(error).__name__}: {error}") from error
    if transport.cstringio_buf.read(1):
        raise DecodeError("trailing bytes")
    found: T = value
    return found


def head_size(data: bytes) -> int:
    """How many bytes of a message stand before its struct, by the first `BEGINNING` of them. Raises DecodeError."""
    if len(data) < 4:
        raise DecodeError("no message")
    (head,) = struct.unpack_from(">I", data)
    if not head & 0x80000000:
        raise NotStrict("no binary protocol version")
    if head & 0xFFFF0000 != VERSION:
        raise NotStrict(f"bad binary protocol version: {(head >> 16) & 0x7FFF}")
    try:
        (length,) = struct.unpack_from(">i", data, 4)
    except struct.error as error:
        raise DecodeError(f"no message: {error}") from error
    if length < 0:
        raise DecodeError("no message: negative length of its name")
    return 12 + int(length)


def message_head(data: bytes) -> tuple[str, int, int, bytes]:
    """Name, kind and sequence number of a message, and the bytes of its struct. Raises DecodeError."""
    size = head_size(data)
    try:
        name = data[BEGINNING : size - 4].decode()
        (seqid,) = struct.unpack_from(">i", data, size - 4)
    except (struct.error, UnicodeDecodeError) as error:
        raise DecodeError(f"no message: {error}") from error
    return name, data[3], seqid, data[size:]


def check(value: Any) -> bool:
    """Whether a text has a replacement character, which the C code puts in the place of bytes that are no UTF-8 too.

    Raises DecodeError when a required field, or the one member of a union, is missing.
    """
    kind = type(value)  # compared by itself: this runs for every field of every message
    if kind in _PLAIN:
        return False
    if kind is str:
        return REPLACEMENT in value
    if isinstance(value, list):
        return _check_all(value)
    if isinstance(value, dict):
        return _check_all([*value, *value.values()])
    return hasattr(value, "thrift_spec") and _check_struct(value)


def _check_struct(value: Any) -> bool:
    members, kind = vars(value), type(value)
    name = kind.__name__
    if kind in _UNIONS and sum(member is not None for member in members.values()) != 1:
        raise DecodeError(f"{name} needs exactly one member")
    try:
        value.validate()
    except TProtocolException as error:
        raise DecodeError(f"{name}: {error.message}") from error
    if kind in _ENUMS:
        field, enum = _ENUMS[kind]
        member = members[field]
        if member is not None and member not in enum._VALUES_TO_NAMES:  # noqa: SLF001
            raise DecodeError(f"{name}.{field}: no member of {enum.__name__}: {member!r}")
    return _check_all(members.values())


def _check_all(values: Iterable[Any]) -> bool:
    return sum(map(check, values)) > 0  # `any` would not look at all of them


def _write(write: Any, value: Any) -> bytes:
    try:
        check(value)
    except DecodeError as error:
        raise ValueError(str(error)) from error
    transport = TMemoryBuffer()
    write(TBinaryProtocolAccelerated(transport, fallback=False))
    data: bytes = transport.getvalue()
    return data


def _hash(value: Any) -> int:
    """A Value may be a key of another one, and the generated class has no hash.

    That of a number is no secret, so that a map could be made all of whose keys have one; that of a text is. For the
    same reason a key holds no other Values, as in what is stored. Raises TypeError.
    """
    if value.obj is not None or value.arr is not None:
        raise TypeError("a key of an obj holds an obj or an arr")
    return hash((value.b, repr(value.i), value.flt and repr(value.flt), value.str, value.bin))  # 0.0 equals -0.0


msgpack.Value.__hash__ = _hash  # type: ignore[assignment,method-assign]

CALL, REPLY, EXCEPTION, ONEWAY = TMessageType.CALL, TMessageType.REPLY, TMessageType.EXCEPTION, TMessageType.ONEWAY
