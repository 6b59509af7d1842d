"""The vocabulary of Progressor in the types of the native service (`write_...`), and back (`read_...`).

What is read may be anything that Thrift can carry: what has no place in the vocabulary is an InvalidRequest that names
its field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, TypeVar

from thrift.Thrift import TException

from progressor.errors import (
    AccessDenied,
    IdempotencyConflict,
    InvalidRequest,
    LeaseLost,
    NamespaceNotFound,
    ProcessAlreadyExists,
    ProcessInError,
    ProcessInInit,
    ProcessNotFound,
    ProcessorError,
    ProcessRunning,
    ProgressorError,
    RequestTimeout,
    StorageRejected,
    StorageUnavailable,
)
from progressor.model import (
    Action,
    Answered,
    Direction,
    Event,
    Health,
    Metadata,
    Op,
    Page,
    Process,
    ProcessStatus,
    Range,
    SetTimer,
    TaskStatus,
    TaskType,
    TraceUnit,
)
from progressor.rpc.gen.native import ttypes as native

E = TypeVar("E", bound=StrEnum)
METHODS: Mapping[Op, str] = {
    Op.INIT: "Init",
    Op.CALL: "Call",
    Op.NOTIFY: "Notify",
    Op.REPAIR: "Repair",
    Op.SIMPLE_REPAIR: "SimpleRepair",
    Op.REMOVE: "Remove",
}
"""Those that take a Request."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

_WITH_MESSAGE: Mapping[type[ProgressorError], Any] = {
    AccessDenied: native.AccessDenied,
    NamespaceNotFound: native.NamespaceNotFound,
    ProcessNotFound: native.ProcessNotFound,
    ProcessAlreadyExists: native.ProcessAlreadyExists,
    ProcessRunning: native.ProcessRunning,
    ProcessInError: native.ProcessInError,
    ProcessInInit: native.ProcessInInit,
    RequestTimeout: native.RequestTimeout,
    IdempotencyConflict: native.IdempotencyConflict,
    StorageUnavailable: native.StorageUnavailable,
    StorageRejected: native.StorageRejected,
    LeaseLost: native.StorageUnavailable,  # nothing was done, and the node gets another one
}
_ERRORS: Mapping[Any, type[ProgressorError]] = {
    thrown: error for error, thrown in _WITH_MESSAGE.items() if error is not LeaseLost
}


# Errors


def write_error(error: ProgressorError) -> TException | None:
    """None: the service has no exception for it."""
    match error:
        case InvalidRequest():
            return native.InvalidRequest(error.field, error.problem)
        case ProcessorError():
            return native.ProcessorError(error.reason)
    thrown = _WITH_MESSAGE.get(type(error))
    return None if thrown is None else thrown(str(error))


def read_error(thrown: Any) -> ProgressorError:
    match thrown:
        case native.InvalidRequest():
            return InvalidRequest(thrown.field, thrown.problem)
        case native.ProcessorError():
            return ProcessorError(thrown.reason)
    return _ERRORS[type(thrown)](thrown.message)


# Simple things


def write_instant(at: datetime | None) -> int | None:
    """Microseconds since 1970."""
    return None if at is None else (at - EPOCH) // MICROSECOND


def read_instant(field: str, microseconds: int | None) -> datetime | None:
    if microseconds is None:
        return None
    try:
        return EPOCH + microseconds * MICROSECOND
    except OverflowError:
        raise InvalidRequest(field, f"is beyond the calendar, got {microseconds}") from None


def write_seconds(seconds: float | None) -> float | None:
    return None if seconds is None else float(seconds)


def write_object(value: Metadata | None) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def read_object(field: str, text: str | None) -> Metadata | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(field, f"is no JSON object: {error}") from None
    if not isinstance(value, dict):
        raise InvalidRequest(field, f"expected a JSON object, got {type(value).__name__}")
    return value


def write_name(kind: Any, name: str | None) -> int | None:
    """The number of an enumeration's member."""
    return None if name is None else kind._NAMES_TO_VALUES[str(name)]  # noqa: SLF001


def read_name(field: str, kind: type[E], generated: Any, number: int | None) -> E | None:
    if number is None:
        return None
    try:
        return kind(generated._VALUES_TO_NAMES[number])  # noqa: SLF001
    except KeyError:
        raise InvalidRequest(field, f"expected {', '.join(kind)}, got {number}") from None


def write_range(range_: Range | None) -> Any:
    if range_ is None:
        return None
    return native.Range(range_.offset, range_.limit, write_name(native.Direction, range_.direction))


def read_range(range_: Any) -> Range | None:
    if range_ is None:
        return None
    direction = read_name("range.direction", Direction, native.Direction, range_.direction)
    return Range(range_.offset, range_.limit, direction or Direction.FORWARD)


def write_answer(answered: Answered) -> Any:
    return native.Answer(answered.response, answered.task_id, answered.last_event_id)


def read_answer(answer: Any) -> Answered:
    return Answered(answer.response, answer.task_id, answer.last_event_id)


# Processes


def write_process(process: Process) -> Any:
    return native.Process(
        process_id=process.process_id,
        status=write_name(native.ProcessStatus, process.status),
        detail=process.detail,
        aux_state=process.aux_state,
        metadata=write_object(process.metadata),
        history=_write_events(process.history),
        last_event_id=process.last_event_id,
        range=write_range(process.range),
        created_at=write_instant(process.created_at),
        previous_status=write_name(native.ProcessStatus, process.previous_status),
        status_changed_at=write_instant(process.status_changed_at),
        corrupted_by=process.corrupted_by,
    )


