"""A node whose database goes away and comes back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from progressor.storage.embedded import EmbeddedPostgres
from tests.acceptance.nodes import NS, PATIENCE, Gates, NodeProcess, StartNode, Work
from tests.eventually import eventually

AWAY = "the lease was not renewed: the database is away"


@pytest.fixture(scope="module")
def own_server(postgres_bin: str | None) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres.start(bin_dir=postgres_bin, settings={"fsync": "off"}) as server:
        yield server


@pytest.fixture
def server(own_server: EmbeddedPostgres) -> EmbeddedPostgres:
    """A server that the test may stop."""
    if not own_server.running:
        own_server.restart()
    return own_server


@pytest.fixture
def work(server: EmbeddedPostgres) -> Work:
    return Work(server.conninfo)


@pytest.fixture
def node(server: EmbeddedPostgres, start_node: StartNode) -> Iterator[NodeProcess]:
    """Nothing that it says contains the password."""
    node = start_node("--log-level", "debug", conninfo=server.conninfo, node={"drain_timeout": 5})
    yield node
    assert server.password not in node.errors
    assert "Traceback" not in node.errors


def test_a_node_outlives_an_outage(server: EmbeddedPostgres, node: NodeProcess, work: Work, gates: Gates) -> None:
    gates.hold("over the outage")
    work.add("before", "over the outage")
    gates.await_step("over the outage")
    server.stop()
    health = eventually(lambda: page if (page := node.get("/health")).status == 503 else None, PATIENCE)
    assert health is not None
    assert health.json["status"] == "critical"
    assert AWAY in health.json["details"][NS]["problems"]
    assert (node.get("/ready").status, node.get("/ready").json) == (503, {"ready": False})
    gates.open("over the outage")

    server.restart()
    eventually(lambda: node.get("/health").status == 200, PATIENCE)
    eventually(lambda: node.get("/ready").status == 200, PATIENCE)
    work.add("after")
    eventually(lambda: sorted(work.done()) == ["after", "before", "over the outage"], PATIENCE)
    assert node.stop() == 0
    assert work.nodes() == 0


def test_a_node_stops_while_the_database_is_away(server: EmbeddedPostgres, node: NodeProcess) -> None:
    server.stop()
    eventually(lambda: node.get("/health").status == 503, PATIENCE)
    assert node.stop() == 0
