"""Many writers and readers on two nodes: what a reader sees was committed, whole, and is never older than before.

Each state of a process says in all its parts which one it is: the life of the process, its last event, and how many
steps it has seen in this life. So a mixture of two states would show, and of two states it is known which one is older.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from random import Random
from threading import Event as Flag
from typing import TypeAlias

import psycopg
import pytest

from progressor import (
    Event,
    Intent,
    LocalClient,
    Process,
    ProcessAlreadyExists,
    ProcessNotFound,
    Range,
    RequestTimeout,
    StepRequest,
)
from progressor.model import TaskType
from tests.conftest import Database
from tests.eventually import eventually
from tests.integration.cache.nodes import NS, Cached, cached_node, slots

SECONDS = 6.0
WRITERS, READERS, PROCESSES = 6, 4, 5
SMALL = 20_000
"""Bytes that do not hold all processes for long."""
State: TypeAlias = tuple[int, int, int]
"""Life, last event, steps."""
KILL = "select pg_terminate_backend(active_pid) from pg_replication_slots where database = current_database()"


class Steps:
    """The processor. It remembers every state that it asked to commit."""

    def __init__(self) -> None:
        self.asked: set[State] = set()
        self._lives = itertools.count(1)

    def __call__(self, request: StepRequest, _: bytes) -> Intent:
        if request.task_type is TaskType.INIT:
            life, last, steps = next(self._lives), 0, 0
        else:
            life, last, steps = state(request.process)
        number = int(request.args)
        after = life, last + number, steps + 1
        self.asked.add(after)
        events = [Event(b"%d:%d" % (life, n), {"life": life}) for n in range(last + 1, last + number + 1)]
        return Intent(events, b"%d:%d:%d" % after, {"steps": steps + 1}, response=b"%d" % life)


def state(process: Process) -> State:
    """What its aux_state says; its other parts must say the same."""
    life, last, steps = map(int, (process.aux_state or b"").split(b":"))
    assert (process.metadata, process.last_event_id) == ({"steps": steps}, last)
    return life, last, steps


def check_history(process: Process, wanted: Range, life: int, last: int) -> None:
    first = 1 if wanted.offset is None else min(wanted.offset, last) + 1
    expected = list(range(first, last + 1))[: wanted.limit]
    assert [event.event_id for event in process.history] == expected
    assert [event.payload for event in process.history] == [b"%d:%d" % (life, n) for n in expected]


class Run:
    def __init__(self, nodes: list[Cached], steps: Steps) -> None:
        self.nodes = nodes
        self.steps = steps
        self.over = Flag()

    def write(self, seed: int) -> None:
        random = Random(seed)
        while not self.over.is_set():
            client, reading = (random.choice(self.nodes).node.client for _ in range(2))
            name = f"p{random.randrange(PROCESSES)}"
            with suppress(ProcessNotFound, ProcessAlreadyExists):
                if random.random() < 0.05:
                    client.remove(ns=NS, id=name)
                elif random.random() < 0.1:
                    client.init(ns=NS, id=name, args=b"1")
                else:
                    self.call_and_read(client, reading, name, random.choice([0, 1, 1, 2, 10]))

    def call_and_read(self, client: LocalClient, reading: LocalClient, name: str, number: int) -> None:
        """What was answered is read on another node too, unless the process was removed meanwhile."""
        answer = client.execute("call", ns=NS, id=name, args=b"%d" % number)
        if answer.last_event_id is None:
            return
        life = int(answer.response or b"")
        try:
            least = answer.last_event_id
            process = reading.get(ns=NS, id=name, range=Range(limit=0), at_least_event_id=least, timeout=2)
        except RequestTimeout:
            process = reading.get(ns=NS, id=name, range=Range(limit=0), cache=False)
            assert state(process)[0] > life
        else:
            assert state(process)[:2] >= (life, answer.last_event_id)

    def read(self, seed: int) -> int:
        """On one node; how many answers there were."""
        random = Random(seed)
        client = self.nodes[seed % len(self.nodes)].node.client
        seen: dict[str, State] = {}
        answers = 0
        while not self.over.is_set():
            name = f"p{random.randrange(PROCESSES)}"
            wanted = random.choice([Range(), Range(limit=0), Range(random.randrange(30), random.randrange(5))])
            with suppress(ProcessNotFound):
                found = client.get(ns=NS, id=name, range=wanted)
                now = state(found)
                assert now in self.steps.asked
                assert now >= seen.get(name, now), f"{name}: {now} after {seen[name]}"
                check_history(found, wanted, *now[:2])
                seen[name] = now
                answers += 1
        return answers


@pytest.fixture
def nodes(database: Database) -> Iterator[tuple[list[Cached], Steps]]:
    steps = Steps()
    with ExitStack() as stack:
        yield (
            [
                stack.enter_context(cached_node(database, steps, cache_reconnect_timeout=100, cache_max_bytes=size))
                for size in (SMALL, 2**24)
            ],
            steps,
        )
    eventually(lambda: not slots(database))


def test_readers_of_two_nodes(nodes: tuple[list[Cached], Steps], database: Database) -> None:
    run = Run(*nodes)
    for n in range(PROCESSES):
        run.nodes[0].node.client.init(ns=NS, id=f"p{n}", args=b"1")
    with ThreadPoolExecutor(WRITERS + READERS) as pool, psycopg.connect(**database.conninfo, autocommit=True) as admin:
        writers = [pool.submit(run.write, n) for n in range(WRITERS)]
        readers = [pool.submit(run.read, n) for n in range(READERS)]
        for _ in range(3):
            run.over.wait(SECONDS / 3)
            admin.execute(KILL)
        run.over.wait(SECONDS / 3)
        run.over.set()
        for writer in writers:
            writer.result()
        assert all(reader.result() > 100 for reader in readers)
    for cached in run.nodes:
        cached.wait_connected()
        assert cached.health["reconnects"] >= 3
        assert cached.hits > 100
        for n in range(PROCESSES):
            eventually(partial(both_say_the_same, cached.node.client, f"p{n}"))


def both_say_the_same(client: LocalClient, name: str) -> bool:
    """Memory and database."""
    try:
        return client.get(ns=NS, id=name) == client.get(ns=NS, id=name, cache=False)
    except ProcessNotFound:
        return True