def read_process(process: Any) -> Process:
    return Process(
        process_id=process.process_id,
        status=_status("status", process.status) or ProcessStatus.RUNNING,
        detail=process.detail,
        aux_state=process.aux_state,
        metadata=read_object("metadata", process.metadata),
        history=_read_events("history", process.history),
        last_event_id=process.last_event_id,
        range=read_range(process.range) or Range(),
        created_at=read_instant("created_at", process.created_at),
        previous_status=_status("previous_status", process.previous_status),
        status_changed_at=read_instant("status_changed_at", process.status_changed_at),
        corrupted_by=process.corrupted_by,
    )


def write_new_process(process: Process) -> Any:
    return native.NewProcess(
        status=write_name(native.ProcessStatus, process.status),
        detail=process.detail,
        aux_state=process.aux_state,
        metadata=write_object(process.metadata),
        history=[
            native.NewEvent(e.event_id, write_instant(e.timestamp), write_object(e.metadata), e.payload)
            for e in process.history
        ],
        created_at=write_instant(process.created_at),
        previous_status=write_name(native.ProcessStatus, process.previous_status),
        status_changed_at=write_instant(process.status_changed_at),
    )


def read_new_process(process_id: str, process: Any) -> Process:
    return Process(
        process_id=process_id,
        status=_status("process.status", process.status) or ProcessStatus.RUNNING,
        detail=process.detail,
        aux_state=process.aux_state,
        metadata=read_object("process.metadata", process.metadata),
        history=_read_events("process.history", process.history or ()),
        created_at=read_instant("process.created_at", process.created_at),
        previous_status=_status("process.previous_status", process.previous_status),
        status_changed_at=read_instant("process.status_changed_at", process.status_changed_at),
    )


def write_timer(action: Action | None) -> Any:
    """An import has no timer before: UnsetTimer is none."""
    return native.SetTimer(write_instant(action.at), action.remove) if isinstance(action, SetTimer) else None


def read_timer(timer: Any) -> SetTimer | None:
    at = None if timer is None else read_instant("timer.at", timer.at)
    return None if at is None else SetTimer(at, bool(timer.remove))


def _write_events(events: Sequence[Event]) -> list[Any]:
    return [
        native.Event(e.event_id, write_instant(e.timestamp), write_object(e.metadata), e.payload, e.task_id)
        for e in events
    ]


def _read_events(field: str, events: Sequence[Any]) -> list[Event]:
    return [
        Event(
            e.payload,
            read_object(f"{field}[{at}].metadata", e.metadata) or {},
            e.event_id,
            read_instant(f"{field}[{at}].timestamp", e.timestamp),
            getattr(e, "task_id", None),
        )
        for at, e in enumerate(events)
    ]


def _status(field: str, number: int | None) -> ProcessStatus | None:
    return read_name(field, ProcessStatus, native.ProcessStatus, number)


# What there is to read


def write_unit(unit: TraceUnit) -> Any:
    return native.TraceUnit(
        task_id=unit.task_id,
        task_type=write_name(native.TaskType, unit.task_type),
        status=write_name(native.TaskStatus, unit.status),
        scheduled=write_instant(unit.scheduled),
        running=write_instant(unit.running),
        finished=write_instant(unit.finished),
        arguments=unit.args,
        metadata=write_object(unit.metadata),
        context=unit.context,
        idempotency_key=unit.idempotency_key,
        response=unit.response,
        error=unit.error,
        retry_interval=unit.retry_interval,
        retry_attempts=unit.retry_attempts,
        events=_write_events(unit.events),
    )


def write_units(units: Sequence[TraceUnit]) -> Any:
    return [write_unit(unit) for unit in units]


def read_unit(unit: Any) -> TraceUnit:
    return TraceUnit(
        task_id=unit.task_id,
        task_type=_there(read_name("task_type", TaskType, native.TaskType, unit.task_type)),
        status=_there(read_name("status", TaskStatus, native.TaskStatus, unit.status)),
        scheduled=_there(read_instant("scheduled", unit.scheduled)),
        running=read_instant("running", unit.running),
        finished=read_instant("finished", unit.finished),
        args=unit.arguments,
        metadata=read_object("metadata", unit.metadata),
        context=unit.context,
        idempotency_key=unit.idempotency_key,
        response=unit.response,
        error=unit.error,
        retry_interval=unit.retry_interval,
        retry_attempts=unit.retry_attempts,
        events=_read_events("events", unit.events),
    )


def read_selection(request: Any) -> dict[str, Any]:
    """The arguments of `list`."""
    instants = ("created_from", "created_to", "status_changed_from", "status_changed_to")
    return {
        "status": _status("status", request.status),
        "metadata": read_object("metadata", request.metadata),
        "id_prefix": request.id_prefix,
        "limit": request.limit,
        "cursor": request.cursor,
        **{name: read_instant(name, getattr(request, name)) for name in instants},
    }


def write_page(page: Page) -> Any:
    return native.Page([write_process(process) for process in page.items], page.cursor)


def read_page(page: Any) -> Page:
    return Page([read_process(process) for process in page.items], page.cursor)


def write_health(report: tuple[Health, Mapping[str, Any]]) -> Any:
    health, details = report
    return native.HealthReport(write_name(native.Health, health), write_object(details))


def read_health(report: Any) -> tuple[Health, Mapping[str, Any]]:
    health = _there(read_name("health", Health, native.Health, report.health))
    return health, read_object("details", report.details) or {}


T = TypeVar("T")


def _there(value: T | None) -> T:
    """What the definition requires, which the decoder has checked."""
    assert value is not None  # noqa: S101 - for the type checker
    return value
