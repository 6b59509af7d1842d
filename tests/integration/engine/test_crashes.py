"""Actors that die: what they had in their hands is neither lost nor held for ever."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from progressor import SetTimer, now
from progressor.engine.directory import Role
from tests.conftest import Database
from tests.eventually import eventually
from tests.integration.engine.conftest import theatre_of
from tests.stage import Theatre, does

LEASE = {"lease_timeout": 2, "heartbeat_interval": 0.3}


@pytest.fixture(scope="module")
def theatre(shared_database: Database) -> Iterator[Theatre]:
    """What a dead actor had in its hands is taken over when a lease has passed: a short one."""
    with theatre_of(shared_database, node=LEASE) as theatre:
        yield theatre


def crash(theatre: Theatre, role: Role, owner: str) -> None:
    """An actor dies of a message that it does not understand; what waits behind it is lost with it."""
    ref = eventually(lambda: theatre.node._directory.find(role, owner))
    assert ref is not None
    ref.cast("what?")
    assert ref.join(10)


@pytest.mark.parametrize(
    ("role", "owner"),
    [
        (Role.WRITER, "progressor_db"),
        (Role.LEASE, "progressor_db"),
        (Role.SCHEDULER, "a/b"),
        (Role.WORKER_POOL, "a/b"),
        (Role.ZOMBIE_COLLECTOR, "a/b"),
        (Role.SCANNER, "a/b"),
    ],
)
def test_processes_go_on_when_an_actor_dies(theatre: Theatre, role: Role, owner: str) -> None:
    loop = [does(b"step", action=lambda: SetTimer(now()))] * 100_000
    plays = [theatre.play(*loop) for _ in range(10)]
    for play in plays:
        play.init()
    for _ in range(3):
        crash(theatre, role, owner)
        before = [play.get().last_event_id for play in plays]
        eventually(
            lambda: all(play.get().last_event_id > seen + 10 for play, seen in zip(plays, before, strict=True))  # noqa: B023
        )
    for play in plays:
        assert play.get().status == "running"
        play.remove()
