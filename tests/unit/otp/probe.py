"""Actors that do what a test tells them, and what they tell the test."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from progressor.otp import Actor, Call, ChildInfo, ChildSpec, Exit, Ref, Restart, WhichChildren
from tests.eventually import eventually

TIMEOUT = 10.0


class Exits(queue.SimpleQueue[Exit]):
    """The exits of roots."""

    def next(self) -> Exit:
        return self.get(timeout=TIMEOUT)


class Gate:
    """Where an actor can be made to hang."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._opened = threading.Event()

    def pass_through(self) -> None:
        self._reached.set()
        assert self._opened.wait(60)

    def wait_until_reached(self) -> None:
        assert self._reached.wait(TIMEOUT)

    def open(self) -> None:
        self._opened.set()


class Journal:
    """What happened, in order, over all actors that share it."""

    def __init__(self) -> None:
        self._entries: list[str] = []
        self._lock = threading.Lock()

    def write(self, entry: str) -> None:
        with self._lock:
            self._entries.append(entry)

    def take(self) -> list[str]:
        """The entries since the last time."""
        with self._lock:
            entries, self._entries = self._entries, []
            return entries


class CrashError(Exception):
    """What probes crash with."""


@dataclass(frozen=True, slots=True)
class Echo(Call[int]):
    value: int


@dataclass(frozen=True, slots=True)
class CrashCall(Call[None]):
    error: BaseException = field(default_factory=CrashError)


@dataclass(frozen=True, slots=True)
class Crash:
    error: BaseException = field(default_factory=CrashError)


@dataclass(frozen=True, slots=True)
class Leave:
    """Exit, with `reason` or normally."""

    reason: Exception | None = None


@dataclass(frozen=True, slots=True)
class Hang:
    gate: Gate


@dataclass(frozen=True, slots=True)
class Note:
    """Written into the journal when handled."""

    text: str


class Probe(Actor):
    def __init__(
        self, name: str = "", journal: Journal | None = None, in_init: Callable[[], object] = lambda: None
    ) -> None:
        super().__init__(name)
        self.journal = journal or Journal()
        self.in_init = in_init

    def init(self) -> None:
        self.in_init()
        self.journal.write(f"start {self.ref.name}")

    def handle(self, message: object) -> object:
        match message:
            case Echo(value):
                return value
            case Crash(error) | CrashCall(error):
                raise error
            case Leave(reason):
                self.exit(reason)
            case Hang(gate):
                gate.pass_through()
            case Note(text):
                self.journal.write(text)
            case _:
                return super().handle(message)
        return None

    def terminate(self, reason: Exception) -> None:
        self.journal.write(f"stop {self.ref.name}")


class Broken:
    """A switch: a child's `init` raises while it is on."""

    def __init__(self, *, on: bool = False) -> None:
        self.on = on
        self.tries = 0

    def __call__(self) -> None:
        self.tries += 1
        if self.on:
            raise CrashError("broken")


def probe(
    child_id: str,
    restart: Restart = Restart.PERMANENT,
    *,
    journal: Journal | None = None,
    in_init: Callable[[], object] = lambda: None,
    shutdown: float | None = None,
) -> ChildSpec:
    """The specification of a child that is a `Probe`."""
    return ChildSpec(child_id, lambda: Probe(journal=journal, in_init=in_init), restart, shutdown)


def children(supervisor: Ref) -> dict[str, ChildInfo]:
    return {info.id: info for info in supervisor.call(WhichChildren(), TIMEOUT)}


def refs(supervisor: Ref) -> dict[str, Ref]:
    """The children that run."""
    return {info.id: info.ref for info in supervisor.call(WhichChildren(), TIMEOUT) if info.ref is not None}


def replaced(supervisor: Ref, child_id: str, old: Ref) -> Ref:
    """The child that runs in the place of `old`, as soon as it does."""
    return eventually(lambda: (ref := refs(supervisor).get(child_id)) is not old and ref) or old
