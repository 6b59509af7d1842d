"""What a request may contain. Everything is checked before anything is stored; InvalidRequest names the field."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from progressor.errors import InvalidRequest
from progressor.model import (
    Action,
    Direction,
    Event,
    Op,
    Process,
    ProcessStatus,
    Range,
    SetTimer,
    UnsetTimer,
    now,
)

LONGEST_ID = 256
LONGEST_KEY = 256
LARGEST_EVENT_ID = 2**63 - 1
LARGEST_PAGE = 10_000
LARGEST_BINARY = 256 * 1024 * 1024
"""Bytes. PostgreSQL takes less than a gigabyte in one message, and needs its size several times to store it."""
_NUL = re.compile(r"(?<!\\)(\\\\)*\\u0000")
"""An escaped NUL in JSON, unlike an escaped backslash before `u0000`."""
IMPORTABLE = (ProcessStatus.RUNNING, ProcessStatus.ERROR)
SENDABLE = "a secret of letters, digits and signs of ASCII, without spaces"
"""What `is_sendable` accepts, for messages."""


def text(field: str, value: object, longest: int | None = None) -> None:
    if not isinstance(value, str):
        raise InvalidRequest(field, f"expected a string, got {type(value).__name__}")
    if not value:
        raise InvalidRequest(field, "must not be empty")
    if longest is not None and len(value) > longest:
        raise InvalidRequest(field, f"has {len(value)} characters, at most {longest} are allowed")
    if "\0" in value or not _is_utf8(value):
        raise InvalidRequest(field, "must be Unicode text without NUL")


def process_id(value: object) -> None:
    text("id", value, LONGEST_ID)


def request(id: object, args: object, context: object, range: object, key: object, seconds: object) -> None:
    process_id(id)
    binary("args", args)
    binary("context", context)
    range_(range)
    idempotency_key(key)
    timeout(seconds)


def names(field: str, value: object) -> None:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InvalidRequest(field, f"expected a list of strings, got {type(value).__name__}")


def idempotency_key(value: object) -> None:
    if value is not None:
        text("idempotency_key", value, LONGEST_KEY)


def binary(field: str, value: object) -> None:
    if not isinstance(value, bytes):
        raise InvalidRequest(field, f"expected bytes, got {type(value).__name__}")
    if len(value) > LARGEST_BINARY:
        raise InvalidRequest(field, f"has {len(value)} bytes, at most {LARGEST_BINARY} are allowed")


def timeout(value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest("timeout", f"expected seconds, got {type(value).__name__}")
    if not 0 < value < math.inf:
        raise InvalidRequest("timeout", f"must be more than 0, got {value}")


def range_(value: object) -> Range:
    """The range, its direction as an enum; None is everything."""
    if value is None:
        return Range()
    if not isinstance(value, Range):
        raise InvalidRequest("range", f"expected a Range, got {type(value).__name__}")
    event_id("range.offset", value.offset)
    event_id("range.limit", value.limit)
    if value.direction not in tuple(Direction):
        raise InvalidRequest("range.direction", f"expected forward or backward, got {value.direction!r}")
    return replace(value, direction=Direction(value.direction))


def event_id(field: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(field, f"expected a number, got {type(value).__name__}")
    if not 0 <= value <= LARGEST_EVENT_ID:
        raise InvalidRequest(field, f"must be at least 0 and fit into 64 bits, got {value}")


def metadata(field: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, Mapping):
        raise InvalidRequest(field, f"expected a JSON object, got {type(value).__name__}")
    try:
        encoded = json.dumps(value, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(field, f"is no JSON object: {error}") from None
    if len(encoded) > LARGEST_BINARY:
        raise InvalidRequest(field, f"has {len(encoded)} characters as JSON, at most {LARGEST_BINARY} are allowed")
    if _NUL.search(encoded) or not _is_utf8(encoded):
        raise InvalidRequest(field, "must be Unicode text without NUL")


def operation(value: object) -> Op:
    if not (isinstance(value, str) and value in tuple(Op)):
        raise InvalidRequest("op", f"expected one of {', '.join(Op)}, got {value!r}")
    return Op(value)


def status(value: object, field: str = "status") -> None:
    if value is not None and value not in tuple(ProcessStatus):
        raise InvalidRequest(field, f"expected init, running or error, got {value!r}")


def page(limit: object, id_prefix: object, cursor: object) -> None:
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= LARGEST_PAGE:
        raise InvalidRequest("limit", f"expected a number from 1 to {LARGEST_PAGE}, got {limit!r}")
    for field, value in (("id_prefix", id_prefix), ("cursor", cursor)):
        if value is not None:
            text(field, value)


def selection(
    status_: object, metadata_: object, created: tuple[object, object], changed: tuple[object, object]
) -> None:
    status(status_)
    metadata("metadata", metadata_)
    interval("created", created)
    interval("status_changed", changed)


def interval(field: str, bounds: tuple[object, object]) -> None:
    for name, value in zip(("from", "to"), bounds, strict=True):
        if value is not None:
            instant(f"{field}_{name}", value)


def instant(field: str, value: object) -> None:
    if not isinstance(value, datetime):
        raise InvalidRequest(field, f"expected a datetime, got {type(value).__name__}")
    if value.tzinfo is None:
        raise InvalidRequest(field, "must have a time zone")
    try:
        value.astimezone(UTC)
    except (OverflowError, ValueError):
        raise InvalidRequest(field, f"is beyond the calendar, got {value}") from None


def put_action(action: Action | None) -> None:
    match action:
        case None | UnsetTimer():
            pass
        case SetTimer(at, remove):
            instant("action.at", at)
            if not isinstance(remove, bool):
                raise InvalidRequest("action.remove", f"expected a bool, got {type(remove).__name__}")
        case _:
            raise InvalidRequest("action", f"expected SetTimer, UnsetTimer or None, got {action!r}")


def imported(id: str, process: object) -> Process:
    """A process to be imported, its events numbered and dated."""
    if not isinstance(process, Process):
        raise InvalidRequest("process", f"expected a Process, got {type(process).__name__}")
    if process.process_id != id:
        raise InvalidRequest("process.process_id", f"must be {id!r} as in the request, got {process.process_id!r}")
    if process.status not in IMPORTABLE:
        raise InvalidRequest("process.status", f"expected running or error, got {process.status!r}")
    status(process.previous_status, "process.previous_status")
    if process.aux_state is not None:
        binary("process.aux_state", process.aux_state)
    if process.detail is not None:
        text("process.detail", process.detail, LARGEST_BINARY)
    metadata("process.metadata", process.metadata)
    for field, value in (("created_at", process.created_at), ("status_changed_at", process.status_changed_at)):
        if value is not None:
            instant(f"process.{field}", value)
    if not isinstance(process.history, Sequence):
        raise InvalidRequest("process.history", f"expected events, got {type(process.history).__name__}")
    history = [_imported_event(number, event) for number, event in enumerate(process.history, 1)]
    return replace(process, history=history, last_event_id=len(history))


def is_host(text: str) -> bool:
    """Whether it can be looked up: an address, or a name whose parts have 1 to 63 characters."""
    try:
        text.encode("idna")
    except UnicodeError:
        return False
    return True


def is_sendable(secret: str) -> bool:
    """Whether a header of HTTP can carry it."""
    return bool(secret) and all("!" <= character <= "~" for character in secret)


def _imported_event(number: int, event: Any) -> Event:
    field = f"process.history[{number - 1}]"
    if not isinstance(event, Event):
        raise InvalidRequest(field, f"expected an Event, got {type(event).__name__}")
    if event.event_id not in (None, number):
        raise InvalidRequest(f"{field}.event_id", f"must be {number}, got {event.event_id!r}")
    binary(f"{field}.payload", event.payload)
    metadata(f"{field}.metadata", event.metadata)
    if event.timestamp is not None:
        instant(f"{field}.timestamp", event.timestamp)
    return replace(event, event_id=number, timestamp=event.timestamp or now())


def _is_utf8(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
