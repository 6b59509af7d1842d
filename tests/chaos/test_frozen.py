"""Nodes and servers that stand still: SIGSTOP, networks that swallow everything, a database that stalls."""

from __future__ import annotations

from threading import Event
from typing import Any

import pytest

from progressor import Event as ProcessEvent
from progressor import Node, Process, SetTimer, now, seconds
from progressor.errors import ProcessorError, RequestTimeout
from progressor.storage.embedded import EmbeddedPostgres
from progressor.storage.session import SILENT_CLIENT
from tests import invariants
from tests.chaos.cluster import (
    AGAIN,
    LEASE,
    NAMESPACES,
    NS,
    TAKEOVER,
    Cluster,
    Connection,
    frozen_server,
    order,
    query,
    said,
    status,
)
from tests.chaos.proxy import Loss
from tests.conftest import FAST_SETTINGS
from tests.eventually import eventually

BIG = 40
FENCED = "progressor_fenced_completions_total"


def epochs(connection: Connection) -> dict[str, int]:
    return dict(connection.execute("select node_name, epoch from progressor_nodes order by epoch").fetchall())


def picture(connection: Connection, ns: str, *processes: str) -> list[Any]:
    """All that the database knows of some processes."""
    return [
        query(connection, ns, f"select * from {{{table}}} where process_id = any(%s) order by 1, 2, 3", list(processes))
        for table in ("processes", "tasks", "events", "schedule", "running")
    ]


def test_a_node_that_was_frozen_beyond_its_lease_changes_nothing_and_works_on(cluster: Cluster) -> None:
    (frozen,) = cluster.start("frozen")
    live, connection = cluster.live(), cluster.connect()
    before = epochs(connection)
    for ns, process_id in ((NS, "fails"), (AGAIN, "again")):
        frozen.client.init(ns=ns, id=process_id)
        cluster.hold("frozen", process_id, "call")
        cluster.background(frozen.client.call, ns=ns, id=process_id, args=order(say="call"))
        cluster.await_step("frozen", process_id, "call")
    frozen.client.init(ns=NS, id="loops", args=order(loop=0.01, until=150))
    frozen.freeze()
    eventually(lambda: status(connection, NS, "fails") == ("error", "zombie detected"), TAKEOVER)
    eventually(lambda: said(connection, AGAIN, "again") == [("init", ""), ("call", "call")])
    eventually(lambda: len(said(connection, NS, "loops")) == 150)
    seen = picture(connection, NS, "fails", "loops"), picture(connection, AGAIN, "again")
    cluster.let_go("frozen", "fails", "call")
    cluster.let_go("frozen", "again", "call")
    frozen.thaw()
    eventually(lambda: epochs(connection).get("frozen", 0) > max(before.values()))
    eventually(lambda: frozen.metric(FENCED, prg_namespace=NS) >= 1)
    eventually(lambda: frozen.metric(FENCED, prg_namespace=AGAIN) >= 1)
    assert (picture(connection, NS, "fails", "loops"), picture(connection, AGAIN, "again")) == seen
    frozen.client.init(ns=NS, id="new")
    assert frozen.client.call(ns=NS, id="new", args=order(say="again")) == b"again:2"
    assert cluster.began("frozen", "new", "call") == 1
    assert frozen.client.call(ns=AGAIN, id="again", args=order(say="more")) == b"more:3"
    assert live.client.call(ns=NS, id="new") == b":3"
    eventually(lambda: frozen.get("/health")[0] == 200)
    for ns in (NS, AGAIN):
        invariants.settle(connection, ns, one_event_a_task=True)
    assert frozen.stop() == 0


def test_callers_of_a_frozen_node_are_answered_when_it_wakes_up(cluster: Cluster) -> None:
    """Their tasks have ended elsewhere, under another epoch."""
    (frozen,) = cluster.start("frozen")
    cluster.live()
    connection = cluster.connect()
    frozen.client.init(ns=AGAIN, id="p")
    cluster.hold("frozen", "p", "call")
    first = cluster.background(frozen.client.call, ns=AGAIN, id="p", args=order(say="first"))
    cluster.await_step("frozen", "p", "call")
    second = cluster.background(frozen.client.call, ns=AGAIN, id="p", args=order(say="second"))
    eventually(lambda: query(connection, AGAIN, "select 1 from {schedule}"))
    frozen.freeze()
    eventually(lambda: len(said(connection, AGAIN, "p")) == 3, TAKEOVER)
    frozen.thaw()
    assert (first.result(5), second.result(5)) == (b"first:2", b"second:3")
    cluster.let_go("frozen", "p", "call")
    eventually(lambda: frozen.metric(FENCED) == 1)
    assert said(connection, AGAIN, "p") == [("init", ""), ("call", "first"), ("call", "second")]


