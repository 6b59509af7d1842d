"""A running `progressor-node`: how it stops, what it tells, and what it does without its database."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from progressor import Event, Process, SetTimer, now, seconds
from progressor.storage.embedded import EmbeddedPostgres
from tests import invariants
from tests.chaos.cluster import LEASE, NS, SINGLE, Cluster, NodeProcess, query
from tests.conftest import FAST_SETTINGS, Database
from tests.eventually import eventually


@pytest.fixture
def cluster(database: Database) -> Iterator[Cluster]:
    with Cluster(database.conninfo, plain=True) as cluster:
        yield cluster


def node_with_timers(cluster: Cluster, ns: str, *processes: str, **metadata: Any) -> NodeProcess:
    """A node, and processes that another one has left behind with a timer that will soon be due."""
    maker = cluster.live("maker")
    for process_id in processes:
        made = Process(process_id, metadata=metadata, history=[Event(b"{}")])
        maker.client.put(ns=ns, id=process_id, process=made, action=SetTimer(now() + seconds(1)))
    maker.stop()
    (node,) = cluster.start("node")
    return node


def test_sigterm_lets_what_runs_end_and_hands_back_the_rest(cluster: Cluster) -> None:
    cluster.hold("node", "p0", "timeout")
    for n in range(1, 6):
        cluster.hold("node", f"p{n}", "timeout")
    node = node_with_timers(cluster, SINGLE, *(f"p{n}" for n in range(6)))
    connection = cluster.connect()
    runs = "select process_id from {running}"
    eventually(lambda: len(query(connection, SINGLE, runs)) == 6)
    (working,) = eventually(lambda: [f"p{n}" for n in range(6) if cluster.began("node", f"p{n}", "timeout")])
    node.signal(signal.SIGTERM)
    eventually(lambda: query(connection, SINGLE, runs) == [(working,)])
    eventually(lambda: node.get("/ready")[0] == 503)
    assert node.is_alive
    cluster.let_go("node", working, "timeout")
    assert node.process.wait(20) == 0
    assert query(connection, SINGLE, "select count(*) from {events} where process_id = %s", working) == [(2,)]
    text = "select t.status::text, count(*) from {tasks} t where t.task_type = 'timeout' group by 1 order by 1"
    assert query(connection, SINGLE, text) == [("waiting", 5), ("finished", 1)]
    assert query(connection, SINGLE, "select count(*) from {schedule} where status = 'waiting'") == [(5,)]
    assert query(connection, SINGLE, "select count(*) from {running}") == [(0,)]
    assert connection.execute("select * from progressor_nodes").fetchall() == []
    assert sum(cluster.began("node", f"p{n}", "timeout") for n in range(6)) == 1
    invariants.check(connection, SINGLE, owned=True, one_event_a_task=True)
    assert "Traceback" not in node.output


@pytest.mark.parametrize("turn", range(3))
def test_sigterm_under_load_leaves_nothing_running(cluster: Cluster, turn: int) -> None:
    """Claims, completions and steps that go on at once are under way when it comes."""
    node = node_with_timers(cluster, NS, *(f"p{n}" for n in range(60)), loop=10**6)
    connection = cluster.connect()
    query(connection, NS, 'update {processes} set metadata = \'{{"loop": 0.02, "until": 1000000}}\' returning 1')
    count = "select count(*) from {events}"
    eventually(lambda: query(connection, NS, count)[0][0] > 300 + 50 * turn, 20)
    assert node.stop() == 0
    assert query(connection, NS, "select * from {running}") == []
    assert query(connection, NS, "select count(*) from {schedule} where status = 'waiting'") == [(60,)]
    assert query(connection, NS, "select max(attempts_count) from {schedule}") == [(0,)]
    assert connection.execute("select * from progressor_nodes").fetchall() == []
    invariants.check(connection, NS, one_event_a_task=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_at_once(cluster: Cluster, number: signal.Signals) -> None:
    cluster.hold("node", "hangs", "timeout")
    node = node_with_timers(cluster, NS, "hangs")
    cluster.await_step("node", "hangs", "timeout")
    node.signal(number)
    eventually(lambda: node.get("/ready")[0] == 503)
    assert node.is_alive
    node.signal(number)
    assert node.process.wait(2) == 1
    assert "stopped at once" in node.output
    assert "Traceback" not in node.output


def test_a_step_that_hangs_does_not_outlive_the_drain_timeout(database: Database) -> None:
    with Cluster(database.conninfo, settings={"drain_timeout": 1}, plain=True) as cluster:
        cluster.hold("node", "hangs", "timeout")
        node = node_with_timers(cluster, NS, "hangs")
        cluster.await_step("node", "hangs", "timeout")
        assert node.stop(10) == 0
        live, connection = cluster.live(), cluster.connect()
        eventually(lambda: query(connection, NS, "select count(*) from {events}") == [(2,)])
        assert live.client.call(ns=NS, id="hangs") == b":3"


def test_sigusr1_prints_every_actor(cluster: Cluster) -> None:
    cluster.hold("node", "p", "timeout")
    node = node_with_timers(cluster, NS, "p")
    cluster.await_step("node", "p", "timeout")
    node.signal(signal.SIGUSR1)
    roles = ("LeaseKeeper", "Writer", "Listener", "Scheduler", "WorkerPool", "Worker", "Scanner", "ZombieCollector")
    eventually(lambda: "tests/chaos/processors.py" in node.output and "ZombieCollector" in node.output)
    found = re.findall(r"^(.+) \((\w+)\), mailbox \d+\n  File ", node.output, re.MULTILINE)
    assert set(roles) | {"Supervisor", "HttpServer"} == {actor for _, actor in found}
    assert "_pass_gate" in node.output, "the stack of the step that hangs"
    cluster.let_go("node", "p", "timeout")
    connection = cluster.connect()
    eventually(lambda: query(connection, NS, "select count(*) from {events}") == [(2,)])
    assert node.stop() == 0


def test_without_its_database_a_node_is_critical_until_it_is_back(postgres_bin: str | None) -> None:
    with (
        EmbeddedPostgres.start(bin_dir=postgres_bin, settings=FAST_SETTINGS) as server,
        Cluster(server.conninfo, plain=True) as cluster,
    ):
        (node,) = cluster.start("node")
        eventually(lambda: node.get("/health")[0] == 200)
        server.stop()
        eventually(lambda: node.get("/health")[0] == 503, LEASE + 5)
        answer = json.loads(node.get("/health")[1])
        assert answer["status"] == "critical"
        assert "database is away" in answer["details"][NS]["problems"][0]
        assert node.get("/ready")[0] == 503
        assert node.get("/metrics")[0] == 200
        server.restart()
        eventually(lambda: node.get("/health")[0] == 200, 15)
        assert node.get("/ready")[0] == 200
        assert node.stop() == 0


def test_a_node_without_its_database_stops_when_it_is_told_to(postgres_bin: str | None) -> None:
    with (
        EmbeddedPostgres.start(bin_dir=postgres_bin, settings=FAST_SETTINGS) as server,
        Cluster(server.conninfo, plain=True) as cluster,
    ):
        (node,) = cluster.start("node")
        server.stop()
        eventually(lambda: node.get("/health")[0] == 503, LEASE + 5)
        assert node.stop(15) == 0
        assert "Traceback" not in node.output
