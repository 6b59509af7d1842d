"""PostgreSQL crashes under load and comes back; the nodes live on. The server of these tests writes to its disk."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from threading import Event
from typing import Any

import pytest

from progressor.storage.embedded import EmbeddedPostgres
from tests import invariants
from tests.chaos.cluster import LEASE, NS, Cluster, NodeProcess, order, query, until_acknowledged
from tests.eventually import eventually

LOOPS, TURNS = 4, 300
STEP_TIMEOUT, SCAN = 2, 0.5
STALE = STEP_TIMEOUT + SCAN + 5
"""After this time somebody else's task is taken for a zombie, if nobody says that he looks after it."""


@pytest.fixture
def server(postgres_bin: str | None) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres.start(bin_dir=postgres_bin) as server:
        yield server


@dataclass
class Load:
    """Clients that make processes and call them, each request with a key, until they are acknowledged."""

    cluster: Cluster
    clients: list[Any]
    over: Event = field(default_factory=Event)
    acknowledged: dict[str, bytes | None] = field(default_factory=dict)
    work: list[Future[None]] = field(default_factory=list)

    def begin(self, names: int) -> None:
        for n in range(names):
            self.work.append(
                self.cluster.background(self._drive, name=f"c{n}", client=self.clients[n % len(self.clients)])
            )

    def end(self, timeout: float = 30) -> None:
        self.over.set()
        for work in self.work:
            work.result(timeout)

    def count(self) -> int:
        return len(self.acknowledged)

    def more(self, number: int = 20, timeout: float = 20) -> None:
        """Waits until that many more are acknowledged."""
        before = self.count()
        eventually(lambda: self.count() >= before + number, timeout)

    def _drive(self, name: str, client: Any) -> None:
        give_up = Event()
        for n in itertools.count():
            if self.over.is_set():
                return
            verb = client.init if n == 0 else client.call
            key = f"{name} {n}"
            arguments = {"ns": NS, "id": name, "args": order(say=key), "idempotency_key": key, "timeout": 3.0}
            self.acknowledged[key] = until_acknowledged(partial(verb, **arguments), give_up.is_set)


def check(cluster: Cluster, load: Load, nodes: list[NodeProcess]) -> None:
    connection = cluster.connect()
    invariants.settle(connection, NS, 30, one_event_a_task=True)
    assert query(connection, NS, "select process_id, detail from {processes} where status <> 'running'") == []
    text = """
        select t.idempotency_key, e.event_id from {tasks} t join {events} e on e.process_id = t.process_id
          and e.task_id = t.task_id where t.idempotency_key is not null"""
    effects = query(connection, NS, text)
    assert len(effects) == len({key for key, _ in effects})
    events: dict[str, int] = dict(effects)
    for key, answer in load.acknowledged.items():
        assert key in events, f"{key} was acknowledged and is lost"
        assert answer is None or answer == f"{key}:{events[key]}".encode()
    assert all(node.is_alive for node in nodes)


def test_a_crash_under_load_loses_nothing(server: EmbeddedPostgres) -> None:
    with Cluster(server.conninfo) as cluster:
        nodes = cluster.start("one", "two")
        live = cluster.live()
        for n in range(LOOPS):
            live.client.init(ns=NS, id=f"loop{n}", args=order(loop=0.005 * n, until=TURNS))
        load = Load(cluster, [live.client, nodes[0].client, nodes[1].client])
        load.begin(9)
        load.more(40)
        for seconds in (0.0, LEASE + 1):
            server.kill()
            Event().wait(seconds)
            server.restart()
            load.more(40)
        load.end()
        text = "select count(*) from {events} where process_id like 'loop%%'"
        with cluster.connect() as connection:
            eventually(lambda: query(connection, NS, text) == [(LOOPS * TURNS,)], 60)
        check(cluster, load, nodes)


def test_results_outlive_an_outage_that_is_longer_than_anything(server: EmbeddedPostgres) -> None:
    """Who is back first must not take the tasks of those who hold a result, or have some that wait for a worker."""
    settings = {"lease_timeout": 4 * LEASE}  # nobody is declared dead while one is slow
    defaults = {"process_step_timeout": STEP_TIMEOUT, "task_scan_timeout": SCAN, "worker_pool_size": 2}
    with Cluster(server.conninfo, settings=settings, defaults=defaults) as cluster:
        proxy, conninfo = cluster.proxy()
        (slow,), (quick,) = cluster.start("slow", conninfo=conninfo), cluster.start("quick")
        held = [(node, f"{node.name}{n}") for node in (slow, quick) for n in range(4)]
        for node, process_id in held:
            node.client.init(ns=NS, id=process_id)
            cluster.hold(node.name, process_id, "call")
        calls = [cluster.background(node.client.call, ns=NS, id=name, args=order(say="x")) for node, name in held]
        with cluster.connect() as connection:
            eventually(lambda: query(connection, NS, "select count(*) from {running}") == [(8,)])
        server.kill()
        proxy.refuse()
        for node, process_id in held:
            cluster.let_go(node.name, process_id, "call")
        Event().wait(STALE + 1)
        rounds = quick.metric("progressor_zombie_collection_duration_ms_count", prg_namespace=NS)
        server.restart()
        eventually(lambda: quick.get("/health")[0] == 200)
        eventually(
            lambda: quick.metric("progressor_zombie_collection_duration_ms_count", prg_namespace=NS) > rounds + 1
        )
        proxy.accept()
        load = Load(cluster, [slow.client, quick.client])
        load.begin(4)
        load.more(20)
        load.end()
        check(cluster, load, [slow, quick])
        with cluster.connect() as connection:
            text = """
                select count(*) from {events} e join {tasks} t using (task_id)
                where t.task_type = 'call' and t.idempotency_key is null"""
            assert query(connection, NS, text) == [(8,)]
        # Their callers waited for at most the step timeout.
        assert all(call.exception(1) is not None for call in calls)
