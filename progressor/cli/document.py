"""Processes and what belongs to them as JSON: what `--json` prints, and what `put` reads.

Bytes are `{"text": ...}` when they are text that people can read, else `{"base64": ...}`; instants are RFC 3339 in UTC.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from progressor import rfc3339
from progressor.errors import ConfigError
from progressor.model import Answered, Event, Page, Process, ProcessStatus, TraceUnit

T = TypeVar("T")
JSON = Mapping[str, Any]
WHITE = "\n\r\t"
READ_ONLY = {"process_id", "range", "last_event_id", "corrupted_by"}
"""What `get` shows of a process and a new one cannot be given."""


def text(data: bytes) -> str | None:
    """The bytes as text; None when that is nothing to read."""
    try:
        found = data.decode()
    except UnicodeDecodeError:
        return None
    return found if all(character.isprintable() or character in WHITE for character in found) else None


def binary(data: bytes | None) -> JSON | None:
    if data is None:
        return None
    readable = text(data)
    return {"base64": base64.b64encode(data).decode()} if readable is None else {"text": readable}


def instant(at: datetime | None) -> str | None:
    return None if at is None else rfc3339.show(at, "auto")


def answered(answer: Answered) -> JSON:
    return {
        "response": binary(answer.response),
        "task_id": answer.task_id,
        "last_event_id": answer.last_event_id,
    }


def process(found: Process) -> JSON:
    return {
        "process_id": found.process_id,
        "status": found.status,
        "previous_status": found.previous_status,
        "status_changed_at": instant(found.status_changed_at),
        "created_at": instant(found.created_at),
        "detail": found.detail,
        "corrupted_by": found.corrupted_by,
        "aux_state": binary(found.aux_state),
        "metadata": found.metadata,
        "last_event_id": found.last_event_id,
        "range": {"offset": found.range.offset, "limit": found.range.limit, "direction": found.range.direction},
        "history": events(found.history),
    }


def events(history: Sequence[Event]) -> Sequence[JSON]:
    return [
        {
            "event_id": event.event_id,
            "timestamp": instant(event.timestamp),
            "metadata": event.metadata,
            "payload": binary(event.payload),
            "task_id": event.task_id,
        }
        for event in history
    ]


def unit(task: TraceUnit) -> JSON:
    return {
        "task_id": task.task_id,
        "task_type": task.task_type,
        "status": task.status,
        "scheduled": instant(task.scheduled),
        "running": instant(task.running),
        "finished": instant(task.finished),
        "args": binary(task.args),
        "metadata": task.metadata,
        "context": binary(task.context),
        "idempotency_key": task.idempotency_key,
        "response": binary(task.response),
        "error": task.error,
        "retry_interval": task.retry_interval,
        "retry_attempts": task.retry_attempts,
        "events": events(task.events),
    }


def page(found: Page) -> JSON:
    return {"items": [process(item) for item in found.items], "cursor": found.cursor}


def read_process(process_id: str, document: object) -> Process:
    """A process as `process` shows it, to be put under another id or elsewhere. Raises ConfigError."""
    reader = _Reader("the process", document)
    found = Process(
        process_id,
        reader.take("status", _text) or ProcessStatus.RUNNING,
        reader.take("detail", _text),
        aux_state=reader.take("aux_state", read_binary),
        metadata=reader.take("metadata", _object),
        history=[_read_event(f"history[{n}]", event) for n, event in enumerate(reader.take("history", _array) or ())],
        created_at=reader.take("created_at", read_instant),
        previous_status=reader.take("previous_status", _text),
        status_changed_at=reader.take("status_changed_at", read_instant),
    )
    reader.close(READ_ONLY)
    return found


def _read_event(where: str, document: object) -> Event:
    reader = _Reader(where, document)
    event = Event(
        reader.take("payload", read_binary) or b"",
        reader.take("metadata", _object) or {},
        reader.take("event_id", _number),
        reader.take("timestamp", read_instant),
    )
    reader.close({"task_id"})
    return event


def read_binary(value: object) -> bytes:
    match value:
        case {"text": str() as readable, **more} if not more:
            return readable.encode()
        case {"base64": str() as encoded, **more} if not more:
            try:
                return base64.b64decode(encoded, validate=True)
            except binascii.Error as error:
                raise ValueError(f"no base64: {error}") from None
    raise ValueError('expected {"text": ...} or {"base64": ...}')


def read_instant(value: object) -> datetime:
    try:
        at = datetime.fromisoformat(value if isinstance(value, str) else "")
    except ValueError:
        at = datetime.min  # noqa: DTZ901 - has no zone, like all that is refused
    if at.tzinfo is None:
        raise ValueError(f"expected a time with its zone, such as 2026-01-31T12:00:00Z, got {value!r}")
    return at


class _Reader:
    """An object of the document; null is as good as nothing."""

    def __init__(self, where: str, document: object) -> None:
        if not isinstance(document, dict):
            raise ConfigError([f"{where}: expected a JSON object"])
        self._where = where
        self._document = document
        self._taken: set[str] = set()

    def take(self, key: str, read: Callable[[object], T]) -> T | None:
        self._taken.add(key)
        value = self._document.get(key)
        try:
            return None if value is None else read(value)
        except ValueError as error:
            raise ConfigError([f"{self._where}.{key}: {error}"]) from None

    def close(self, others: set[str]) -> None:
        for key in self._document.keys() - self._taken - others:
            raise ConfigError([f"{self._where}.{key}: unknown key"])


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise ValueError("expected a string")


def _number(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError("expected a number")


def _object(value: object) -> JSON:
    if isinstance(value, dict):
        return value
    raise ValueError("expected a JSON object")


def _array(value: object) -> list[object]:
    if isinstance(value, list):
        return value
    raise ValueError("expected an array")
