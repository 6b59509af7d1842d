"""Actors that die: what they had in their hands is neither lost nor held for ever."""

from __future__ import annotations

import pytest

from progressor import SetTimer, now
from progressor.engine.directory import Role
from tests.eventually import eventually
from tests.stage import Theatre, does


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
        before = [play.get().last_event_id for play in plays]
        crash(theatre, role, owner)
        eventually(
            lambda: all(play.get().last_event_id > seen + 10 for play, seen in zip(plays, before, strict=True))  # noqa: B023
        )
    for play in plays:
        assert play.get().status == "running"
        play.remove()
