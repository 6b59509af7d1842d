"""`msgpack.Value` of the machinegun protocol, as the bytes that Progressor stores, and back (docs/thrift.md, "Values").

The external form of a Value is the Erlang term `{Tag, Data}`: `{bin, <<1,2,3>>}`, `{nl, {mg_msgpack_Nil}}`, and so on.
In the dialect `plain` a `bin` is stored as its bytes, unless they could be taken for such a term; in `hellgate`
everything is stored as a term, as nodes of the Erlang original do. What is read may be of either dialect.
"""

from __future__ import annotations

import math
from typing import Any

import erlang
from erlang import OtpErlangAtom, OtpErlangBinary, OtpErlangList

from progressor import terms
from progressor.config import Dialect
from progressor.rpc import codec  # noqa: F401 - makes a Value hashable
from progressor.rpc.gen.msgpack.ttypes import Nil, Value
from progressor.rpc.gen.state_processing.ttypes import Content

_INT64 = range(-(2**63), 2**63)


class NotAValue(Exception):
    """The term is none of a Value."""


def store(value: Value, dialect: Dialect = Dialect.PLAIN) -> bytes:
    """The bytes to be stored for a Value. Raises ValueError when it has none."""
    if dialect is Dialect.PLAIN and value.bin is not None and _value(terms.decode(value.bin)) is None:
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
    return _value(terms.decode(stored)) or Value(bin=stored)


def load_content(stored: bytes | None) -> Content:
    """As `load`; also the Content record in which hellgate keeps its state."""
    match None if stored is None else terms.decode(stored):
        case (OtpErlangAtom() as tag, None | int() as version, term) if terms.name(tag) == "mg_stateproc_Content":
            data = _value(term)
            if data is not None:
                return Content(format_version=version, data=data)
    return Content(data=load(stored))


def _value(term: Any) -> Value | None:
    try:
        return _from_term(term)
    except (NotAValue, RecursionError):
        return None


def _from_term(term: Any) -> Value:  # noqa: C901 - one line for each member
    match term:
        case (OtpErlangAtom() as atom, data):
            tag = terms.name(atom)
        case _:
            raise NotAValue
    match tag, data:
        case "nl", (OtpErlangAtom() as nil,) if terms.name(nil) == "mg_msgpack_Nil":
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