def test_nodes_that_were_frozen_together_do_not_declare_each_other_dead(cluster: Cluster) -> None:
    """A machine that sleeps: everybody's lease has expired, and nobody is dead."""
    nodes = cluster.start("one", "two")
    connection = cluster.connect()
    for node in nodes:
        node.client.init(ns=NS, id=node.name)
    before = epochs(connection)
    eventually(lambda: all(node.metric("progressor_lease_age_seconds") < 1 for node in nodes))
    calls = []
    for node in nodes:
        cluster.hold(node.name, node.name, "call")
        calls.append(cluster.background(node.client.call, ns=NS, id=node.name, args=order(say=node.name)))
        cluster.await_step(node.name, node.name, "call")
    _let_time_pass(connection, LEASE)  # so that both may declare others dead
    for node in nodes:
        node.freeze()
    _let_time_pass(connection, 1.5 * LEASE)
    for node in nodes:
        node.thaw()
    _let_time_pass(connection, LEASE)
    for node in nodes:
        cluster.let_go(node.name, node.name, "call")
    assert [call.result(5) for call in calls] == [b"one:2", b"two:2"]
    assert epochs(connection) == before


def test_a_database_that_stalls_beyond_the_leases_kills_nobody(postgres_bin: str | None) -> None:
    with (
        EmbeddedPostgres.start(bin_dir=postgres_bin, settings=FAST_SETTINGS) as server,
        Cluster(server.conninfo) as cluster,
    ):
        nodes = cluster.start("one", "two")
        connection = cluster.connect()
        for node in nodes:
            node.client.init(ns=NS, id=node.name)
        before = epochs(connection)
        calls = []
        for node in nodes:
            cluster.hold(node.name, node.name, "call")
            calls.append(cluster.background(node.client.call, ns=NS, id=node.name, args=order(say="x")))
        eventually(lambda: query(connection, NS, "select count(*) from {running}") == [(2,)])
        _let_time_pass(connection, 1.2 * LEASE)
        with frozen_server(server.pid):
            _let_time_pass(None, 1.5 * LEASE)
        _let_time_pass(connection, LEASE)
        for node in nodes:
            cluster.let_go(node.name, node.name, "call")
        for call in calls:
            assert call.result(5).startswith(b"x:")
        assert epochs(connection) == before
        invariants.check(connection, NS, one_event_a_task=True)


def test_a_node_behind_a_partition_is_replaced_and_comes_back(cluster: Cluster) -> None:
    proxy, conninfo = cluster.proxy()
    (away,) = cluster.start("away", conninfo=conninfo)
    live, connection = cluster.live(), cluster.connect()
    before = epochs(connection)
    away.client.init(ns=NS, id="loops", args=order(loop=0.01, until=150))
    for ns in (NS, AGAIN):
        away.client.init(ns=ns, id="called")
        cluster.hold("away", "called", "call")
    calls = [cluster.background(away.client.call, ns=ns, id="called", args=order(say="call")) for ns in (NS, AGAIN)]
    eventually(lambda: cluster.began("away", "called", "call") == 2)
    proxy.freeze()
    cluster.let_go("away", "called", "call")
    eventually(lambda: status(connection, NS, "called") == ("error", "zombie detected"), TAKEOVER + 2)
    eventually(lambda: said(connection, AGAIN, "called") == [("init", ""), ("call", "call")])
    eventually(lambda: len(said(connection, NS, "loops")) == 150)
    eventually(lambda: away.get("/health")[0] == 503)
    eventually(lambda: away.get("/ready")[0] == 503)
    seen = [picture(connection, ns, "called", "loops") for ns in (NS, AGAIN)]
    proxy.thaw()
    eventually(lambda: away.get("/health")[0] == 200, 15)
    with pytest.raises(ProcessorError, match="zombie detected"):
        calls[0].result(10)
    assert calls[1].result(10) == b"call:2"
    assert epochs(connection)["away"] > max(before.values())
    assert [picture(connection, ns, "called", "loops") for ns in (NS, AGAIN)] == seen
    assert away.client.call(ns=AGAIN, id="called", args=order(say="well")) == b"well:3"
    assert live.client.call(ns=AGAIN, id="called", args=order(say="well")) == b"well:4"
    for ns in (NS, AGAIN):
        invariants.settle(connection, ns, one_event_a_task=True)


