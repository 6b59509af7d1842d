"""What the actors of the engine tell each other. Imperatives ask, the other names are facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import monotonic

from progressor.engine.ports import (
    Accepted,
    Answered,
    Claim,
    Claimed,
    Completed,
    Completion,
    Ended,
    Hint,
    Lost,
    Refused,
    Request,
    Task,
)
from progressor.otp import Call

# To the writer


@dataclass(frozen=True, slots=True)
class Accept:
    """Store a request; `future` gets the answer of its task. `deadline` is monotonic."""

    ns: str
    request: Request
    future: Future[Answered]
    deadline: float
    sent: float = field(default_factory=monotonic)


@dataclass(frozen=True, slots=True)
class Complete:
    """Commit what a step changed."""

    ns: str
    completion: Completion
    sent: float = field(default_factory=monotonic)


@dataclass(frozen=True, slots=True)
class ClaimTasks:
    """Take due tasks of the schedule."""

    ns: str
    claims: Sequence[Claim]


# To the scheduler


@dataclass(frozen=True, slots=True)
class Committed:
    """What a transaction did in this namespace."""

    accepted: Sequence[tuple[Accept, Refused | Answered | Accepted]] = ()
    completed: Sequence[tuple[Complete, Completed | Lost]] = ()
    claimed: Sequence[tuple[Claim, Claimed | Hint | None]] = ()
    ended: Sequence[Ended] = ()


@dataclass(frozen=True, slots=True)
class Expect(Call[bool]):
    """Remember tasks that are due now or soon. The answer: whether there is room for more."""

    hints: Sequence[Hint]


@dataclass(frozen=True, slots=True)
class WakeUp:
    """The earliest expected task is due, or a reason to wait is gone."""


@dataclass(frozen=True, slots=True)
class TakenOver:
    """Zombies that are ours now: some run again, some end."""

    again: Sequence[Claimed]
    ended: Sequence[Completion]


@dataclass(frozen=True, slots=True)
class LeaseReplaced:
    """This node got a new epoch: all that it had in its hands belongs to others."""


@dataclass(frozen=True, slots=True)
class Results:
    """What the database says about tasks that somebody waits for; None for one that is gone."""

    results: Mapping[int, Answered | Refused | None]
    asked: Sequence[int]


@dataclass(frozen=True, slots=True)
class AwaitInit:
    """Resolve `future` when an init of this process ends on this node."""

    process_id: str
    future: Future[None]


@dataclass(frozen=True, slots=True)
class KnownTokens(Call[Sequence[int]]):
    """The run tokens of all tasks in the hands of this node."""


@dataclass(frozen=True, slots=True)
class OpenTasks(Call[Sequence[int]]):
    """Tasks that somebody here waits for but that do not run here."""


@dataclass(frozen=True, slots=True)
class Load(Call["LoadFigures"]):
    """How much there is to do."""


@dataclass(frozen=True, slots=True)
class LoadFigures:
    ready: int
    oldest_ready: float
    """Seconds that the first in the queue has been waiting."""
    idle_workers: int
    held: int
    expected: int
    waiting_callers: int


@dataclass(frozen=True, slots=True)
class Drain(Call[None]):
    """Take nothing new and hand back what did not begin. What runs may end."""


# To the pool, the scanner and the zombie collector


@dataclass(frozen=True, slots=True)
class CheckDeadlines:
    """Replace workers that hang."""


@dataclass(frozen=True, slots=True)
class ScanTimers:
    pass


@dataclass(frozen=True, slots=True)
class ScanCalls:
    pass


@dataclass(frozen=True, slots=True)
class Announced:
    """Another node ended tasks that callers of this node wait for."""

    tasks: Sequence[int]


@dataclass(frozen=True, slots=True)
class HandBack:
    """Put tasks that did not begin back into the schedule."""

    tasks: Sequence[Task]


@dataclass(frozen=True, slots=True)
class Settle(Call[None]):
    """Answer when everything sent before has been done."""


@dataclass(frozen=True, slots=True)
class CollectZombies:
    pass
