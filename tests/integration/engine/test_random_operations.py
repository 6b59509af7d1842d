"""Random operations on a few processes, against a small model of the semantics and the real database.

What they make known is published, and the model says that too.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from progressor import (
    Event,
    Intent,
    LocalClient,
    Process,
    ProcessAlreadyExists,
    ProcessInError,
    ProcessNotFound,
    ProcessorError,
    ProcessRunning,
    ProgressorError,
    Range,
    Remove,
    SetTimer,
    StepRequest,
    TaskType,
    UnsetTimer,
    now,
    seconds,
)
from tests import stage
from tests.conftest import Database
from tests.eventually import eventually
from tests.integration.engine.broker import Broker

NS = "a/b"
IDS = ("p", "q", "r 'x\" %s")
ACTIONS = ("none", "timer", "later", "unset")
_examples = itertools.count()


def script(request: StepRequest, context: bytes) -> Intent:
    """Does what its args say; a timeout fails while the aux_state says so."""
    if request.task_type is TaskType.TIMEOUT:
        if request.process.aux_state == b"bad":
            raise ProcessorError("bad timer")
        return Intent(events=[Event(b"timeout")])
    order: dict[str, Any] = json.loads(request.args)
    if order["fail"]:
        raise ProcessorError("as ordered")
    actions = {
        "none": None,
        "timer": SetTimer(now()),
        "later": SetTimer(now() + seconds(3600)),
        "unset": UnsetTimer(),
        "remove": Remove(),
    }
    return Intent(
        events=[Event(f"{request.task_type} {n}".encode(), {"n": n}) for n in range(order["events"])],
        aux_state=order["aux"].encode() if order["aux"] else None,
        metadata={"last": str(request.task_type)},
        response=f"{request.process.last_event_id}".encode(),
        action=actions[order["action"]],
    )


@dataclass
class Model:
    """What a process should be."""

    status: str = "init"
    events: list[bytes] = field(default_factory=list)
    aux: bytes | None = None
    metadata: dict[str, str] | None = None
    detail: str | None = None
    broken_by_timer: bool = False
    told: list[str] = field(default_factory=list)
    """What was made known of all processes of this id."""

    def step(self, kind: str, order: dict[str, Any]) -> None:
        self.recover()
        self.say(*[f"{kind} {n}".encode() for n in range(order["events"])])
        self.aux = order["aux"].encode() if order["aux"] else self.aux
        self.metadata = {"last": kind}

    def fire(self) -> None:
        """A timer that is due runs."""
        if self.aux == b"bad":
            self.fail("bad timer", by_timer=True)
        else:
            self.recover()
            self.say(b"timeout")
            self.broken_by_timer = False

    def fail(self, detail: str, *, by_timer: bool = False) -> None:
        self.status, self.detail, self.broken_by_timer = "error", detail, by_timer
        self.told.append(f"failed: {detail}")

    def recover(self) -> None:
        if self.status != "running":
            self.told.append("created" if self.status == "init" else "working")
        self.status, self.detail = "running", None

    def say(self, *payloads: bytes) -> None:
        for payload in payloads:
            self.events.append(payload)
            self.told.append(f"event {len(self.events)}")


orders = st.fixed_dictionaries(
    {
        "fail": st.sampled_from([False, False, False, True]),
        "events": st.integers(0, 3),
        "aux": st.sampled_from(["", "good", "bad"]),
        "action": st.sampled_from([*ACTIONS, "remove"]),
    }
)
ids = st.sampled_from(IDS)


class Operations(RuleBasedStateMachine):
    client: LocalClient
    database: Database
    broker: Broker

    def __init__(self) -> None:
        super().__init__()
        self.prefix = f"{next(_examples)} "
        self.models: dict[str, Model] = {}
        self.told: dict[str, list[str]] = {name: [] for name in IDS}

    @rule(id=ids, order=orders)
    def init(self, id: str, order: dict[str, Any]) -> None:
        if id in self.models:
            with pytest.raises(ProcessAlreadyExists):
                self.do(self.client.init, id, order)
            return
        model = self.models[id] = Model(told=self.told[id])
        self.expect(model, order, self.client.init, id, "init")

    @rule(id=ids, order=orders)
    def call(self, id: str, order: dict[str, Any]) -> None:
        if self.refused(id, "running", ProcessInError, self.client.call, order):
            return
        self.expect(self.models[id], order, self.client.call, id, "call")

    @rule(id=ids, order=orders)
    def notify(self, id: str, order: dict[str, Any]) -> None:
        order = {**order, "fail": False}
        if self.refused(id, "running", ProcessInError, self.client.notify, order):
            return
        self.do(self.client.notify, id, order)
        self.apply(self.models[id], id, "notify", order)

    @rule(id=ids, order=orders)
    def repair(self, id: str, order: dict[str, Any]) -> None:
        if self.refused(id, "error", ProcessRunning, self.client.repair, order):
            return
        model = self.models[id]
        if order["fail"]:
            with pytest.raises(ProcessorError, match="as ordered"):
                self.do(self.client.repair, id, order)
            return
        by_timer = model.broken_by_timer
        self.do(self.client.repair, id, order)
        self.apply(model, id, "repair", order)
        if by_timer and order["action"] == "none":
            model.fire()

    @rule(id=ids)
    def simple_repair(self, id: str) -> None:
        if id in self.models and self.models[id].status == "error":
            model = self.models[id]
            self.client.simple_repair(ns=NS, id=self.prefix + id)
            if model.broken_by_timer:
                model.fire()
            else:
                model.recover()
            return
        with pytest.raises(ProcessRunning if id in self.models else ProcessNotFound):
            self.client.simple_repair(ns=NS, id=self.prefix + id)

    @rule(id=ids)
    def remove(self, id: str) -> None:
        if id in self.models:
            self.client.remove(ns=NS, id=self.prefix + id)
            self.models.pop(id).told.append("removed")
            return
        with pytest.raises(ProcessNotFound):
            self.client.remove(ns=NS, id=self.prefix + id)

    @rule(id=ids, count=st.integers(0, 5), status=st.sampled_from(["running", "error"]), timer=st.booleans())
    def put(self, id: str, count: int, status: str, timer: bool) -> None:
        history = [Event(f"put {n}".encode()) for n in range(count)]
        process = Process(self.prefix + id, status=status, history=history, detail="imported")
        action = SetTimer(now()) if timer and status == "running" else None
        if id in self.models:
            with pytest.raises(ProcessAlreadyExists):
                self.client.put(ns=NS, id=self.prefix + id, process=process, action=action)
            return
        self.client.put(ns=NS, id=self.prefix + id, process=process, action=action)
        self.models[id] = Model(status, [e.payload for e in history], detail="imported", told=self.told[id])
        if action is not None:
            self.models[id].fire()

    @rule(id=ids, offset=st.none() | st.integers(0, 12), limit=st.none() | st.integers(0, 5), backward=st.booleans())
    def read(self, id: str, offset: int | None, limit: int | None, backward: bool) -> None:
        self.settle()
        if id not in self.models:
            return
        direction = "backward" if backward else "forward"
        found = self.client.get(ns=NS, id=self.prefix + id, range=Range(offset, limit, direction))
        numbered = list(enumerate(self.models[id].events, 1))
        if backward:
            wanted = [(n, p) for n, p in reversed(numbered) if offset is None or n < offset]
        else:
            wanted = [(n, p) for n, p in numbered if n > (offset or 0)]
        assert [(e.event_id, e.payload) for e in found.history] == wanted[:limit]

    @invariant()
    def every_process_is_as_the_model_says(self) -> None:
        self.settle()
        for name in IDS:
            model = self.models.get(name)
            if model is None:
                with pytest.raises(ProcessNotFound):
                    self.client.get(ns=NS, id=self.prefix + name)
                continue
            found = self.client.get(ns=NS, id=self.prefix + name)
            assert (found.status, found.detail) == (model.status, model.detail)
            assert (found.aux_state, found.metadata) == (model.aux, model.metadata)
            assert [e.payload for e in found.history] == model.events
            assert [e.event_id for e in found.history] == list(range(1, found.last_event_id + 1))

    @invariant()
    def what_happened_is_published(self) -> None:
        for name, told in self.told.items():
            self.broker.awaits(self.prefix + name, *told)

    def settle(self) -> None:
        """Waits until nothing runs and nothing is due."""
        query = """select (select count(*) from "a/b_running") + (select count(*) from "a/b_schedule"
                   where status = 'waiting' and scheduled_time <= clock_timestamp())"""
        with psycopg.connect(**self.database.conninfo, autocommit=True) as connection:
            eventually(lambda: connection.execute(query).fetchone() == (0,))

    def refused(
        self, id: str, needed: str, error: type[ProgressorError], verb: Callable[..., object], order: dict[str, Any]
    ) -> bool:
        """Whether the operation is not allowed now; then checks that it is refused."""
        self.settle()
        model = self.models.get(id)
        if model is not None and model.status == needed:
            return False
        with pytest.raises(ProcessNotFound if model is None else error):
            self.do(verb, id, order)
        return True

    def expect(self, model: Model, order: dict[str, Any], verb: Callable[..., object], id: str, kind: str) -> None:
        before = len(model.events)
        if order["fail"]:
            with pytest.raises(ProcessorError, match="as ordered"):
                self.do(verb, id, order)
            model.fail("as ordered")
            return
        assert self.do(verb, id, order) == str(before).encode()
        self.apply(model, id, kind, order)

    def apply(self, model: Model, id: str, kind: str, order: dict[str, Any]) -> None:
        if order["action"] == "remove":
            model.say(*[b""] * order["events"])
            self.models.pop(id).told.append("removed")
            return
        model.step(kind, order)
        model.broken_by_timer = False
        if order["action"] == "timer":
            model.fire()

    def do(self, verb: Callable[..., object], id: str, order: dict[str, Any]) -> object:
        return verb(ns=NS, id=self.prefix + id, args=json.dumps(order).encode())


@pytest.fixture
def machine(database: Database) -> Iterator[type[Operations]]:
    retries = {**stage.FAST_RETRIES, "max_attempts": 1}
    broker = Broker()
    with broker.node(database, {NS: script}, defaults={"retry_policy": retries}) as node:
        yield type("Machine", (Operations,), {"client": node.client, "database": database, "broker": broker})


def test_random_operations_do_what_the_model_does(machine: type[Operations]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
