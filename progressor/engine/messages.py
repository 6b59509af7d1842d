"""What the actors of the engine tell each other. Imperatives ask, the other names are facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import field
from time import monotonic

from progressor.engine.ports import (
    Accepted,
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
from progressor.model import Answered
from progressor.otp import Call
from progressor.value import value

# To the writer


@value
class Accept:
    """Store a request; `future` gets the answer of its task. `deadline` is monotonic."""

    ns: str
    request: Request
    future: Future[Answered]
    deadline: float
    sent: float = field(default_factory=monotonic)


@value
class Complete:
    """Commit what a step changed."""

    ns: str
    completion: Completion
    sent: float = field(default_factory=monotonic)


@value
class ClaimTasks:
    """Take due tasks of the schedule."""

    ns: str
    claims: Sequence[Claim]


# To the scheduler


@value
class Committed:
    """What a transaction did in this namespace."""

    accepted: Sequence[tuple[Accept, Refused | Answered | Accepted]] = ()
    completed: Sequence[tuple[Complete, Completed | Lost]] = ()
    claimed: Sequence[tuple[Claim, Claimed | Hint | None]] = ()
    ended: Sequence[Ended] = ()


@value
class Expect(Call[bool]):
    """Remember tasks that are due now or soon. The answer: whether there is room for more."""

    hints: Sequence[Hint]


@value
class WakeUp:
    """The earliest expected task is due, or a reason to wait is gone."""


@value
class TakenOver:
    """Zombies that are ours now: some run again, some end."""

    again: Sequence[Claimed]
    ended: Sequence[Completion]


@value
class LeaseReplaced:
    """This node got a new epoch: all that it had in its hands belongs to others."""


@value
class Results:
    """What the database says about tasks that somebody waits for; None for one that is gone."""

    results: Mapping[int, Answered | Refused | None]
    asked: Sequence[int]


@value
class AwaitInit:
    """Resolve `future` when an init of this process ends on this node."""

    process_id: str
    future: Future[None]


@value
class KnownTokens(Call[Sequence[int]]):
    """The run tokens of all tasks in the hands of this node."""


@value
class OpenTasks(Call[Sequence[int]]):
    """Tasks that somebody here waits for but that do not run here."""


@value
class Load(Call["LoadFigures"]):
    """How much there is to do."""


@value
class LoadFigures:
    ready: int
    oldest_ready: float
    """Seconds that the first in the queue has been waiting."""
    idle_workers: int
    held: int
    expected: int
    waiting_callers: int


@value
class Drain(Call[None]):
    """Take nothing new and hand back what did not begin. What runs may end."""


# To the pool, the scanner, the zombie collector and the notifier


@value
class CheckDeadlines:
    """Replace workers that hang."""


@value
class ScanTimers:
    pass


@value
class ScanCalls:
    pass


@value
class Announced:
    """Another node ended tasks that callers of this node wait for."""

    tasks: Sequence[int]


@value
class HandBack:
    """Put tasks that did not begin back into the schedule."""

    tasks: Sequence[Task]


@value
class Settle(Call[None]):
    """Answer when everything sent before has been done."""


@value
class CollectZombies:
    pass


@value
class Publish:
    """There may be something in the outbox."""
