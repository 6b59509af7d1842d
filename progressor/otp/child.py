"""What a supervisor is told about its children, and what it can be asked about them."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from progressor.otp.actor import Actor
from progressor.otp.messages import Call
from progressor.otp.ref import Ref


class Strategy(enum.Enum):
    """Who is restarted when a child dies."""

    ONE_FOR_ONE = "one_for_one"  # the child
    ONE_FOR_ALL = "one_for_all"  # all children
    REST_FOR_ONE = "rest_for_one"  # the child and those started after it


class Restart(enum.Enum):
    """Whether a child is restarted when it dies."""

    PERMANENT = "permanent"  # always
    TRANSIENT = "transient"  # only after a crash
    TEMPORARY = "temporary"  # never; its specification goes with it


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """How to start, restart and stop a child.

    `factory` makes the actor, not yet started, in the supervisor's thread, for each start anew. `shutdown` is
    how many seconds the child is given to stop; default: 5 for a worker, no limit for a supervisor (whose
    children have theirs).
    """

    id: str
    factory: Callable[[], Actor]
    restart: Restart = Restart.PERMANENT
    shutdown: float | None = None


@dataclass(frozen=True, slots=True)
class ChildInfo:
    """A child as `WhichChildren` sees it; `ref` is None when it does not run."""

    spec: ChildSpec
    ref: Ref | None
    restarting: bool

    @property
    def id(self) -> str:
        """The id in the specification."""
        return self.spec.id


@dataclass(frozen=True, slots=True)
class ChildCounts:
    """`specs` children are known, `active` of them run; `supervisors` + `workers` = `specs`."""

    specs: int
    active: int
    supervisors: int
    workers: int


@dataclass(frozen=True, slots=True)
class WhichChildren(Call[list[ChildInfo]]):
    """The children in start order."""


@dataclass(frozen=True, slots=True)
class CountChildren(Call[ChildCounts]):
    """How many there are."""


@dataclass(frozen=True, slots=True)
class StartChild(Call[Ref]):
    """Add a child after the others and start it.

    Raises `ChildRunning`, `ChildAlreadyPresent`, `ChildStartFailed`.
    """

    spec: ChildSpec


@dataclass(frozen=True, slots=True)
class TerminateChild(Call[None]):
    """Stop a child; its specification stays unless it is temporary. Raises `ChildNotFound`."""

    id: str


@dataclass(frozen=True, slots=True)
class RestartChild(Call[Ref]):
    """Start a child that does not run.

    Raises `ChildNotFound`, `ChildRunning`, `ChildRestarting`, `ChildStartFailed`.
    """

    id: str


@dataclass(frozen=True, slots=True)
class DeleteChild(Call[None]):
    """Forget a child that does not run. Raises `ChildNotFound`, `ChildRunning`, `ChildRestarting`."""

    id: str
