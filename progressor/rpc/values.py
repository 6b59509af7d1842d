"""`msgpack.Value` of the machinegun protocol, as the bytes that Progressor stores, and back (docs/thrift.md, "Values").

The external form of a Value is the Erlang term `{Tag, Data}`: `{bin, <<1,2,3>>}`, `{nl, {mg_msgpack_Nil}}`, and so on.
In the dialect `plain` a `bin` is stored as its bytes, unless they could be taken for such a term; in `hellgate`
everything is stored as a term, as nodes of the Erlang original do. What is read may be of either dialect.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any, TypeVar

import erlang
from erlang import OtpErlangAtom, OtpErlangBinary, OtpErlangList

from progressor import terms
from progressor.config import Dialect
from progressor.rpc import codec  # noqa: F401 - makes a Value hashable
from progressor.rpc.gen.msgpack.ttypes import Nil, Value
from progressor.rpc.gen.state_processing.ttypes import Content

T = TypeVar("T")
MAX_COMPRESSED = 300_000
"""Values that a compressed term may hold: a few kilobytes become millions of them."""
_INT64 = range(-(2**63), 2**63)
_DOUBLE = struct.Struct(">d")
_PAIR = b"h\2"
"""What each Value begins with."""
_NUMBERS = (b"a", b"b", b"n")
_ATOMS = {b"w": 1, b"s": 1, b"v": 2, b"d": 2}
"""The tags of atoms, UTF-8 and Latin-1, with the width of their length."""
_RECORD = b"mg_stateproc_Content"


def _heads(beginning: bytes, *names: bytes) -> tuple[bytes, ...]:
    """All that a term may begin with whose first element is one of these atoms."""
    return tuple(
        terms.VERSION + beginning + tag + len(name).to_bytes(width, "big") + name
        for name in names
        for tag, width in _ATOMS.items()
    )


_VALUE = _heads(_PAIR, b"nl", b"b", b"i", b"flt", b"str", b"bin", b"obj", b"arr")
_CONTENT = _heads(b"h\3", _RECORD)


class NotAValue(Exception):
    """The term is none of a Value."""


def store(value: Value, dialect: Dialect = Dialect.PLAIN) -> bytes:
    """The bytes to be stored for a Value. Raises ValueError when it has none."""
    # A `bin` that is not read back as a Value after all is stored as a term for nothing, which `load` does not mind.
    if dialect is Dialect.PLAIN and value.bin is not None and not terms.head(value.bin).startswith(_VALUE + _CONTENT):
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
    return _read(stored, _VALUE, _Reader.value) or Value(bin=stored)


def load_content(stored: bytes | None) -> Content:
    """As `load`; also the Content record in which hellgate keeps its state."""
    found = None if stored is None else _read(stored, _CONTENT, _Reader.content)
    return Content(data=load(stored)) if found is None else found


def _read(stored: bytes, heads: tuple[bytes, ...], read: Callable[[_Reader], T]) -> T | None:
    if not terms.head(stored).startswith(heads):
        return None
    term = terms.inflated(stored)
    if terms.is_compressed(stored) and term.count(_PAIR) > MAX_COMPRESSED:
        return None
    reader = _Reader(term)
    try:
        found = read(reader)
    except (NotAValue, UnicodeDecodeError, RecursionError):
        return None
    return found if reader.is_at_end else None


class _Reader:
    """Reads a term from left to right, and makes nothing of it but Values: what is none is refused where it begins, so
    that bytes of whatever kind become no more objects than Thrift makes of as many. Each method raises NotAValue."""

    def __init__(self, term: bytes) -> None:
        self._term = term
        self._at = len(terms.VERSION)

    @property
    def is_at_end(self) -> bool:
        return self._at == len(self._term)

    def content(self) -> Content:
        self._expect(b"h\3")
        self._expect_atom(_RECORD)
        version = None
        if self._next in _NUMBERS:
            version = self._number()
        else:
            self._expect_atom(b"undefined")
        return Content(format_version=version, data=self.value())

    def value(self) -> Value:
        self._expect(_PAIR)
        match self._atom():
            case b"nl":
                self._expect(b"h\1")
                self._expect_atom(b"mg_msgpack_Nil")
                return Value(nl=Nil())
            case b"b":
                return Value(b=self._flag())
            case b"i":
                return Value(i=self._number())
            case b"flt":
                return Value(flt=self._float())
            case b"str":
                return Value(str=self._binary().decode())
            case b"bin":
                return Value(bin=self._binary())
            case b"obj":
                self._expect(b"t")
                return Value(obj={self._key(): self.value() for _ in range(self._length(4))})
            case b"arr":
                return Value(arr=self._items())
        raise NotAValue

    def _key(self) -> Value:
        key = self.value()
        if key.obj is not None or key.arr is not None:
            raise NotAValue
        return key

    def _items(self) -> list[Value]:
        if self._next == b"j":
            self._expect(b"j")
            return []
        self._expect(b"l")
        items = [self.value() for _ in range(self._length(4))]
        self._expect(b"j")
        return items

    def _flag(self) -> bool:
        name = self._atom()
        if name not in (b"true", b"false"):
            raise NotAValue
        return name == b"true"

    def _number(self) -> int:
        match self._take(1):
            case b"a":
                return self._length(1)
            case b"b":
                return int.from_bytes(self._take(4), "big", signed=True)
            case b"n":
                size, sign = self._take(2)
                magnitude = int.from_bytes(self._take(size), "little")
                number = -magnitude if sign == 1 else magnitude
                if number in _INT64:
                    return number
        raise NotAValue

    def _float(self) -> float:
        self._expect(b"F")
        (number,) = _DOUBLE.unpack(self._take(_DOUBLE.size))
        if not math.isfinite(number):
            raise NotAValue
        return float(number)

    def _binary(self) -> bytes:
        self._expect(b"m")
        return self._take(self._length(4))

    def _atom(self) -> bytes:
        width = _ATOMS.get(self._take(1))
        if width is None:
            raise NotAValue
        return self._take(self._length(width))

    def _expect_atom(self, name: bytes) -> None:
        if self._atom() != name:
            raise NotAValue

    def _expect(self, data: bytes) -> None:
        if self._take(len(data)) != data:
            raise NotAValue

    def _length(self, width: int) -> int:
        return int.from_bytes(self._take(width), "big")

    def _take(self, size: int) -> bytes:
        part = self._term[self._at : self._at + size]
        if len(part) != size:
            raise NotAValue
        self._at += size
        return part

    @property
    def _next(self) -> bytes:
        return self._term[self._at : self._at + 1]


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
        case Value(obj=dict() as members):
            return OtpErlangAtom("obj"), {_to_term(k): _to_term(v) for k, v in members.items()}
        case Value(arr=list() as items):
            return OtpErlangAtom("arr"), OtpErlangList([_to_term(item) for item in items])
    raise ValueError("a Value needs one member, and a finite number as `flt`")
