"""`msgpack.Value` of the machinegun protocol, as the bytes that Progressor stores, and back (docs/thrift.md, "Values").

The external form of a Value is the Erlang term `{Tag, Data}`: `{bin, <<1,2,3>>}`, `{nl, {mg_msgpack_Nil}}`, and so on.
In the dialect `plain` a `bin` is stored as its bytes, unless they could be taken for such a term; in `hellgate`
everything is stored as a term, as nodes of the Erlang original do. What is read may be of either dialect.
"""

from __future__ import annotations

import math
import zlib
from enum import StrEnum
from typing import Any

import erlang
from erlang import OtpErlangAtom, OtpErlangBinary, OtpErlangList

from progressor.rpc import codec  # noqa: F401 - makes a Value hashable
from progressor.rpc.gen.msgpack.ttypes import Nil, Value
from progressor.rpc.gen.state_processing.ttypes import Content

MAX_INFLATED = 64 * 1024 * 1024
"""Bytes that a compressed term may have."""
_INT64 = range(-(2**63), 2**63)
_TUPLE = (b"\x83h\x02", b"\x83h\x03")
_COMPRESSED = b"\x83P"


class Dialect(StrEnum):
    PLAIN = "plain"
    HELLGATE = "hellgate"


class NotAValue(Exception):
    """The term is none of a Value."""


def store(value: Value, dialect: Dialect = Dialect.PLAIN) -> bytes:
    """The bytes to be stored for a Value. Raises ValueError when it has none."""
    if dialect is Dialect.PLAIN and value.bin is not None and not value.bin.startswith(b"\x83"):
        return bytes(value.bin)
    if dialect is Dialect.PLAIN and value.bin is not None and _value(value.bin) is None:
        return bytes(value.bin)
    encoded: bytes = erlang.term_to_binary(_to_term(value))
    return encoded


def store_content(content: Content, dialect: Dialect) -> bytes:
    """As `store`, for a state; in `hellgate`, or with a version, as the Content record of Erlang."""
    if dialect is Dialect.PLAIN and content.format_version is None:
        return store(content.data)
    record = OtpErlangAtom("mg_stateproc_Content"), content.format_version, _to_term(content.data)
    encoded: bytes = erlang.term_to_binary(record)
    return encoded


def load(stored: bytes | None) -> Value:
    """The Value that was stored: bytes that are no external form of one are a `bin`, nothing is `nl`."""
    if stored is None:
        return Value(nl=Nil())
    return _value(stored) or Value(bin=stored)


def load_content(stored: bytes | None) -> Content:
    """As `load`; also the Content record in which hellgate keeps its state."""
    if stored is not None:
        match _term(stored):
            case (OtpErlangAtom() as tag, version, data) if _name(tag) == "mg_stateproc_Content":
                if version is None or isinstance(version, int):
                    try:
                        return Content(format_version=version, data=_from_term(data))
                    except (NotAValue, RecursionError):
                        pass
    return Content(data=load(stored))


def _value(stored: bytes) -> Value | None:
    term = _term(stored)
    if not isinstance(term, tuple):
        return None
    try:
        return _from_term(term)
    except (NotAValue, RecursionError):
        return None


def _term(stored: bytes) -> Any:
    """The term, when the bytes look like a tuple of Erlang's external term format; else None."""
    if stored.startswith(_COMPRESSED):
        stored = _inflated(stored)
    if not (stored.startswith(_TUPLE) and _is_flat(stored)):
        return None
    try:
        return erlang.binary_to_term(stored)
    except Exception:  # whatever erlang_py makes of bytes that are no term, a struct.error as well as a TypeError
        return None


def _is_flat(stored: bytes) -> bool:
    """Whether there is one term of the kinds that a Value is made of: a compressed one inside would be inflated without
    a bound."""
    at, left = 1, 1
    while left and at < len(stored):
        tag, size = stored[at], int.from_bytes(stored[at + 1 : at + 5], "big")
        at, left = at + 1, left - 1
        match tag:
            case 97 | 98 | 70:  # numbers
                at += {97: 1, 98: 4, 70: 8}[tag]
            case 110:  # a big number: length, sign
                at += 2 + stored[at] if at < len(stored) else 1
            case 119 | 115:  # short atoms
                at += 1 + stored[at] if at < len(stored) else 1
            case 100 | 118 | 107:  # atoms, a list of small numbers
                at += 2 + (size >> 16)
            case 109:  # a binary
                at += 4 + size
            case 104:  # a tuple
                left += stored[at] if at < len(stored) else 1
                at += 1
            case 108 | 116:  # a list with its tail, a map
                left += size + 1 if tag == 108 else 2 * size
                at += 4
            case 106:  # the empty list
                pass
            case _:
                return False
    return left == 0 and at == len(stored)


def _inflated(stored: bytes) -> bytes:
    inflator = zlib.decompressobj()
    try:
        data = inflator.decompress(stored[6:], MAX_INFLATED)
    except zlib.error:
        return b""
    return b"\x83" + data if len(data) == int.from_bytes(stored[2:6], "big") else b""


def _from_term(term: Any) -> Value:  # noqa: C901 - one line for each member
    match term:
        case (OtpErlangAtom() as atom, data):
            tag = _name(atom)
        case _:
            raise NotAValue
    match tag, data:
        case "nl", (OtpErlangAtom() as nil,) if _name(nil) == "mg_msgpack_Nil":
            return Value(nl=Nil())
        case "b", bool():
            return Value(b=data)
        case "i", int() if not isinstance(data, bool) and data in _INT64:
            return Value(i=data)
        case "flt", float():
            return Value(flt=data)
        case "str", OtpErlangBinary() if data.bits == 8:
            try:
                return Value(str=data.value.decode())
            except UnicodeDecodeError:
                raise NotAValue from None
        case "bin", OtpErlangBinary() if data.bits == 8:
            return Value(bin=data.value)
        case "obj", dict():
            return Value(obj={_from_term(k): _from_term(v) for k, v in data.items()})
        case "arr", list():
            return Value(arr=[_from_term(item) for item in data])
        case "arr", OtpErlangList() if not data.improper:
            return Value(arr=[_from_term(item) for item in data.value])
    raise NotAValue


def _to_term(value: Value) -> tuple[Any, Any]:
    match value:
        case Value(nl=Nil()):
            return OtpErlangAtom("nl"), (OtpErlangAtom("mg_msgpack_Nil"),)
        case Value(b=bool() as flag):
            return OtpErlangAtom("b"), flag
        case Value(i=int() as number):
            return OtpErlangAtom("i"), number
        case Value(flt=float() as number) if math.isfinite(number):
            return OtpErlangAtom("flt"), number
        case Value(str=str() as text):
            return OtpErlangAtom("str"), OtpErlangBinary(text.encode())
        case Value(bin=bytes() as data):
            return OtpErlangAtom("bin"), OtpErlangBinary(data)
        case Value(obj=dict() as members) if not any(key.obj is not None or key.arr is not None for key in members):
            return OtpErlangAtom("obj"), {_to_term(k): _to_term(v) for k, v in members.items()}
        case Value(arr=list() as items):
            return OtpErlangAtom("arr"), OtpErlangList([_to_term(item) for item in items])
    raise ValueError("a Value needs one member, a finite number as `flt`, and keys of `obj` that hold no others")


def _name(atom: OtpErlangAtom) -> str:
    """Atoms of OTP 25 and older are Latin-1 bytes."""
    return atom.value.decode("latin-1") if isinstance(atom.value, bytes) else str(atom.value)
