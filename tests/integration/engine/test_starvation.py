"""Nobody waits because others work (docs/design.md, "A step", queued fairly behind what is ready already)."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from itertools import count

import psycopg
import pytest

from progressor import Event, Intent, Node, SetTimer, StepRequest, TaskType, now, seconds
from tests import stage
from tests.conftest import Database
from tests.eventually import eventually
from tests.stage import PATIENCE

LOOPING = 500
TIMERS = 2000
CLIENTS = 200


class Alarms:
    """Processes `t...` set a timer to the instant in their arguments, and note when it fires; others just begin."""

    def __init__(self) -> None:
        self.lateness: dict[str, list[float]] = defaultdict(list)

    def __call__(self, request: StepRequest, context: bytes) -> Intent:
        if request.task_type is TaskType.TIMEOUT:
            at = datetime.fromisoformat(context.decode())
            self.lateness[request.process.process_id].append((now() - at).total_seconds())
        elif request.args == b"timer":
            return Intent(action=SetTimer(datetime.fromisoformat(context.decode())))
        return Intent()


def test_timers_fire_while_clients_init_processes(database: Database) -> None:
    """2,000 timers due in the same second, 200 clients without a pause: each fires once, and none early."""
    alarms = Alarms()
    with stage.node(database, {"a/b": alarms}, defaults={"worker_pool_size": 200}) as node:
        init = partial(node.client.future.init, ns="a/b", args=b"timer")
        first = now() + seconds(6)
        instants = [first + seconds(n / TIMERS) for n in range(TIMERS)]
        for answer in [
            init(id=f"t{n}", context=at.isoformat().encode(), timeout=PATIENCE) for n, at in enumerate(instants)
        ]:
            answer.result()
        numbers, fired = count(), threading.Event()

        def client() -> None:
            while not fired.is_set():
                node.client.init(ns="a/b", id=f"c{next(numbers)}")

        with ThreadPoolExecutor(CLIENTS) as threads:
            clients = [threads.submit(client) for _ in range(CLIENTS)]
            try:
                eventually(lambda: len(alarms.lateness) == TIMERS, timeout=PATIENCE)
            finally:
                fired.set()
            for each in clients:
                each.result()
    with psycopg.connect(**database.conninfo) as connection:
        ((timers,),) = connection.execute(
            "select count(*) from \"a/b_tasks\" where task_type = 'timeout' and status = 'finished'"
        ).fetchall()
    assert timers == TIMERS
    assert all(len(late) == 1 and late[0] >= 0 for late in alarms.lateness.values())


class Loops:
    """Each step sets a timer to now, as long as it may; a call is answered."""

    def __init__(self) -> None:
        self.steps: Counter[str] = Counter()
        self.stop = threading.Event()

    def __call__(self, request: StepRequest, context: bytes) -> Intent:
        self.steps[request.process.process_id] += 1
        action = None if self.stop.is_set() else SetTimer(now())
        if request.task_type is TaskType.CALL:
            return Intent([Event(b"call")], response=b"here", action=action)
        return Intent(action=action)


@pytest.fixture(scope="module")
def loops() -> Loops:
    return Loops()


@pytest.fixture(scope="module")
def looping(shared_database: Database, loops: Loops) -> Iterator[Node]:
    """A node on which 500 processes loop with 200 workers."""
    settings = {"worker_pool_size": 200, "process_step_timeout": PATIENCE}
    with stage.node(shared_database, {"a/b": loops}, defaults=settings) as node:
        for init in [node.client.future.init(ns="a/b", id=f"p{n}") for n in range(LOOPING)]:
            init.result()
        try:
            yield node
        finally:
            loops.stop.set()


def test_of_many_that_loop_all_advance(looping: Node, loops: Loops) -> None:
    before = loops.steps.copy()
    eventually(lambda: all(loops.steps[f"p{n}"] > before[f"p{n}"] + 5 for n in range(LOOPING)), timeout=60)
    after = loops.steps - before
    assert max(after.values()) < 20 * min(after.values()), "some loop much faster than others"


def test_a_call_to_one_that_loops_is_answered(looping: Node, loops: Loops) -> None:
    for n in range(0, LOOPING, 100):
        assert looping.client.call(ns="a/b", id=f"p{n}") == b"here"
        history = looping.client.get(ns="a/b", id=f"p{n}").history
        assert [event.payload for event in history] == [b"call"]
    steps = loops.steps["p0"]
    eventually(lambda: loops.steps["p0"] > steps)


def test_a_new_process_is_served_among_those_that_loop(looping: Node, loops: Loops) -> None:
    looping.client.init(ns="a/b", id="new")
    assert looping.client.call(ns="a/b", id="new") == b"here"
    looping.client.remove(ns="a/b", id="new")
