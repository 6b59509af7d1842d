"""Whatever the vocabulary holds goes over the wire of the native service and comes back."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from progressor import errors
from progressor.checks import imported
from progressor.errors import InvalidRequest, LeaseLost, ProcessorError, ProgressorError, StorageUnavailable
from progressor.model import (
    Answered,
    Direction,
    Event,
    Health,
    Page,
    Process,
    ProcessStatus,
    Range,
    SetTimer,
    TaskStatus,
    TaskType,
    TraceUnit,
)
from progressor.rpc import codec, native_types
from progressor.rpc.gen.native import Progressor
from progressor.rpc.gen.native import ttypes as native
from progressor.rpc.service import member

T = TypeVar("T")
IDS = st.integers(0, 2**63 - 1)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
INSTANTS = st.datetimes(timezones=st.just(UTC))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
OBJECTS = st.dictionaries(TEXTS, JSON, max_size=3)
RANGES = st.builds(Range, st.none() | IDS, st.none() | IDS, st.sampled_from(Direction))
EVENTS = st.lists(
    st.builds(Event, st.binary(), OBJECTS, IDS, INSTANTS, st.none() | IDS),
    max_size=3,
)
STATUSES = st.sampled_from(ProcessStatus)
PROCESSES = st.builds(
    Process,
    process_id=TEXTS,
    status=STATUSES,
    detail=st.none() | TEXTS,
    aux_state=st.none() | st.binary(),
    metadata=st.none() | OBJECTS,
    history=EVENTS,
    last_event_id=IDS,
    range=RANGES,
    created_at=st.none() | INSTANTS,
    previous_status=st.none() | STATUSES,
    status_changed_at=st.none() | INSTANTS,
    corrupted_by=st.none() | IDS,
)
UNITS = st.builds(
    TraceUnit,
    task_id=IDS,
    task_type=st.sampled_from(TaskType),
    status=st.sampled_from(TaskStatus),
    scheduled=INSTANTS,
    running=st.none() | INSTANTS,
    finished=st.none() | INSTANTS,
    args=st.binary(),
    metadata=st.none() | OBJECTS,
    context=st.binary(),
    idempotency_key=st.none() | TEXTS,
    response=st.none() | st.binary(),
    error=st.none() | TEXTS,
    retry_interval=st.floats(0, 1e9),
    retry_attempts=st.integers(0, 2**31 - 1),
    events=EVENTS,
)


def sent(value: Any) -> Any:
    return codec.decode(type(value), codec.encode(value))


@given(PROCESSES)
def test_processes(process: Process) -> None:
    assert native_types.read_process(sent(native_types.write_process(process))) == process


@given(UNITS)
def test_units_of_a_trace(unit: TraceUnit) -> None:
    assert native_types.read_unit(sent(native_types.write_unit(unit))) == unit


@given(st.lists(PROCESSES, max_size=2), st.none() | TEXTS)
def test_pages(processes: list[Process], cursor: str | None) -> None:
    page = Page(processes, cursor)
    assert native_types.read_page(sent(native_types.write_page(page))) == page


@given(st.none() | st.binary(), IDS, st.none() | IDS)
def test_answers(response: bytes | None, task_id: int, last: int | None) -> None:
    answered = native_types.read_answer(sent(native_types.write_answer(Answered(response, task_id, last))))
    assert (answered.response, answered.task_id, answered.last_event_id) == (response, task_id, last)


@given(st.sampled_from(Health), OBJECTS)
def test_health(health: Health, details: dict[str, Any]) -> None:
    assert native_types.read_health(sent(native_types.write_health((health, details)))) == (health, details)


@given(INSTANTS, st.booleans())
def test_timers(at: datetime, remove: bool) -> None:
    assert native_types.read_timer(sent(native_types.write_timer(SetTimer(at, remove)))) == SetTimer(at, remove)


@given(PROCESSES)
def test_a_process_that_is_put(process: Process) -> None:
    """Without what the engine says of it, it is the same."""
    read = native_types.read_new_process(process.process_id, sent(native_types.write_new_process(process)))
    for field in ("status", "detail", "aux_state", "metadata", "created_at", "previous_status", "status_changed_at"):
        assert getattr(read, field) == getattr(process, field)
    assert [(e.payload, e.metadata, e.event_id, e.timestamp) for e in read.history] == [
        (e.payload, e.metadata, e.event_id, e.timestamp) for e in process.history
    ]


def test_what_is_left_out_of_a_new_process_is_as_in_the_model() -> None:
    new = native.NewProcess(history=[native.NewEvent(payload=b"x")])
    assert native_types.read_new_process("p", sent(new)) == Process("p", history=[Event(b"x")])
    assert imported("p", native_types.read_new_process("p", native.NewProcess())) == Process("p", history=[])


CLIENT_ERRORS = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.ClientError)]


@pytest.mark.parametrize(
    "error",
    [
        *(error("a text") for error in CLIENT_ERRORS if error not in (InvalidRequest, errors.ClientError)),
        InvalidRequest("range.limit", "must not be negative"),
        ProcessorError("because"),
        StorageUnavailable("the database is away"),
        errors.StorageRejected("no"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors(error: ProgressorError) -> None:
    thrown = native_types.write_error(error)
    assert thrown is not None
    result: Any = Progressor.Call_result()
    field = member(result, thrown)
    assert field is not None
    setattr(result, field, thrown)
    read = native_types.read_error(getattr(sent(result), field))
    assert type(read) is type(error)
    assert (str(read), vars(read)) == (str(error), vars(error))


def test_errors_that_callers_see_as_another_or_not_at_all() -> None:
    assert type(native_types.read_error(native_types.write_error(LeaseLost()))) is StorageUnavailable
    assert type(native_types.read_error(native_types.write_error(errors.TransientError("x")))) is ProcessorError
    assert native_types.write_error(errors.ConfigError(["x"])) is None
    assert native_types.write_error(ProgressorError()) is None
