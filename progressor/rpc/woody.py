"""Woody: Thrift's binary protocol over HTTP, with ids of the call, a deadline and errors in headers.

One POST carries one message. What goes wrong beyond the declared exceptions is an HTTP status with a class: the request
will never succeed (`UNEXPECTED`), was certainly not executed (`UNAVAILABLE`), or may have been (`UNKNOWN`).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from erlang import OtpErlangBinary

from progressor import rfc3339, terms
from progressor.model import now

CONTENT_TYPE = "application/x-thrift"
ERROR_CLASS, ERROR_REASON = "woody.error-class", "woody.error-reason"
UNEXPECTED, UNAVAILABLE, UNKNOWN = "Result Unexpected", "Resource Unavailable", "Result Unknown"
BUSINESS = "Business Error"
META = "woody.meta."
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FIELD = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
"""What the name and the value of a header may be (RFC 9110)."""
LONGEST_ID = 64
LONGEST_REASON = 1000
_IDS = ("woody.trace-id", "woody.span-id", "woody.parent-id")
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


class Failure(Exception):
    """A call without a result. `error_class` None: an answer that does not speak woody."""

    def __init__(self, status: int, error_class: str | None, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.error_class = error_class
        self.reason = reason

    @property
    def headers(self) -> dict[str, str]:
        if self.error_class is None:
            return {}
        reason = self.reason.encode("ascii", "backslashreplace").decode()
        return {
            ERROR_CLASS: self.error_class,
            ERROR_REASON: "".join(c if c.isprintable() else " " for c in reason)[:LONGEST_REASON].strip(),
        }


def unexpected(reason: str) -> Failure:
    return Failure(500, UNEXPECTED, reason)


def bad_request(reason: str) -> Failure:
    return Failure(400, UNEXPECTED, reason)


@dataclass(frozen=True, slots=True)
class Call:
    """Where a call comes from and how long it may take.

    Its texts are those of headers, a character for each byte: whoever sends UTF-8 is handed on UTF-8.
    """

    trace_id: str
    span_id: str
    parent_id: str
    deadline: datetime | None = None
    meta: Mapping[str, str] = field(default_factory=dict)
    traceparent: str | None = None

    @property
    def seconds_left(self) -> float | None:
        return None if self.deadline is None else (self.deadline - now()).total_seconds()

    def headers(self) -> dict[str, str]:
        """Of a call that is made because of this one: a span of its own in the same trace. What no header can carry is
        left out: a context may come from elsewhere."""
        headers = {"woody.trace-id": self.trace_id, "woody.span-id": new_id(), "woody.parent-id": self.span_id}
        meta = self.meta.items()
        headers |= {f"{META}{k}": value for k, value in meta if _NAME.fullmatch(k) and _FIELD.fullmatch(value)}
        if self.traceparent is not None and _FIELD.fullmatch(self.traceparent):
            headers["traceparent"] = self.traceparent
        return headers

    def context(self) -> bytes:
        """The context of its task: an Erlang map, as in the original (docs/thrift.md, "Context")."""
        ids: list[terms.Plain] = [self.span_id, self.trace_id, self.parent_id]
        otel: list[terms.Plain] = []
        if self.traceparent is not None and (found := _TRACEPARENT.fullmatch(self.traceparent)):
            otel = [found[1], found[2], int(found[3], 16)]
        return terms.encode({"woody": [1, ids, dict(self.meta)] if self.meta else [1, ids], "otel": otel})


def read_call(headers: Mapping[str, str]) -> Call:
    """From headers with names in lower case. Raises Failure."""
    ids = [headers.get(name, "") for name in _IDS]
    if not all(ids):
        raise bad_request("bad woody. id header")
    if any(len(value) > LONGEST_ID for value in ids):
        raise Failure(500, None, "an id is too long")
    trace_id, span_id, parent_id = ids
    call = Call(
        trace_id,
        span_id,
        parent_id,
        deadline=read_deadline(headers["woody.deadline"]) if "woody.deadline" in headers else None,
        meta={name.removeprefix(META): value for name, value in headers.items() if name.startswith(META)},
        traceparent=headers.get("traceparent"),
    )
    if call.seconds_left is not None and call.seconds_left <= 0:
        raise Failure(503, UNAVAILABLE, "deadline reached")
    return call


def read_deadline(text: str) -> datetime:
    """Raises Failure, with the words of the Erlang library."""
    try:
        return rfc3339.read(text)
    except rfc3339.NotUtc:
        raise bad_request("bad woody.deadline header: not_utc") from None
    except ValueError:
        raise bad_request(f"bad woody.deadline header: bad_deadline {text[:100]}") from None


def from_context(context: bytes) -> Call:
    """The call that a task came from; a new one when the context is none of ours."""
    try:
        term = terms.decode(context)
        (_, ids, *metas), otel = term[_binary("woody")], term[_binary("otel")]
        span_id, trace_id, parent_id = map(_id, ids)
        meta = {_text(key): _text(value) for key, value in dict(*metas).items()}
        trace = f"00-{_text(otel[0])}-{_text(otel[1])}-{otel[2]:02x}" if otel else None
    except Exception:  # not our bytes: whatever the shape of the term makes of it
        return Call(new_id(), new_id(), "undefined")
    return Call(trace_id, span_id, parent_id, meta=meta, traceparent=trace)


def new_id() -> str:
    """A number of 64 bits in decimal, as the ids of the Erlang library."""
    return str(secrets.randbits(63))


def _text(term: OtpErlangBinary) -> str:
    text: str = term.value.decode("latin-1")
    return text


def _id(term: OtpErlangBinary) -> str:
    text = _text(term)
    if not 0 < len(text) <= LONGEST_ID or not _FIELD.fullmatch(text):
        raise ValueError("no id")
    return text


def _binary(text: str) -> OtpErlangBinary:
    return OtpErlangBinary(text.encode())
