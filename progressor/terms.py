"""Erlang's external term format, where `erlang_py` needs help: bytes that are no term, bombs, two kinds of atoms."""

from __future__ import annotations

import struct
import zlib
from typing import Any, TypeAlias

import erlang
from erlang import OtpErlangAtom

MAX_INFLATED = 64 * 1024 * 1024
"""Bytes that a compressed term may have."""
HEAD_SIZE = 64
MAX_TAGS = 10_000
"""Numbers, atoms, binaries and so on that `decode` takes, many times those of a context. Keys of a map are hashed as
tuples of numbers are, so that whoever wants to finds many with one hash."""
VERSION, _COMPRESSED = b"\x83", b"\x83P"
"""What a term begins with, and one that is compressed."""
Plain: TypeAlias = "str | int | list[Plain] | dict[str, Plain]"
_head = struct.Struct(">BI").pack
_NIL = b"j"

# What follows a tag (Erlang's "External Term Format").
_NUMBERS = {97: 1, 98: 4, 70: 8, 106: 0}
"""Small and large integers, floats, the empty list: how many bytes."""
_BYTES = {110: (1, 1), 115: (1, 0), 119: (1, 0), 100: (2, 0), 107: (2, 0), 118: (2, 0), 109: (4, 0)}
"""Big integers with their sign, atoms, lists of small integers, binaries: the width of the length, bytes beyond it."""
_TERMS = {104: (1, 1, 0), 108: (4, 1, 1), 116: (4, 2, 0)}
"""Tuples, lists with their tail, maps: the width of the count, terms for each, and terms beyond them."""


def decode(stored: bytes) -> Any:
    """The term of numbers, atoms, binaries, tuples, lists and maps; None when the bytes are none of these, or too many.

    A term may be compressed as a whole; one inside of another would be inflated without a bound.
    """
    stored = inflated(stored)
    if not (stored.startswith(VERSION) and _is_one_term(stored)):
        return None
    try:
        return erlang.binary_to_term(stored)
    except Exception:  # whatever erlang_py makes of bytes that are no term, a struct.error as well as a TypeError
        return None


def is_compressed(stored: bytes) -> bool:
    return stored.startswith(_COMPRESSED)


def size(stored: bytes) -> int:
    """How many bytes there are to decode: a compressed term says what it has."""
    return max(len(stored), int.from_bytes(stored[2:6], "big")) if is_compressed(stored) else len(stored)


def head(stored: bytes) -> bytes:
    """The first bytes of what may be a term, not compressed; empty when nothing can be inflated."""
    return _inflate(stored, HEAD_SIZE) if is_compressed(stored) else stored[:HEAD_SIZE]


def inflated(stored: bytes) -> bytes:
    """A compressed term as one that is not; empty when it is broken or too large. Other bytes as they are."""
    if not is_compressed(stored):
        return stored
    term = _inflate(stored, MAX_INFLATED)
    return term if len(term) == int.from_bytes(stored[2:6], "big") + 1 else b""


def encode(term: Plain) -> bytes:
    """The term; texts are binaries of their Latin-1, as in the headers of HTTP, numbers are 0 to 255.

    A third of the time of erlang_py, once in each request.
    """
    return VERSION + _encoded(term)


def name(atom: OtpErlangAtom) -> str:
    """The text of an atom. Those of OTP 25 and older are Latin-1 bytes."""
    return atom.value.decode("latin-1") if isinstance(atom.value, bytes) else str(atom.value)


def _encoded(term: Plain) -> bytes:
    if isinstance(term, str):
        text = term.encode("latin-1")
        return _head(109, len(text)) + text
    if isinstance(term, int):
        return bytes((97, term))
    if isinstance(term, list):
        return _head(108, len(term)) + b"".join(map(_encoded, term)) + _NIL if term else _NIL
    return _head(116, len(term)) + b"".join([_encoded(part) for pair in term.items() for part in pair])


def _is_one_term(stored: bytes) -> bool:
    """Whether all tags are of the kinds of `decode`, and not too many, and the bytes end where the term does."""
    at, left = 1, 1
    for _ in range(MAX_TAGS):
        if not left or at >= len(stored):
            break
        tag, at, left = stored[at], at + 1, left - 1
        if tag in _NUMBERS:
            at += _NUMBERS[tag]
        elif tag in _BYTES:
            width, more = _BYTES[tag]
            at += width + more + int.from_bytes(stored[at : at + width], "big")
        elif tag in _TERMS:
            width, each, more = _TERMS[tag]
            left += each * int.from_bytes(stored[at : at + width], "big") + more
            at += width
        else:
            return False
    return left == 0 and at == len(stored)


def _inflate(stored: bytes, most: int) -> bytes:
    try:
        return VERSION + zlib.decompressobj().decompress(memoryview(stored)[6:], most)
    except zlib.error:
        return b""
