"""What the engine says to its storage and to the broker, and what it hears: the ports between them.

The engine decides, the storage makes it durable, the publisher tells others. Everything here is a value but the
protocols, which have a method for each use case. A storage raises the errors of `progressor.errors` only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from datetime import datetime
from enum import StrEnum
from threading import Event as Flag
from typing import Protocol

from progressor.engine.history import History
from progressor.model import (
    Action,
    Answered,
    Event,
    Metadata,
    Op,
    Page,
    Process,
    Range,
    TaskType,
    TraceUnit,
)
from progressor.value import value


@value
class Task:
    """A task in the hands of this node. `owner` (the node's epoch) and `token` fence its completion."""

    process_id: str
    task_id: int
    task_type: TaskType
    args: bytes
    context: bytes
    metadata: Metadata | None
    scheduled_time: datetime
    attempts: int
    """How many attempts failed before this one."""
    owner: int
    token: int


@value
class Claimed:
    """A task with its process as the step will find it. `history` is None until it has been read."""

    task: Task
    process: Process
    history: History | None = None
    broken: BrokenTask | None = None
    """For a repair: what the process broke on."""
    last_writer: int | None = None
    """The task that wrote the last event; None when there is no event, or when a step of this node ended just now."""


@value
class BrokenTask:
    """The timer task that brought a process into error: a repair sets it again."""

    task_type: TaskType
    args: bytes
    context: bytes


@value
class Request:
    """A request to be accepted. `token` names it, and is the run token of its task when that starts at once."""

    op: Op
    process_id: str
    args: bytes
    context: bytes
    idempotency_key: str | None
    metadata: Metadata | None
    token: int


@value
class Refused:
    """The request, or the waiting task, ends with this error."""

    error: Exception


@value
class Accepted:
    """The task is stored: this node runs it now (`started`), or it waits, here or elsewhere."""

    task_id: int
    started: Claimed | None = None


class Outcome(StrEnum):
    FINISHED = "finished"
    ERROR = "error"
    RETRY = "retry"


class TimerChange(StrEnum):
    KEEP = "keep"
    NOW = "now"
    AT = "at"
    UNSET = "unset"
    REMOVE = "remove"


class Notice(StrEnum):
    """What a message tells: an event, or a turn in the life of its process."""

    EVENT = "event"
    CREATED = "created"
    WORKING = "working"
    FAILED = "failed"
    REMOVED = "removed"


@value
class Timer:
    """What becomes of the timer. `at`, `task_type`, `args` and `context` are those of the new task, if any."""

    change: TimerChange
    at: datetime | None = None
    task_type: TaskType = TaskType.TIMEOUT
    args: bytes = b""
    context: bytes = b""


@value
class Completion:
    """All that a step changes, committed in one transaction or not at all."""

    task: Task
    next_token: int
    outcome: Outcome
    process: Process
    """The process as it will be; its `history` and `last_event_id` are not looked at."""
    answer: Answered | Refused | None
    """What the caller is told; None when the task waits for another attempt."""
    before: Process
    """The process as the step found it."""
    events: Sequence[Event] = ()
    aux_state: bytes | None = None
    metadata: Metadata | None = None
    timer: Timer = Timer(TimerChange.KEEP)
    attempts: int = 0
    retry_interval: float = 0.0
    history: History | None = field(default=None, compare=False)
    notice: Notice | None = None
    """What it means for the life of the process; that it is removed is not said here."""


@value
class Completed:
    """A completion that was applied."""

    next: Claimed | None = None
    """The task that this node goes on with."""
    hints: Sequence[Hint] = ()
    removed: bool = False


@value
class Lost:
    """A completion that the fence refused. `answer`: what the database says about its task, when it has ended."""

    answer: Answered | Refused | None


@value
class Ended:
    """A task that ended without running; whoever waits for it is answered."""

    task_id: int
    answer: Answered | Refused


@value
class Hint:
    """A task of the schedule and when it is due. Only a hint: it may be gone by then."""

    task_id: int
    process_id: str
    at: datetime


@value
class Claim:
    """A wish to run a task of the schedule under `token`."""

    hint: Hint
    token: int


@value
class Batch:
    """What one transaction does in one namespace. At most one completion for each process."""

    requests: Sequence[Request] = ()
    completions: Sequence[Completion] = ()
    claims: Sequence[Claim] = ()


@value
class BatchResult:
    """One result for each item, in the order of the items, and the other tasks that ended."""

    requests: Sequence[Refused | Answered | Accepted] = ()
    completions: Sequence[Completed | Lost] = ()
    claims: Sequence[Claimed | Hint | None] = ()
    """Claimed; a hint when it was too early; None when there is nothing to claim any more."""
    ended: Sequence[Ended] = ()


@value
class Selection:
    """Which processes a listing shows. Times are half-open intervals."""

    status: str | None = None
    metadata: Metadata | None = None
    id_prefix: str | None = None
    created: tuple[datetime | None, datetime | None] = (None, None)
    changed: tuple[datetime | None, datetime | None] = (None, None)


@value
class Reading:
    """A process as one snapshot of the database has it; None: it was not there."""

    process: Process | None
    snapshot: str
    """PostgreSQL's pg_snapshot."""
    lsn: int
    """The end of the WAL when the snapshot had been taken."""


class Cache(Protocol):
    """The processes of a namespace in memory. Thread-safe."""

    def look(self, process_id: str, range: Range, least: int) -> Process | None:
        """The process if it is in memory and has event `least`, or has it in a moment."""

    def read(self, process_id: str, range: Range, patience: float) -> Process | None:
        """From the database, within `patience` seconds; it stays in memory then.

        Raises StorageUnavailable and RequestTimeout.
        """


@value
class Peer:
    """A node with a row in the database, this one among them."""

    epoch: int
    name: str
    started: datetime
    seconds_left: float
    """Until its row expires; below 0 it may be declared dead."""


class LeaseStore(Protocol):
    """The rows of the nodes. Every method may raise StorageUnavailable."""

    def acquire(self, node_name: str, seconds: float) -> int:
        """A new epoch."""

    def renew(self, epoch: int, seconds: float) -> float | None:
        """How many seconds the lease had left, by the database's clock; less than none when it had expired. None when
        the row is gone."""

    def bury(self, epoch: int) -> Sequence[int]:
        """Declares the other nodes dead whose rows have expired; their epochs."""

    def peers(self) -> Sequence[Peer]: ...

    def give_up(self, epoch: int) -> None: ...

    def close(self) -> None: ...


class Committer(Protocol):
    """The write side of a database, used by one writer."""

    in_doubt: bool
    """After StorageUnavailable: whether the batch had been sent, so that it may have been committed. After
    StorageRejected: whether it was committed, and what came back could not be read."""
    is_suspect: bool
    """After StorageUnavailable: whether the batch itself may be what the database fails at."""

    def commit(self, epoch: int, batches: Mapping[str, Batch], *, again: bool) -> Mapping[str, BatchResult]:
        """One transaction for all namespaces. `again`: the answer to the same batches was lost.

        Raises LeaseLost when the epoch is no longer trusted; then nothing was done. StorageRejected when the
        database refuses some of the data, StorageUnavailable when it is not there; then see `in_doubt`.
        """

    def close(self) -> None: ...


class Storage(Protocol):
    """The rest of a database. Thread-safe. Every method may raise StorageUnavailable."""

    def events(self, ns: str, process_id: str, range: Range) -> Sequence[Event]: ...

    def broken_task(self, ns: str, task_id: int) -> BrokenTask | None: ...

    def upcoming(self, ns: str, horizon: float, after: Hint | None, limit: int) -> Sequence[Hint]:
        """Timers that are due within `horizon` seconds, in their order, behind `after`."""

    def waiting_calls(self, ns: str, limit: int) -> Sequence[Hint]:
        """Calls of processes that run nothing."""

    def take_over(
        self, ns: str, epoch: int, stale: float, grace: float, known: Sequence[int], tokens: Sequence[int]
    ) -> Sequence[Claimed]:
        """Claims zombies: running tasks without a live owner, at most one for each of `tokens`."""

    def release(self, ns: str, epoch: int, tasks: Sequence[Task]) -> None:
        """Hands tasks back that did not begin."""

    def results(self, ns: str, tasks: Sequence[int]) -> Mapping[int, Answered | Refused | None]:
        """What became of tasks; None while they wait or run. A task that is not there any more is left out."""

    def get(self, ns: str, process_id: str, range: Range, patience: float = ...) -> Process | None:
        """Waits for a connection at most `patience` seconds."""

    def reading(self, ns: str, process_id: str, range: Range, patience: float = ...) -> Reading:
        """As `get`, with what the cache must know to keep it."""

    def timer(self, ns: str, process_id: str) -> datetime | None:
        """When the timer of a process fires; None when it has none, or when it runs."""

    def modernize(self, ns: str, process_id: str, event: Event, newer: Event) -> None:
        """Stores payload and metadata of the newer one, if the event is still as it was read."""

    def put(self, ns: str, process: Process, action: Action | None, context: bytes) -> Hint | None:
        """Raises ProcessAlreadyExists; RequestTimeout when nobody knows whether it was stored."""

    def trace(self, ns: str, process_id: str) -> Sequence[TraceUnit]: ...

    def page(self, ns: str, selection: Selection, limit: int, cursor: str | None) -> Page: ...


# Publishing


@value
class Streams:
    """What of a namespace is published."""

    events: bool = False
    lifecycle: bool = False


@value
class Message:
    """A row of the outbox: what a committed transaction has to tell. Ids grow in the order of commits of a process."""

    message_id: int
    process_id: str
    notice: Notice
    at: datetime
    """The timestamp of an event, else when its transaction took place."""
    event_id: int | None = None
    metadata: Metadata | None = None
    """Of an event; so is the payload."""
    payload: bytes | None = None
    reason: str | None = None
    """Why the process failed."""


@value
class Published:
    """What became of messages, by their ids. Those in neither were not acknowledged, and are given again."""

    sent: Sequence[int] = ()
    refused: Mapping[int, str] = field(default_factory=dict)
    """Why a message can never be sent, being too large, say. Nothing of its process was sent behind it."""
    unavailable: str | None = None
    """Why the others were not sent, though they may be later: no broker answers, the topic is missing."""


@value
class Unpublished:
    """The first messages of an outbox. `waited`: seconds since the first of them was committed."""

    messages: Sequence[Message] = ()
    waited: float = 0.0


@value
class Backlog:
    """How much is in an outbox."""

    depth: int
    """About how many messages: those of transactions that were rolled back count too."""
    age: float
    """Seconds that the first has been there."""
    dead_letters: int
    """At most 10,000 are counted; so are the messages that wait behind them."""
    waiting: int


class Outbox(Protocol):
    """The messages of a namespace that are not published yet. Used by one thread.

    Every method may raise StorageUnavailable; then another node may be the publisher.
    """

    def lead(self, epoch: int) -> bool:
        """Whether this node is the one that publishes: it is, or it becomes it, since no live one is."""

    def read(self) -> Unpublished:
        """The first messages, a bounded portion, those of a process in the order of its commits. Nothing: there are
        none. Only who leads may do this and what follows."""

    def settle(self, published: Published) -> None:
        """Ends those of the messages read last that were sent or refused."""

    def backlog(self) -> Backlog: ...

    def close(self) -> None:
        """Another node may lead at once."""


class Publisher(Protocol):
    """Sends the messages of one namespace to the broker. Used by one thread."""

    def publish(self, messages: Sequence[Message], stop: Flag) -> Published:
        """Sends them, those of a process in the order given, and waits for the broker's word on all of them.

        Ends early, with what is known by then, when the broker is away for too long, or within a moment of `stop`.
        Sends nothing any more when it has returned.
        """

    def close(self) -> None: ...
