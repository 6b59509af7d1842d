"""What `tasks.response` holds: the Erlang external term of `{ok, Binary}` or `{error, Reason}`, as in the original.

A step without a response gives `{ok, ok}`. Reasons of the original may be any term; those that are not
binaries are shown as Erlang would print them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable
from typing import Any

import erlang
from erlang import OtpErlangAtom, OtpErlangBinary, OtpErlangList, OtpErlangPid

from progressor import terms
from progressor.engine.ports import Refused
from progressor.errors import ClientError, ProcessInError, ProcessorError, ProcessRunning
from progressor.model import Answered, TaskStatus

_OK_BINARY = b"\x83h\x02w\x02okm"
OK = b"\x83h\x02w\x02okw\x02ok"
_CLIENT_ERRORS: dict[str, type[ClientError]] = {e.text: e for e in (ProcessInError, ProcessRunning)}

# Erlang's reference manual, "Atom" and "Reserved Words"; io_lib:write_string
_PLAIN_ATOM = re.compile(r"[a-zß-öø-ÿ][a-zA-Z0-9_@À-ÖØ-öø-ÿ]*")
_RESERVED = frozenset((
    "after", "and", "andalso", "band", "begin", "bnot", "bor", "bsl", "bsr", "bxor", "case", "catch", "cond", "div",
    "end", "fun", "if", "let", "maybe", "not", "of", "or", "orelse", "receive", "rem", "try", "when", "xor",
))  # fmt: skip
_ESCAPES = dict(zip("\n\r\t\v\b\f\x1b\\", (r"\n", r"\r", r"\t", r"\v", r"\b", r"\f", r"\e", r"\\"), strict=True))


def encode(answer: Answered | Refused) -> bytes:
    match answer:
        case Answered(None):
            return OK
        case Answered(response) if response is not None:
            return _OK_BINARY + struct.pack(">I", len(response)) + response
        case Refused(error):
            return error_term(str(error))
    raise AssertionError(answer)


def error_term(reason: str) -> bytes:
    term: bytes = erlang.term_to_binary((OtpErlangAtom("error"), OtpErlangBinary(reason.encode(errors="replace"))))
    return term


def decode(status: str, response: bytes | None, task_id: int) -> Answered | Refused | None:
    """What the caller of a task is told; None while the task has not ended."""
    if status not in (TaskStatus.FINISHED, TaskStatus.ERROR, TaskStatus.CANCELLED):
        return None
    if response is None and status == TaskStatus.FINISHED:
        return Answered(None, task_id)
    if response is None:  # a zombie of the original, or a cancelled timer
        return Refused(ProcessorError("zombie detected" if status == TaskStatus.ERROR else str(status)))
    if response.startswith(_OK_BINARY):
        return Answered(response[len(_OK_BINARY) + 4 :], task_id)
    tag, value = erlang.binary_to_term(response)
    if _name(tag) == "ok":
        return Answered(None if _name(value) == "ok" else _bytes(value), task_id)
    reason = show(value)
    error = _CLIENT_ERRORS.get(reason, ProcessorError) if status == TaskStatus.CANCELLED else ProcessorError
    return Refused(error(reason))


def show(term: Any) -> str:
    """A reason as text: a binary as it is, any other term as Erlang prints it."""
    return term.value.decode(errors="replace") if isinstance(term, OtpErlangBinary) else _print(term)


def _print(term: Any) -> str:
    """As `io_lib:format("~0tp", [Term])` does; references, ports and functions by their kind only."""
    if type(term) in _PRINTERS:
        return _PRINTERS[type(term)](term)
    return f"#{type(term).__name__.removeprefix('OtpErlang')}<>"


def _join(terms: Iterable[Any]) -> str:
    return ",".join(map(_print, terms))


def _print_binary(term: OtpErlangBinary) -> str:
    try:
        text = _quote(term.value.decode(), '"')
    except UnicodeDecodeError:
        text = None
    if text is None or not term.value:
        return f"<<{_join(term.value)}>>"
    return f"<<{text}>>" if term.value.isascii() else f"<<{text}/utf8>>"


def _print_atom(term: OtpErlangAtom) -> str:
    name = _name(term) or ""
    return name if _PLAIN_ATOM.fullmatch(name) and name not in _RESERVED else _quote(name, "'") or repr(name)


def _print_small_integers(term: bytes) -> str:
    """A list of the integers 0..255: text, mostly."""
    return _quote(term.decode("latin-1"), '"') or f"[{_join(term)}]"


def _print_list(term: OtpErlangList) -> str:
    return f"[{_join(term.value[:-1])}|{_print(term.value[-1])}]" if term.improper else f"[{_join(term.value)}]"


def _print_map(term: dict[Any, Any]) -> str:
    return "#{" + ",".join(f"{_print(k)} => {_print(v)}" for k, v in term.items()) + "}"


def _print_pid(term: OtpErlangPid) -> str:
    return f"<0.{int.from_bytes(term.id, 'big')}.{int.from_bytes(term.serial, 'big')}>"


_PRINTERS: dict[type, Callable[[Any], str]] = {
    OtpErlangBinary: _print_binary,
    OtpErlangAtom: _print_atom,
    OtpErlangList: _print_list,
    OtpErlangPid: _print_pid,
    bytes: _print_small_integers,
    list: lambda term: f"[{_join(term)}]",
    tuple: lambda term: f"{{{_join(term)}}}",
    dict: _print_map,
    int: str,
    float: str,
    bool: lambda term: str(term).lower(),
    type(None): lambda _: "undefined",
}


def _quote(text: str, quote: str) -> str | None:
    """Between quotes, as in Erlang's source; None when there are characters that do not print."""
    if not all(c.isprintable() or c in _ESCAPES for c in text):
        return None
    return quote + "".join(f"\\{c}" if c == quote else _ESCAPES.get(c, c) for c in text) + quote


def _name(term: Any) -> str | None:
    return terms.name(term) if isinstance(term, OtpErlangAtom) else None


def _bytes(term: Any) -> bytes:
    """The bytes of a binary; of any other term its external form."""
    if isinstance(term, OtpErlangBinary):
        return bytes(term.value)
    encoded: bytes = erlang.term_to_binary(term)
    return encoded
