"""SIGTERM in the wrong moment: under full load, and without a database. (The right moments: tests/acceptance.)"""

from __future__ import annotations

import json

import pytest

from progressor import Event, Process, SetTimer, now, seconds
from progressor.storage.embedded import EmbeddedPostgres
from tests import invariants
from tests.chaos.cluster import LEASE, NS, Cluster, NodeProcess, query
from tests.conftest import FAST_SETTINGS
from tests.eventually import eventually

PROCESSES = 60


def node_with_loops(cluster: Cluster) -> NodeProcess:
    """A node, and processes that another one has left behind, with timers that will soon be due, and then often."""
    maker = cluster.live("maker")
    for n in range(PROCESSES):
        metadata = {"loop": 0.02 * (n % 2), "until": 10**6}
        made = Process(f"p{n}", metadata=metadata, history=[Event(b"{}")])
        maker.client.put(ns=NS, id=f"p{n}", process=made, action=SetTimer(now() + seconds(1)))
    maker.stop()
    (node,) = cluster.start("node")
    return node


@pytest.mark.parametrize("turn", range(2))
def test_a_node_that_stops_under_load_leaves_nothing_running(cluster: Cluster, turn: int) -> None:
    """Claims, completions and steps that go on at once are under way when it comes."""
    node = node_with_loops(cluster)
    connection = cluster.connect()
    eventually(lambda: query(connection, NS, "select count(*) from {events}")[0][0] > 500 + 50 * turn, 20)
    assert node.stop() == 0
    assert query(connection, NS, "select * from {running}") == []
    waiting = "select count(*), max(attempts_count) from {schedule} where status = 'waiting'"
    assert query(connection, NS, waiting) == [(PROCESSES, 0)]
    assert connection.execute("select * from progressor_nodes").fetchall() == []
    assert node.output.count("came too late") == 0
    invariants.check(connection, NS, one_event_a_task=True)


def test_without_its_database_a_node_is_critical_and_with_it_it_is_well(postgres_bin: str | None) -> None:
    with (
        EmbeddedPostgres.start(bin_dir=postgres_bin, settings=FAST_SETTINGS) as server,
        Cluster(server.conninfo, plain=True) as cluster,
    ):
        (node,) = cluster.start("node")
        eventually(lambda: node.get("/health")[0] == 200, 15)
        assert node.get("/ready")[0] == 200
        server.stop()
        eventually(lambda: node.get("/health")[0] == 503, LEASE + 5)
        answer = json.loads(node.get("/health")[1])
        assert answer["status"] == "critical"
        assert "database is away" in answer["details"][NS]["problems"][0]
        assert node.get("/ready")[0] == 503
        assert node.get("/metrics")[0] == 200
        server.restart()
        eventually(lambda: node.get("/health")[0] == 200, 15)
        server.stop()
        eventually(lambda: node.get("/health")[0] == 503, LEASE + 5)
        assert node.stop(15) == 0
        assert "Traceback" not in node.output
