"""What signals do to a node that works."""

from __future__ import annotations

import re
import signal

import pytest

from progressor import Node
from tests.acceptance.nodes import Gates, NodeProcess, StartNode, Work, config, is_alive
from tests.conftest import Database
from tests.eventually import eventually

ACTORS = {
    "progressor": "Supervisor",
    "database db": "Supervisor",
    "lease": "LeaseKeeper",
    "writer": "Writer",
    "listener": "Listener",
    "namespace acceptance/gate": "Supervisor",
    "scheduler": "Scheduler",
    "worker_pool": "WorkerPool",
    "acceptance/gate worker": "Worker",
    "scanner": "Scanner",
    "zombie_collector": "ZombieCollector",
    "http": "HttpServer",
}


@pytest.fixture
def busy(start_node: StartNode, work: Work, gates: Gates) -> NodeProcess:
    """A node whose only worker is in a step of `held`, with three more tasks in its hands."""
    node = start_node(node={"drain_timeout": 60})
    return occupy(node, work, gates)


def occupy(node: NodeProcess, work: Work, gates: Gates) -> NodeProcess:
    gates.hold("held")
    work.add("held")
    gates.await_step("held")
    work.add("a", "b", "c")
    eventually(lambda: work.running() == ["a", "b", "c", "held"])
    return node


def begin_to_drain(node: NodeProcess) -> None:
    """The first SIGTERM, until it shows."""
    node.send(signal.SIGTERM)
    eventually(lambda: node.get("/ready").status == 503)


def test_sigterm_hands_back_what_did_not_begin_and_lets_the_step_end(
    busy: NodeProcess, work: Work, gates: Gates
) -> None:
    begin_to_drain(busy)
    assert "the node is stopping" in busy.get("/health").body
    eventually(lambda: work.waiting() == ["a", "b", "c"])
    assert work.running() == ["held"]
    assert work.done() == []
    gates.open("held")
    assert busy.wait() == 0
    assert work.done() == ["held"]
    assert work.running() == []
    assert work.waiting() == ["a", "b", "c"]
    assert work.statuses() == {"held": "finished", "a": "waiting", "b": "waiting", "c": "waiting"}
    assert work.nodes() == 0
    assert not re.search("Traceback|ERROR", busy.errors)


def test_what_was_handed_back_is_done_by_the_next_node(
    busy: NodeProcess, start_node: StartNode, work: Work, gates: Gates
) -> None:
    begin_to_drain(busy)
    gates.open("held")
    assert busy.wait() == 0
    node = start_node()
    eventually(lambda: sorted(work.done()) == ["a", "b", "c", "held"])
    assert node.stop(signal.SIGINT) == 0
    assert work.nodes() == 0


def test_a_step_that_hangs_is_given_up_after_the_drain_timeout(
    start_node: StartNode, database: Database, work: Work, gates: Gates
) -> None:
    node = occupy(start_node(node={"drain_timeout": 0.5}), work, gates)
    assert node.stop() == 0
    assert work.running() == ["held"]
    assert work.waiting() == ["a", "b", "c"]
    assert work.nodes() == 0
    gates.remove("held")
    with Node.from_config(config(database.conninfo, gates.directory)):
        eventually(lambda: sorted(work.done()) == ["a", "b", "c", "held"])


def test_a_second_sigterm_stops_at_once(busy: NodeProcess, work: Work) -> None:
    begin_to_drain(busy)
    assert busy.stop() == 1
    assert busy.errors.endswith("progressor-node: stopped at once\n")
    assert "held" in work.running()


def test_sigusr1_shows_every_actor_and_the_node_lives_on(busy: NodeProcess, work: Work, gates: Gates) -> None:
    busy.send(signal.SIGUSR1)
    dump = r"^(.+) \((\w+)\), mailbox \d+\n((?:  .*\n)+)"
    shown = eventually(
        lambda: actors if len(actors := re.findall(dump, busy.errors, re.MULTILINE)) >= len(ACTORS) else []
    )
    assert {name: kind for name, kind, _ in shown} == ACTORS
    assert all('  File "' in stack for _, _, stack in shown)
    assert "gate.read_bytes()" in next(stack for name, _, stack in shown if name.endswith(" worker"))
    gates.open("held")
    eventually(lambda: sorted(work.done()) == ["a", "b", "c", "held"])
    assert busy.stop() == 0


def dumped(node: NodeProcess) -> list[tuple[str, str, str]]:
    """Name, class and stack of each actor."""
    return re.findall(r"^(.+) \((\w+)\), mailbox \d+\n((?:  .*\n)+)", node.errors, re.MULTILINE)


@pytest.fixture
def fleet(start_node: StartNode) -> NodeProcess:
    return start_node("--processes", "2", node={"drain_timeout": 60})


def test_signals_to_a_parent_reach_its_engine_processes(fleet: NodeProcess, work: Work, gates: Gates) -> None:
    gates.hold("held")
    work.add("held")
    gates.await_step("held")
    fleet.send(signal.SIGUSR1)
    eventually(lambda: len(re.findall(r"^scheduler \(Scheduler\), mailbox \d+$", fleet.errors, re.MULTILINE)) == 2)
    fleet.send(signal.SIGTERM)
    eventually(lambda: fleet.refuses_connections)
    assert fleet.stop() == 1
    assert not any(map(is_alive, fleet.engine_processes()))
    assert work.running() == ["held"]
