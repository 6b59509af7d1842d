"""What a step means for its process: pure decisions, no I/O (docs/design.md, "A step").

decide(claimed, result, policy, now, next_token) -> Completion
recover(claimed, policy, interrupted, now, next_token) -> Claimed | Completion
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from types import NoneType
from typing import Any

from progressor import model
from progressor.checks import LARGEST_BINARY
from progressor.config import RetryPolicy
from progressor.engine import retry
from progressor.engine.ports import Claimed, Completion, Notice, Outcome, Refused, Task, Timer, TimerChange
from progressor.errors import ProcessorError
from progressor.metadata import own
from progressor.model import (
    Action,
    Answered,
    Event,
    Intent,
    Metadata,
    Process,
    ProcessStatus,
    Remove,
    SetTimer,
    TaskType,
    UnsetTimer,
)

KEEP = Timer(TimerChange.KEEP)
_TURNS: Mapping[str, Notice] = {ProcessStatus.INIT: Notice.CREATED, ProcessStatus.ERROR: Notice.WORKING}
"""What a good step makes known, by the status that the process had."""
ANSWERED_AT_ONCE = (TaskType.INIT, TaskType.CALL, TaskType.REPAIR)
"""Tasks with a caller: their failure is his, they are not retried."""


class Kind(Enum):
    """Why a step failed."""

    BUSINESS = auto()
    TRANSIENT = auto()
    DEFECT = auto()
    STEP_TIMEOUT = auto()


@dataclass(frozen=True, slots=True)
class Failure:
    kind: Kind
    reason: str
    exception_class: str | None = None


# Checks of every step; a tuple of classes is checked faster than a union or an abstract class.
_BYTES = (bytes, NoneType)
_OTHER_ACTIONS = (NoneType, UnsetTimer, Remove)

UNSUPPORTED = Failure(Kind.DEFECT, "unsupported_result")
TOO_LARGE = Failure(Kind.DEFECT, "result_too_large")

REMOVED = Intent(action=Remove())
"""The result of a remove task: there is no processor call."""


def checked(result: object) -> Intent | Failure:
    """What a processor returned, when its parts have the types and sizes that they should have."""
    if not isinstance(result, Intent) or not _is_sound(result):
        return UNSUPPORTED
    return result if _size(result) <= LARGEST_BINARY else TOO_LARGE


def _size(intent: Intent) -> int:
    size = len(intent.aux_state or b"") + len(intent.response or b"")
    for event in intent.events:
        size += len(event.payload)
    return size


def _is_sound(intent: Any) -> bool:
    return (
        isinstance(intent.aux_state, _BYTES)
        and isinstance(intent.response, _BYTES)
        and (intent.metadata is None or _is_mapping(intent.metadata))
        and (
            _is_instant(intent.action.at)
            if isinstance(intent.action, SetTimer)
            else isinstance(intent.action, _OTHER_ACTIONS)
        )
        and (type(intent.events) is list or isinstance(intent.events, Sequence))
        and all(isinstance(event, Event) and _is_sound_event(event) for event in intent.events)
    )


def _is_sound_event(event: Any) -> bool:
    return (
        isinstance(event.payload, bytes)
        and _is_mapping(event.metadata)
        and (event.event_id is None or isinstance(event.event_id, int))
        and (event.timestamp is None or _is_instant(event.timestamp))
    )


def _is_mapping(value: object) -> bool:
    return type(value) is dict or isinstance(value, Mapping)


def _is_instant(value: object) -> bool:
    """Aware, and within the calendar also in UTC: beyond, it could be stored but never read again."""
    if type(value) is datetime and value.tzinfo is UTC:
        return True
    try:
        return isinstance(value, datetime) and value.utcoffset() is not None and bool(value.astimezone(UTC))
    except (OverflowError, ValueError):
        return False


def decide(
    claimed: Claimed, result: Intent | Failure, policy: RetryPolicy, now: datetime, next_token: int
) -> Completion:
    if isinstance(result, Intent):
        events = _numbered(result.events, claimed, now)
        if events is not None:
            return _succeed(claimed, result, events, now, next_token)
        result = Failure(Kind.DEFECT, "bad_event_id")
    return _fail(claimed, result, policy, now, next_token)


def recover(
    claimed: Claimed, policy: RetryPolicy, interrupted: Collection[TaskType], now: datetime, next_token: int
) -> Claimed | Completion:
    """What to do with a task that was taken over from a node that died in it: run it again, or fail it.

    It runs again at once: the failure was not the processor's. But the attempt counts, so that a step that kills
    its node ends. `claimed.task.attempts` counts the interrupted attempt already.
    """
    task = claimed.task
    again = task.task_type not in ANSWERED_AT_ONCE or task.task_type in interrupted
    if again and not retry.is_exhausted(policy, task.attempts):
        return claimed
    return _break(claimed, "zombie detected", task.attempts, now, next_token)


def _numbered(events: Sequence[Event], claimed: Claimed, now: datetime) -> Sequence[Event] | None:
    """The events with their ids and times, and nothing shared with the processor; None when given ids do not continue
    the history."""
    numbered: list[Event] = []
    for event_id, event in enumerate(events, claimed.process.last_event_id + 1):
        if event.event_id not in (None, event_id):
            return None
        at, task_id = event.timestamp or now, claimed.task.task_id
        numbered.append(Event(event.payload, own(event.metadata), event_id, at, task_id))
    return tuple(numbered)


def _succeed(claimed: Claimed, intent: Intent, events: Sequence[Event], now: datetime, next_token: int) -> Completion:
    task, process = claimed.task, claimed.process
    metadata = None if intent.metadata is None else own(intent.metadata)
    timer = _timer(intent.action, task, now)
    if timer is KEEP and task.task_type is TaskType.REPAIR and claimed.broken is not None:
        broken = claimed.broken
        timer = Timer(TimerChange.NOW, now, broken.task_type, broken.args, broken.context)
    return Completion(
        task=task,
        next_token=next_token,
        outcome=Outcome.FINISHED,
        process=_changed(process, intent, metadata, now),
        answer=Answered(intent.response, task.task_id, process.last_event_id + len(events)),
        before=process,
        events=events,
        aux_state=intent.aux_state,
        metadata=metadata,
        timer=timer,
        attempts=task.attempts,
        history=claimed.history,
        notice=None if timer.change is TimerChange.REMOVE else _TURNS.get(process.status),
    )


def _changed(process: Process, intent: Intent, metadata: Metadata | None, now: datetime) -> Process:
    """The process after a good step: it runs, whatever it was before."""
    recovered = process.status != ProcessStatus.RUNNING
    return Process(
        process_id=process.process_id,
        status=ProcessStatus.RUNNING,
        aux_state=process.aux_state if intent.aux_state is None else intent.aux_state,
        metadata=process.metadata if metadata is None else metadata,
        last_event_id=process.last_event_id + len(intent.events),
        created_at=process.created_at,
        previous_status=process.status if recovered else process.previous_status,
        status_changed_at=now if recovered else process.status_changed_at,
    )


def _timer(action: Action | None, task: Task, now: datetime) -> Timer:
    match action:
        case None:
            return KEEP
        case SetTimer():
            at = action.at
            change = TimerChange.NOW if at <= now else TimerChange.AT
            return Timer(change, at, TaskType.REMOVE if action.remove else TaskType.TIMEOUT, b"", task.context)
        case UnsetTimer():
            return Timer(TimerChange.UNSET)
        case Remove():
            return Timer(TimerChange.REMOVE)


def _fail(claimed: Claimed, failure: Failure, policy: RetryPolicy, now: datetime, next_token: int) -> Completion:
    task = claimed.task
    attempt = task.attempts + 1
    final = (
        task.task_type in ANSWERED_AT_ONCE
        or failure.kind is Kind.DEFECT
        or retry.is_exhausted(policy, attempt)
        or not retry.is_retryable(policy, failure.reason, failure.exception_class)
    )
    if final:
        return _break(claimed, failure.reason, attempt, now, next_token)
    wait = retry.delay(policy, attempt)
    at = now + timedelta(seconds=wait)
    return Completion(
        task=task,
        next_token=next_token,
        outcome=Outcome.RETRY,
        process=claimed.process,
        answer=None,
        before=claimed.process,
        timer=Timer(TimerChange.KEEP, at, task.task_type, task.args, task.context),
        attempts=attempt,
        retry_interval=wait,
        history=claimed.history,
    )


def _break(claimed: Claimed, reason: str, attempts: int, now: datetime, next_token: int) -> Completion:
    """The process goes to error; after a failed repair it stays there as it was."""
    task, process, notice = claimed.task, claimed.process, None
    if task.task_type is not TaskType.REPAIR:
        process, notice = _broken(process, reason, task.task_id, now), Notice.FAILED
    return Completion(
        task=task,
        next_token=next_token,
        outcome=Outcome.ERROR,
        process=process,
        answer=Refused(ProcessorError(reason)),
        before=claimed.process,
        attempts=attempts,
        history=claimed.history,
        notice=notice,
    )


def _broken(process: Process, reason: str, task_id: int, now: datetime) -> Process:
    """In error. It may have been there: a simple repair runs the task that broke the process, and that fails again."""
    if process.status != ProcessStatus.ERROR:
        process = replace(process, previous_status=process.status, status_changed_at=now)
    return replace(process, status=ProcessStatus.ERROR, detail=reason, corrupted_by=task_id)


def refuse(completion: Completion, reason: str) -> Completion:
    """The completion instead of one whose data the database refuses: the step was a defect.

    Its token is another one: if that one was committed after all, what goes on does not go on from here.
    """
    claimed = Claimed(completion.task, completion.before, None)
    return _break(claimed, reason, completion.task.attempts + 1, model.now(), -completion.next_token)


def is_refusal(completion: Completion) -> bool:
    """Whether a completion carries no data of a processor any more, so that refusing it again is useless."""
    return completion.outcome is Outcome.ERROR and not completion.events and completion.aux_state is None
