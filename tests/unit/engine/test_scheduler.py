"""What the scheduler asks the writer for. (What comes of it: tests/integration/engine.)"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta

import pytest

from progressor.engine.directory import Directory, Role
from progressor.engine.history import Histories
from progressor.engine.lease import Lease
from progressor.engine.messages import ClaimTasks, Committed, Expect, Load
from progressor.engine.ports import Claim, Hint
from progressor.engine.ready import ReadyQueue
from progressor.engine.scheduler import Scheduler
from progressor.engine.tokens import Tokens
from progressor.metrics import Metrics
from progressor.model import now
from progressor.otp import Actor, Ref, Timer, start_root
from tests.eventually import eventually

NS = "a/b"
PATIENCE = 10.0


class Asked(Actor):
    """In the place of the writer: keeps what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.claims: list[Claim] = []

    def handle(self, message: object) -> object:
        assert isinstance(message, ClaimTasks)
        self.claims += message.claims
        return None


class Stage:
    def __init__(self, scheduler: Ref, asked: Asked) -> None:
        self._scheduler = scheduler
        self._asked = asked

    def expect(self, *hints: Hint) -> None:
        """As after a scan that found these."""
        self._scheduler.call(Expect(hints), PATIENCE)

    def answer(self, claim: Claim, found: Hint | None = None) -> None:
        self._scheduler.cast(Committed(claimed=[(claim, found)]))

    @property
    def held(self) -> int:
        return self._scheduler.call(Load(), PATIENCE).held

    def claims(self, count: int) -> list[Claim]:
        """All claims so far, when there are as many."""
        eventually(lambda: len(self._asked.claims) >= count)
        return self._asked.claims


@pytest.fixture
def stage() -> Iterator[Stage]:
    directory, asked = Directory(), Asked()
    with closing(Timer()) as timer:
        writer = start_root(lambda: asked)
        directory.enter(Role.WRITER, "db", writer)
        scheduler = start_root(
            lambda: Scheduler(
                ns=NS,
                database="db",
                worker_count=1,
                horizon=10,
                lease=Lease(5),
                directory=directory,
                histories=Histories(1000),
                ready=ReadyQueue(lambda: True),
                tokens=Tokens(),
                timer=timer,
                metrics=Metrics().namespace(NS),
            )
        )
        yield Stage(scheduler, asked)
        assert scheduler.stop(PATIENCE)
        assert writer.stop(PATIENCE)


def due(task_id: int) -> Hint:
    return Hint(task_id, f"p{task_id}", now() - timedelta(seconds=1))


def test_a_task_that_a_scan_finds_while_it_is_claimed_is_asked_for_once(stage: Stage) -> None:
    first, second = due(1), due(2)
    stage.expect(first)
    stage.expect(first, second)
    assert [claim.hint for claim in stage.claims(2)] == [first, second]
    assert stage.held == 2


def test_what_could_not_be_claimed_is_asked_for_again_when_it_is_found_again(stage: Stage) -> None:
    task = due(1)
    stage.expect(task)
    (claim,) = stage.claims(1)
    stage.answer(claim)
    assert stage.held == 0
    stage.expect(task)
    assert len(stage.claims(2)) == 2


def test_what_was_claimed_too_early_is_asked_for_again_when_it_is_due(stage: Stage) -> None:
    task = due(1)
    stage.expect(task)
    (claim,) = stage.claims(1)
    stage.answer(claim, task)
    assert [claim.hint.task_id for claim in stage.claims(2)] == [1, 1]
