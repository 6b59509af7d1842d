"""After each test no actor and no thread survives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from progressor.otp import Actor, Exit, Ref, actors, start_root
from tests.eventually import eventually
from tests.unit.otp.probe import Exits, Gate

Start = Callable[[Callable[[], Actor]], Ref]


@pytest.fixture(autouse=True)
def _nothing_survives() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    eventually(lambda: not actors())
    eventually(lambda: set(threading.enumerate()) <= before)


@pytest.fixture
def exits() -> Exits:
    """The exits of what `start` started."""
    return Exits()


@pytest.fixture
def start(exits: Exits) -> Iterator[Start]:
    """Starts roots, and stops them after the test."""
    roots: list[Ref] = []

    def start(factory: Callable[[], Actor], on_exit: Callable[[Exit], object] = exits.put) -> Ref:
        roots.append(start_root(factory, on_exit=on_exit))
        return roots[-1]

    yield start
    for root in reversed(roots):
        assert root.stop(10)


@pytest.fixture
def gate(start: Start) -> Iterator[Gate]:
    """Holds an actor until opened; opened after the test, before the actors are stopped."""
    gate = Gate()
    yield gate
    gate.open()
