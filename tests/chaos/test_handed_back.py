"""What a stopping node has handed back keeps its place in the order of its process."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests import invariants
from tests.chaos.cluster import SINGLE, Cluster, order, query, said
from tests.conftest import Database
from tests.eventually import eventually


@pytest.fixture
def cluster(database: Database) -> Iterator[Cluster]:
    """Nodes that seldom look for what others have left."""
    with Cluster(database.conninfo, defaults={"call_scan_timeout": 4}) as cluster:
        yield cluster


@pytest.mark.parametrize("kind", ["init", "call"])
def test_a_call_waits_for_what_was_accepted_before_it(cluster: Cluster, kind: str) -> None:
    (stopping,) = cluster.start("stopping")
    live, connection = cluster.live(), cluster.connect()
    client = stopping.client
    client.init(ns=SINGLE, id="busy")
    if kind == "call":
        client.init(ns=SINGLE, id="p")
    cluster.hold("stopping", "busy", "call")
    cluster.background(client.call, ns=SINGLE, id="busy")
    cluster.await_step("stopping", "busy", "call")
    verb = client.init if kind == "init" else client.call
    cluster.background(verb, ns=SINGLE, id="p", args=order(say="first"))
    runs = "select 1 from {running} where process_id = 'p' and task_type = %s::task_type"
    eventually(lambda: query(connection, SINGLE, runs, kind))
    stopping.signal(signal.SIGTERM)
    eventually(lambda: query(connection, SINGLE, "select 1 from {schedule} where process_id = 'p'"))
    second = live.client.future.call(ns=SINGLE, id="p", args=order(say="second"))
    assert second.result(15) == (b"second:2" if kind == "init" else b"second:3")
    wanted = [("init", "first")] if kind == "init" else [("init", ""), ("call", "first")]
    assert said(connection, SINGLE, "p") == [*wanted, ("call", "second")]
    cluster.let_go("stopping", "busy", "call")
    assert stopping.process.wait(20) == 0
    invariants.settle(connection, SINGLE, one_event_a_task=True)
