"""Nodes are told when a task ended that a caller of theirs waits for: one NOTIFY a batch, node and 300 tasks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from progressor.model import Intent, Remove
from tests.conftest import Database
from tests.integration.storage.nodes import BUSINESS, NS, TRANSIENT, Node, Tap, request, started, step

Heard: TypeAlias = list[tuple[int, list[int]]]


class Ear:
    """Hears what nodes are told, on a connection of its own."""

    def __init__(self, connection: psycopg.Connection[tuple[object, ...]], channels: list[int]) -> None:
        self._connection = connection
        self._own = channels[0]
        for channel in channels:
            connection.execute(SQL("listen {}").format(Identifier(f"progressor_{channel}")))

    def payloads(self) -> list[tuple[int, str]]:
        """All that was said until now."""
        self._connection.execute("select pg_notify(%s, 'end')", [f"progressor_{self._own}"])
        found = []
        for notify in self._connection.notifies():
            if notify.payload == "end":
                break
            found.append((int(notify.channel.removeprefix("progressor_")), notify.payload))
        return found

    def heard(self) -> Heard:
        """Epoch and tasks."""
        return [(epoch, _tasks(payload)) for epoch, payload in self.payloads()]


def _tasks(payload: str) -> list[int]:
    ns, _, tasks = payload.rpartition(":")
    assert ns == NS
    return sorted(map(int, tasks.split(",")))


@pytest.fixture
def ear(migrated: Database, node: Node, other: Node) -> Iterator[Ear]:
    with psycopg.connect(**migrated.conninfo, autocommit=True) as connection:
        yield Ear(connection, [node.epoch, other.epoch, 0])


def test_another_node_is_told_that_its_call_has_ended(node: Node, other: Node, ear: Ear) -> None:
    claimed = node.start("init", "p")
    call = other.queue("call", "p")
    after = node.finish(claimed).next
    assert ear.heard() == []
    assert after is not None
    node.finish(after)
    assert ear.heard() == [(other.epoch, [call])]


def test_a_node_is_not_told_what_it_did_itself(node: Node, ear: Ear) -> None:
    claimed = node.start("init", "p")
    node.queue("call", "p")
    after = node.finish(claimed).next
    assert after is not None
    node.finish(after)
    assert ear.heard() == []


def test_every_node_is_told_what_more_than_one_waits_for(node: Node, other: Node, ear: Ear) -> None:
    claimed = node.start("init", "p", key="k")
    other.queue("init", "p", key="k")
    node.finish(claimed)
    assert ear.heard() == [(0, [claimed.task.task_id])]


def test_a_retry_is_not_announced(node: Node, other: Node, ear: Ear) -> None:
    claimed = node.start("init", "p")
    other.queue("notify", "p")
    after = node.finish(claimed).next
    assert after is not None
    node.finish(after, TRANSIENT)
    assert ear.heard() == []


def test_cancelled_calls_are_announced(node: Node, other: Node, ear: Ear) -> None:
    claimed = node.start("init", "p")
    calls = [other.queue("call", "p") for _ in range(2)]
    node.queue("call", "p")
    node.finish(claimed, BUSINESS)
    assert ear.heard() == [(other.epoch, calls)]


def test_repairs_that_became_obsolete_are_announced(node: Node, other: Node, ear: Ear) -> None:
    node.broken("p")
    claimed = node.start("repair", "p")
    repair = other.queue("repair", "p")
    node.finish(claimed)
    assert ear.heard() == [(other.epoch, [repair])]


def test_calls_of_a_removed_process_are_announced(node: Node, other: Node, ear: Ear) -> None:
    claimed = node.start("init", "p")
    call = other.queue("call", "p")
    node.finish(claimed, Intent(action=Remove()))
    assert ear.heard() == [(other.epoch, [call])]


def test_a_lost_step_announces_nothing(node: Node, other: Node, ear: Ear) -> None:
    claimed = node.start("init", "p")
    other.queue("call", "p")
    other.complete(step(claimed, BUSINESS))
    assert ear.heard() == []


def test_a_batch_says_it_once_for_each_node(node: Node, other: Node, ear: Ear) -> None:
    names = [f"p{n}" for n in range(5)]
    claims = [started(a) for a in node.commit([request("init", name) for name in names]).requests]
    calls = [other.queue("call", name) for name in names]
    fates = node.commit(completions=[step(c) for c in claims]).completions
    node.commit(completions=[step(f.next) for f in fates])  # type: ignore[union-attr, arg-type]
    assert ear.heard() == [(other.epoch, calls)]


def test_a_thousand_tasks_fit(node: Node, other: Node, tap: Tap, ear: Ear) -> None:
    tap.execute("select setval(%s, 9000000000000000000)", f'"{NS}_tasks_task_id_seq"')
    claimed = node.start("init", "p")
    other.commit([request("call", "p") for _ in range(1000)])
    node.finish(claimed, BUSINESS)
    payloads = ear.payloads()
    assert max(len(payload) for _, payload in payloads) < 8000
    assert len([task for _, payload in payloads for task in _tasks(payload)]) == 1000
