"""Everything at once, at random, for a while: nodes killed, frozen and started again, sessions ended, and clients who
keep trying. Afterwards the database must show that every request had one effect and nothing was lost.

The seed is printed; PROGRESSOR_CHAOS_SEED repeats it, as far as threads allow, PROGRESSOR_CHAOS_SECONDS lasts longer.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from concurrent.futures import Future
from functools import partial
from threading import Event
from typing import Any

from tests import invariants
from tests.chaos.cluster import AGAIN, LEASE, NS, Cluster, NodeProcess, order, query, until_acknowledged

SECONDS = float(os.environ.get("PROGRESSOR_CHAOS_SECONDS", "25"))
LOOPS, PROCESSES, CLIENTS = 6, 4, 6
TRY = 2.0


class Clients:
    """Each calls a few processes in turn, with keys; whoever answers, it asks any node until there is an answer."""

    def __init__(self, cluster: Cluster, nodes: list[Any], dice: random.Random) -> None:
        self.over, self.give_up = Event(), Event()
        self.answers: dict[str, bytes | str | None] = {}
        """By key: the response, or the text of the error."""
        self._nodes = nodes
        self.work: list[Future[None]] = []
        for n in range(CLIENTS):
            self.work.append(cluster.background(self._run, name=f"client{n}", dice=random.Random(dice.random())))

    def _run(self, name: str, dice: random.Random) -> None:
        for n in itertools.count():
            if self.over.is_set():
                return
            key, process_id = f"{name} {n}", f"p{dice.randrange(PROCESSES)}"
            self.answers[key] = until_acknowledged(partial(self._ask, key, process_id, dice), self.give_up.is_set)

    def _ask(self, key: str, process_id: str, dice: random.Random) -> bytes | None:
        verbs = dice.choice(self._nodes).client
        response: bytes | None = verbs.call(
            ns=AGAIN, id=process_id, args=order(say=key), idempotency_key=key, timeout=TRY
        )
        return response


def test_random_chaos(cluster: Cluster) -> None:
    seed = int(os.environ.get("PROGRESSOR_CHAOS_SEED") or random.randrange(2**32))
    print(f"seed {seed}")
    dice = random.Random(seed)
    nodes, live, connection = cluster.start("one", "two"), cluster.live(), cluster.connect()
    for n in range(PROCESSES):
        live.client.init(ns=AGAIN, id=f"p{n}")
    for n in range(LOOPS):
        live.client.init(ns=NS, id=f"loop{n}", args=order(loop=0.01 * (n % 3), until=10**6))
    clients = Clients(cluster, [*nodes, live], dice)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        Event().wait(dice.uniform(0.1, 1.0))
        dice.choices([_kill, _freeze, _end_sessions], [2, 2, 5])[0](cluster, dice.choice(nodes), dice)
        for ns in (NS, AGAIN):
            invariants.check(connection, ns, one_event_a_task=True)
    clients.over.set()
    for work in clients.work:
        work.result(30)
    for n in range(LOOPS):  # a loop that has reached its goal ends
        end = partial(live.client.call, ns=NS, id=f"loop{n}", args=order(until=0))
        until_acknowledged(end, lambda: False)
    for ns in (NS, AGAIN):
        invariants.settle(connection, ns, 20, one_event_a_task=True)
        assert query(connection, ns, "select process_id, detail from {processes} where status <> 'running'") == []
    text = """
        select t.idempotency_key, t.process_id, e.event_id from {tasks} t join {events} e
          on e.process_id = t.process_id and e.task_id = t.task_id where t.idempotency_key is not null"""
    effects = {key: f"{key}:{event_id}".encode() for key, _, event_id in query(connection, AGAIN, text)}
    assert effects == clients.answers
    ((turns,),) = query(connection, NS, "select count(*) from {events}")
    print(f"{len(effects)} calls, {turns} turns of loops")
    assert effects
    assert turns > 0
    assert [node.stop() for node in nodes] == [0, 0]


def _kill(cluster: Cluster, node: NodeProcess, dice: random.Random) -> None:
    node.kill()
    Event().wait(dice.choice([0.0, 0.5, LEASE + 1]))
    cluster.restart(node)


def _freeze(cluster: Cluster, node: NodeProcess, dice: random.Random) -> None:
    node.freeze()
    Event().wait(dice.choice([0.2, LEASE, 2 * LEASE]))
    node.thaw()


def _end_sessions(cluster: Cluster, node: NodeProcess, dice: random.Random) -> None:
    """Some sessions of all nodes."""
    with cluster.connect() as connection:
        text = """
            select pg_terminate_backend(pid) from pg_stat_activity
            where application_name like 'progressor%%' and datname = current_database() and random() < %s"""
        connection.execute(text, [dice.choice([0.1, 0.3, 1.0])])