def test_a_get_ends_in_its_time_though_nothing_comes_from_the_database(cluster: Cluster) -> None:
    proxy, conninfo = cluster.proxy()
    node = cluster.live("cut", conninfo)
    node.client.init(ns=NS, id="p")
    node.client.get(ns=NS, id="p")
    proxy.freeze("progressor default_front")
    waits = cluster.background(node.client.get, ns=NS, id="p", timeout=1)
    futures = [node.client.future.get(ns=NS, id="p", timeout=1) for _ in range(40)]  # more than there are threads
    for get in (waits, *futures):
        with pytest.raises(RequestTimeout, match=r"^timeout: the process was not read$"):
            get.result(10)
    proxy.thaw()
    assert node.client.get(ns=NS, id="p", timeout=10).last_event_id == 1


def test_a_result_that_is_heard_of_too_late_is_not_taken_for_ours(cluster: Cluster) -> None:
    """The commit that accepted a call is answered after another node has taken the call over, and after this node
    has got its new epoch."""
    proxy, conninfo = cluster.proxy()
    late = cluster.live("late", conninfo)
    cluster.live()
    connection = cluster.connect()
    before = epochs(connection)
    late.client.init(ns=AGAIN, id="p")
    proxy.lose("progressor writer", Loss.PATIENCE)
    call = late.client.future.call(ns=AGAIN, id="p", args=order(say="call"))
    eventually(lambda: query(connection, AGAIN, "select 1 from {running}"))
    proxy.freeze("progressor lease")
    eventually(lambda: said(connection, AGAIN, "p") == [("init", ""), ("call", "call")], TAKEOVER + 2)
    proxy.thaw("progressor lease")
    eventually(lambda: epochs(connection).get("late", 0) > max(before.values()))
    proxy.thaw("progressor writer")
    assert call.result(5) == b"call:2"
    assert cluster.began("late", "p", "call") == 0
    assert late.client.call(ns=AGAIN, id="p", args=order(say="more")) == b"more:3"
    eventually(lambda: _held(late) == 0)


def test_a_request_lost_on_the_way_back_from_the_lease_is_renewed(cluster: Cluster) -> None:
    """Sessions that break one after the other, while the database is well."""
    proxy, conninfo = cluster.proxy()
    node, connection = cluster.live("cut", conninfo), cluster.connect()
    before = epochs(connection)
    node.client.init(ns=NS, id="p")
    for number in range(2, 8):
        proxy.cut("progressor lease" if number % 2 else "")
        assert node.client.call(ns=NS, id="p", args=order(say="x")) == f"x:{number}".encode()
    assert epochs(connection) == before


def _held(node: Node) -> int:
    return sum(node.health([ns])[1][ns]["load"]["held"] for ns in NAMESPACES)


def _let_time_pass(connection: Connection | None, seconds: float) -> None:
    """What is waited for is time itself."""
    if connection is not None:
        connection.execute("select pg_sleep(%s)", [seconds])
        return
    Event().wait(seconds)


def test_a_node_that_does_not_read_its_answers_holds_no_locks_for_ever(cluster: Cluster) -> None:
    """Big answers fill the buffers of the network; the server waits in the middle of a transaction."""
    proxy, conninfo = cluster.proxy()
    deaf, connection = cluster.live("deaf", conninfo), cluster.connect()
    deaf.client.init(ns=NS, id="p")
    proxy.freeze_at_big_answer("progressor writer")
    at = now() + seconds(2)
    for n in range(BIG):
        made = Process(f"big{n}", aux_state=bytes(500_000), history=[ProcessEvent(b"{}")])
        deaf.client.put(ns=NS, id=f"big{n}", process=made, action=SetTimer(at))
    waits = "select 1 from pg_stat_activity where wait_event = 'ClientWrite' and datname = current_database()"
    eventually(lambda: connection.execute(waits).fetchall())
    proxy.freeze("progressor lease")
    cluster.live()
    eventually(lambda: query(connection, NS, "select count(*) from {events}") == [(1 + 2 * BIG,)], 20)
    invariants.check(connection, NS)
    proxy.thaw()
    assert deaf.client.call(ns=NS, id="p") == b":2"


def test_a_node_that_freezes_while_it_sends_a_batch_is_replaced(cluster: Cluster) -> None:
    """The server waits for the rest of a transaction that holds the lease's row."""
    proxy, conninfo = cluster.proxy()
    mute, connection = cluster.live("mute", conninfo), cluster.connect()
    mute.client.init(ns=NS, id="p")
    before = epochs(connection)["mute"]
    proxy.lose("progressor writer", Loss.VOICE)
    call = mute.client.future.call(ns=NS, id="p", args=order(say="x"))
    assert proxy.lost.wait(5)
    live = cluster.live()
    eventually(lambda: before not in epochs(connection).values(), TAKEOVER + SILENT_CLIENT)
    assert live.client.call(ns=NS, id="p", args=order(say="y")) == b"y:2"
    proxy.thaw()
    assert call.result(10) == b"x:3"
    invariants.settle(connection, NS, one_event_a_task=True)
