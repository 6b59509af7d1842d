"""kill -9 of a node in the middle of steps, one of each kind, while another node lives.

One node dies once, with a step of each kind in its hands; each test looks at what became of one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import pytest

from progressor import Node
from progressor.errors import ProcessAlreadyExists, ProcessInError, ProcessorError, ProgressorError
from progressor.storage.embedded import EmbeddedPostgres
from tests import invariants
from tests.chaos.cluster import (
    AGAIN,
    NS,
    SINGLE,
    TAKEOVER,
    Cluster,
    Connection,
    NodeProcess,
    order,
    query,
    said,
    status,
)
from tests.conftest import fresh_database
from tests.eventually import eventually

LOOP = 60
ANSWER_TIMEOUT = 10.0


@dataclass
class Scene:
    cluster: Cluster
    live: Node
    connection: Connection
    killed_at: datetime
    behind: dict[tuple[str, str], Future[Any]]
    """Calls of the live node that wait behind the step that was killed."""
    joined: dict[tuple[str, str], Future[Any]]
    """Requests of the live node with the idempotency keys of requests to the dead one."""

    def taken_over_after(self, ns: str, process_id: str, task_type: str) -> float:
        """Seconds, by the clock of the database."""
        text = "select running_time from {tasks} where process_id = %s and task_type = %s::task_type order by task_id"
        rows = eventually(lambda: query(self.connection, ns, text, process_id, task_type), TAKEOVER)
        at: datetime = rows[0][0]
        return (at - self.killed_at).total_seconds()

    def steps(self, process_id: str, task_type: str) -> tuple[int, int]:
        """How often the processor ran it, on the dead node and on the live one."""
        return self.cluster.began("victim", process_id, task_type), self.cluster.began("live", process_id, task_type)


@pytest.fixture(scope="module")
def scene(postgres_server: EmbeddedPostgres) -> Iterator[Scene]:
    with fresh_database(postgres_server) as database, Cluster(database.conninfo) as cluster:
        yield _kill(cluster)


def _kill(cluster: Cluster) -> Scene:
    (victim,) = cluster.start("victim")
    live, connection = cluster.live(), cluster.connect()
    for ns in (NS, AGAIN):
        _begin_all(cluster, victim, ns)
    _begin_removal(cluster, victim, connection)
    behind = {
        (ns, kind): live.client.future.call(ns=ns, id=named(ns, kind), args=order(say="behind"))
        for ns in (NS, AGAIN)
        for kind in ("init", "call", "timeout", "notify", "loop")
    }
    joined = {}
    for ns in (NS, AGAIN):
        verbs = live.client.future
        for kind, verb in (("init", verbs.init), ("call", verbs.call), ("repair", verbs.repair)):
            arguments: dict[str, Any] = {
                "ns": ns,
                "id": named(ns, kind),
                "args": order(say=kind),
                "idempotency_key": f"{kind} {ns}",
            }
            joined[ns, kind] = verb(**arguments)
    waiting = "select count(*) from {schedule} where task_type = 'call' and status = 'waiting'"
    eventually(lambda: all(query(connection, ns, waiting) == [(5,)] for ns in (NS, AGAIN)))
    ((killed_at,),) = connection.execute("select clock_timestamp()").fetchall()
    victim.kill()
    return Scene(cluster, live, connection, killed_at, behind, joined)


def _begin_all(cluster: Cluster, victim: NodeProcess, ns: str) -> None:
    """Steps of all kinds that have a processor, in the middle of it."""
    client, do = victim.client, cluster.background
    for kind in ("init", "call", "timeout", "notify", "repair"):
        cluster.hold("victim", named(ns, kind), kind)
    do(_quietly, action=client.init, ns=ns, id=named(ns, "init"), args=order(say="init"), idempotency_key=f"init {ns}")
    for kind in ("call", "notify", "repair"):
        client.init(ns=ns, id=named(ns, kind))
    do(_quietly, action=client.call, ns=ns, id=named(ns, "call"), args=order(say="call"), idempotency_key=f"call {ns}")
    client.notify(ns=ns, id=named(ns, "notify"), args=order(say="notify"))
    client.init(ns=ns, id=named(ns, "timeout"), args=order(timer=0))
    with pytest.raises(ProcessorError):
        client.call(ns=ns, id=named(ns, "repair"), args=order(fail="broken"))
    arguments = {"ns": ns, "id": named(ns, "repair"), "args": order(say="repair"), "idempotency_key": f"repair {ns}"}
    do(_quietly, action=client.repair, **arguments)
    client.init(ns=ns, id=named(ns, "loop"), args=order(loop=0, until=LOOP))
    cluster.hold("victim", named(ns, "loop"), "timeout")
    for kind in ("init", "call", "timeout", "notify", "repair"):
        cluster.await_step("victim", named(ns, kind), kind)
    cluster.await_step("victim", named(ns, "loop"), "timeout")


def _begin_removal(cluster: Cluster, victim: NodeProcess, connection: Connection) -> None:
    """A removal that is due, in the hands of a node whose one worker is busy."""
    client, do = victim.client, cluster.background
    client.init(ns=SINGLE, id="busy")
    cluster.hold("victim", "busy", "call")
    do(_quietly, action=client.call, ns=SINGLE, id="busy")
    cluster.await_step("victim", "busy", "call")
    do(_quietly, action=client.init, ns=SINGLE, id="doomed", args=order(remove=0))
    runs = "select 1 from {running} where process_id = %s and task_type = %s::task_type"
    eventually(lambda: query(connection, SINGLE, runs, "doomed", "init"))
    do(_quietly, action=client.init, ns=SINGLE, id="busier")
    cluster.hold("victim", "busier", "init")
    eventually(lambda: query(connection, SINGLE, runs, "busier", "init"))
    cluster.let_go("victim", "busy", "call")
    eventually(lambda: query(connection, SINGLE, runs, "doomed", "remove"))


def named(ns: str, kind: str) -> str:
    """The process whose step of this kind was killed."""
    return f"{kind}-{ns.rpartition('/')[2]}"


def _quietly(action: Any, **arguments: Any) -> None:
    """As a client of a node that will be killed."""
    try:
        action(**arguments)
    except (ConnectionError, ProgressorError):
        return


@pytest.mark.parametrize("kind", ["timeout", "notify", "loop"])
@pytest.mark.parametrize("ns", [NS, AGAIN])
def test_a_task_without_a_caller_goes_on_by_itself_on_the_other_node(scene: Scene, ns: str, kind: str) -> None:
    process_id, task_type = named(ns, kind), "timeout" if kind == "loop" else kind
    assert scene.behind[ns, kind].result(ANSWER_TIMEOUT).startswith(b"behind:")
    wanted = LOOP if kind == "loop" else 3
    eventually(lambda: len(said(scene.connection, ns, process_id)) >= wanted)
    assert status(scene.connection, ns, process_id) == ("running", None)
    assert scene.taken_over_after(ns, process_id, task_type) < TAKEOVER
    if kind != "loop":
        assert scene.steps(process_id, task_type) == (1, 1)
        events = said(scene.connection, ns, process_id)
        assert events == [("init", ""), (kind, kind if kind == "notify" else ""), ("call", "behind")]
    invariants.check(scene.connection, ns, one_event_a_task=True)


def test_a_loop_loses_nothing(scene: Scene) -> None:
    for ns in (NS, AGAIN):
        events = eventually(partial(loop_of, scene, ns))
        assert events.count(("timeout", "")) == LOOP - 2
        assert events.count(("call", "behind")) == 1


def loop_of(scene: Scene, ns: str) -> list[tuple[str, str]]:
    """The events of the loop, when it is over."""
    events = said(scene.connection, ns, named(ns, "loop"))
    return events if len(events) >= LOOP else []


@pytest.mark.parametrize("kind", ["init", "call"])
def test_a_task_with_a_caller_ends_in_error(scene: Scene, kind: str) -> None:
    process_id = named(NS, kind)
    with pytest.raises(ProcessorError, match="zombie detected"):
        scene.joined[NS, kind].result(ANSWER_TIMEOUT)
    with pytest.raises(ProcessInError):
        scene.behind[NS, kind].result(ANSWER_TIMEOUT)
    assert status(scene.connection, NS, process_id) == ("error", "zombie detected")
    assert scene.steps(process_id, kind) == (1, 0)
    assert said(scene.connection, NS, process_id) == [("init", "")] * (kind == "call")
    assert scene.taken_over_after(NS, process_id, kind) < TAKEOVER


def test_an_interrupted_repair_leaves_the_process_as_broken_as_it_was(scene: Scene) -> None:
    process_id = named(NS, "repair")
    with pytest.raises(ProcessorError, match="zombie detected"):
        scene.joined[NS, "repair"].result(ANSWER_TIMEOUT)
    assert status(scene.connection, NS, process_id) == ("error", "broken")
    assert scene.taken_over_after(NS, process_id, "repair") < TAKEOVER


@pytest.mark.parametrize("kind", ["init", "call", "repair"])
def test_a_task_with_a_caller_runs_again_where_the_namespace_says_so(scene: Scene, kind: str) -> None:
    process_id = named(AGAIN, kind)
    answer = scene.joined[AGAIN, kind].result(ANSWER_TIMEOUT)
    assert answer == (b"call:2" if kind == "call" else None)
    assert status(scene.connection, AGAIN, process_id) == ("running", None)
    assert scene.steps(process_id, kind) == (1, 2 if kind == "call" else 1)  # the call behind it
    assert said(scene.connection, AGAIN, process_id).count((kind, kind)) == 1
    assert scene.taken_over_after(AGAIN, process_id, kind) < TAKEOVER
    if kind != "repair":
        assert scene.behind[AGAIN, kind].result(ANSWER_TIMEOUT).startswith(b"behind:")


@pytest.mark.parametrize("ns", [NS, AGAIN])
def test_a_client_that_asks_once_more_gets_the_same_answer_and_no_second_effect(scene: Scene, ns: str) -> None:
    arguments: dict[str, Any] = {
        "ns": ns,
        "id": named(ns, "call"),
        "args": order(say="call"),
        "idempotency_key": f"call {ns}",
    }
    first, second = scene.joined[ns, "call"].exception(ANSWER_TIMEOUT), None
    try:
        assert scene.live.client.call(**arguments) == b"call:2"
    except ProcessorError as error:
        second = error
    assert repr(first) == repr(second)
    assert said(scene.connection, ns, named(ns, "call")).count(("call", "call")) == (ns == AGAIN)


def test_a_removal_is_done_by_the_other_node(scene: Scene) -> None:
    eventually(lambda: status(scene.connection, SINGLE, "doomed") is None, TAKEOVER)
    ((now,),) = scene.connection.execute("select clock_timestamp()").fetchall()
    if "doomed" not in {p for (p,) in query(scene.connection, SINGLE, "select process_id from {processes}")}:
        assert query(scene.connection, SINGLE, "select 1 from {events} where process_id = 'doomed'") == []
    assert now > scene.killed_at


def test_in_the_end_nothing_is_left_undone(scene: Scene) -> None:
    for ns in (NS, AGAIN, SINGLE):
        invariants.settle(scene.connection, ns, 15, one_event_a_task=True)


def test_a_process_can_be_made_and_called_where_it_failed(scene: Scene) -> None:
    with pytest.raises(ProcessAlreadyExists):
        scene.live.client.init(ns=NS, id=named(NS, "init"))
    scene.live.client.repair(ns=NS, id=named(NS, "init"), args=order(say="by hand"))
    assert scene.live.client.call(ns=NS, id=named(NS, "init"), args=order(say="well")) == b"well:2"
