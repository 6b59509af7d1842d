"""The vocabulary of Progressor: processes, events, tasks, and what a step may ask for.

Frozen values without behaviour of their own. Instants are aware UTC datetimes with microseconds,
durations float seconds, payloads bytes. What each field means: docs/design.md, "Things".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, TypeAlias

from progressor.value import value

Metadata: TypeAlias = Mapping[str, Any]
"""A JSON object."""


class ProcessStatus(StrEnum):
    INIT = "init"
    RUNNING = "running"
    ERROR = "error"


class TaskType(StrEnum):
    INIT = "init"
    TIMEOUT = "timeout"
    CALL = "call"
    NOTIFY = "notify"
    REPAIR = "repair"
    REMOVE = "remove"


class TaskStatus(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    BLOCKED = "blocked"
    ERROR = "error"
    FINISHED = "finished"
    CANCELLED = "cancelled"


class Direction(StrEnum):
    FORWARD = "forward"
    BACKWARD = "backward"


class Health(StrEnum):
    PASSING = "passing"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class Range:
    """A slice of a history: `limit` events after (forward) or before (backward) event `offset`.

    No offset: from the first (forward) or the last (backward) event. No limit: all of them.
    Forward is ascending, backward descending. `limit` 0 is legal.
    """

    offset: int | None = None
    limit: int | None = None
    direction: Direction | str = Direction.FORWARD


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to a process.

    A processor may leave `event_id` and `timestamp` out: the engine assigns the next id and the
    time of the step. `task_id` names the task that produced it; it is set on events that were read.
    """

    payload: bytes
    metadata: Metadata = field(default_factory=dict)
    event_id: int | None = None
    timestamp: datetime | None = None
    task_id: int | None = None


@value
class Process:
    """A process with the slice of its history that was asked for (`range`)."""

    process_id: str
    status: ProcessStatus | str = ProcessStatus.RUNNING
    detail: str | None = None
    aux_state: bytes | None = None
    metadata: Metadata | None = None
    history: Sequence[Event] = ()
    last_event_id: int = 0
    range: Range = Range()
    created_at: datetime | None = None
    previous_status: ProcessStatus | str | None = None
    status_changed_at: datetime | None = None
    corrupted_by: int | None = None


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Replace any timer: run a `timeout` task at `at`, or with `remove` remove the process then."""

    at: datetime
    remove: bool = False


@dataclass(frozen=True, slots=True)
class UnsetTimer:
    """Cancel any timer: the process sleeps until somebody calls it."""


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove the process now, with its history."""


Action: TypeAlias = SetTimer | UnsetTimer | Remove


@dataclass(frozen=True, slots=True)
class Intent:
    """What a step of a processor asks the engine to commit. `None` leaves a thing as it is."""

    events: Sequence[Event] = ()
    aux_state: bytes | None = None
    metadata: Metadata | None = None
    response: bytes | None = None
    action: Action | None = None


@value
class StepRequest:
    """What a processor is given. `attempt` counts from 1 and grows when a step is retried.

    `deadline`: when the engine gives the step up; None where no engine runs it.
    """

    task_type: TaskType
    args: bytes
    process: Process
    namespace: str = ""
    task_id: int = 0
    attempt: int = 1
    deadline: datetime | None = None


@dataclass(frozen=True, slots=True)
class ModernizeRequest:
    """What a modernizer is given: an event of an old representation. `deadline`: when its caller gives up."""

    namespace: str
    process_id: str
    event: Event
    deadline: datetime | None = None


@value
class Answered:
    """What a request was answered: the step's response, its task, and the last event of the process then.

    `last_event_id` is None when this node does not know it: another one ran the step, or a request with the same
    idempotency key was answered before.
    """

    response: bytes | None
    task_id: int = 0
    last_event_id: int | None = field(default=None, compare=False)


class Op(StrEnum):
    """The requests that change a process."""

    INIT = "init"
    CALL = "call"
    NOTIFY = "notify"
    REPAIR = "repair"
    SIMPLE_REPAIR = "simple_repair"
    REMOVE = "remove"


@value
class TraceUnit:
    """One task of a process, as the audit trail shows it, with the events that it produced.

    `scheduled`: when it is due, or was; `running`: when its last attempt began; `finished`: when it ended. `metadata`:
    the range that its request gave, or its kind. `error`: why it ended without success, or `cancelled` for a timer that
    was replaced; None for all others.
    `retry_attempts`: how many attempts have failed, or ended with their node. `retry_interval`: whole seconds from the
    failed attempt to the next one, while that is awaited or runs; else 0.
    """

    task_id: int
    task_type: TaskType
    status: TaskStatus
    scheduled: datetime
    running: datetime | None
    finished: datetime | None
    args: bytes
    metadata: Metadata | None
    context: bytes
    idempotency_key: str | None
    response: bytes | None
    error: str | None
    retry_interval: float
    retry_attempts: int
    events: Sequence[Event]


@value
class Page:
    """One page of a listing; `cursor` asks for the next one and is None at the end."""

    items: Sequence[Process]
    cursor: str | None


def now() -> datetime:
    return datetime.now(UTC)


def seconds(value: float) -> timedelta:
    return timedelta(seconds=value)
