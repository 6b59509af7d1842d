"""The connection breaks in the moment of a commit: nobody knows whether it was done. There must be no double effect, no
lost task, and an answer for every caller."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, replace
from threading import Event as Flag
from typing import Any

import pytest

from progressor import Event, Node, Process
from progressor.errors import ProcessorError, RequestTimeout, StorageUnavailable
from progressor.storage.embedded import EmbeddedPostgres
from tests import invariants
from tests.chaos.cluster import LEASE, NS, Cluster, Connection, order, query, said, status
from tests.chaos.proxy import Loss, Proxy
from tests.conftest import fresh_database
from tests.eventually import eventually

WRITER = "progressor writer"
LOSSES = pytest.mark.parametrize("loss", [Loss.ANSWER, Loss.REQUEST], ids=["answer lost", "request lost"])
NUMBERS = itertools.count(1)


@dataclass
class Stage:
    """A node behind a proxy, and a process for a test."""

    cluster: Cluster
    proxy: Proxy
    node: Node
    connection: Connection
    id: str = ""

    @property
    def events(self) -> list[tuple[str, str]]:
        return said(self.connection, NS, self.id)

    @property
    def status(self) -> tuple[str, str | None] | None:
        return status(self.connection, NS, self.id)

    @property
    def waiting(self) -> int:
        return len(query(self.connection, NS, "select 1 from {schedule} where process_id = %s", self.id))

    def began(self, task_type: str) -> int:
        return self.cluster.began("cut", self.id, task_type)

    def call(self, key: str | None = None, **parts: Any) -> Future[bytes | None]:
        return self.node.client.future.call(ns=NS, id=self.id, args=order(**parts), idempotency_key=key)

    def call_and_hold(self, **parts: Any) -> Future[bytes | None]:
        """A call that stops in its middle, until `let_go`."""
        self.cluster.hold("cut", self.id, "call")
        call = self.call(**parts)
        self.cluster.await_step("cut", self.id, "call")
        return call

    def let_go(self) -> None:
        self.cluster.let_go("cut", self.id, "call")

    def lose(self, loss: Loss) -> None:
        self.proxy.lose(WRITER, loss)

    def check(self) -> None:
        assert self.proxy.lost.wait(5)
        invariants.settle(self.connection, NS, one_event_a_task=True)


@pytest.fixture(scope="module")
def shared(postgres_server: EmbeddedPostgres) -> Iterator[Stage]:
    with fresh_database(postgres_server) as database, Cluster(database.conninfo) as cluster:
        proxy, conninfo = cluster.proxy()
        yield Stage(cluster, proxy, cluster.live("cut", conninfo), cluster.connect())


@pytest.fixture
def stage(shared: Stage) -> Stage:
    stage = replace(shared, id=f"p{next(NUMBERS)}")
    stage.node.client.init(ns=NS, id=stage.id)
    return stage


@pytest.fixture(params=[None, "key"], ids=["unkeyed", "keyed"])
def key(request: pytest.FixtureRequest) -> str | None:
    return request.param and f"key {next(NUMBERS)}"


@LOSSES
def test_init(stage: Stage, loss: Loss, key: str | None) -> None:
    new = f"new {stage.id}"
    stage.lose(loss)
    stage.node.client.init(ns=NS, id=new, args=order(say="x"), idempotency_key=key)
    assert said(stage.connection, NS, new) == [("init", "x")]
    assert stage.node.client.call(ns=NS, id=new) == b":2"
    stage.check()


@LOSSES
def test_call(stage: Stage, loss: Loss, key: str | None) -> None:
    stage.lose(loss)
    assert stage.node.client.call(ns=NS, id=stage.id, args=order(say="x"), idempotency_key=key) == b"x:2"
    assert stage.events == [("init", ""), ("call", "x")]
    assert stage.began("call") == 1
    if key is not None:
        assert stage.node.client.call(ns=NS, id=stage.id, args=order(say="x"), idempotency_key=key) == b"x:2"
    stage.check()


@LOSSES
def test_notify(stage: Stage, loss: Loss, key: str | None) -> None:
    stage.lose(loss)
    task_id = stage.node.client.notify(ns=NS, id=stage.id, args=order(say="x"), idempotency_key=key)
    eventually(lambda: stage.events == [("init", ""), ("notify", "x")])
    assert query(stage.connection, NS, "select max(task_id) from {tasks}") == [(task_id,)]
    stage.check()


@LOSSES
def test_a_call_that_waits_behind_another(stage: Stage, loss: Loss, key: str | None) -> None:
    first = stage.call_and_hold(say="first")
    stage.lose(loss)
    second = stage.call(key, say="second")
    assert stage.proxy.lost.wait(5)
    third = stage.call(say="third")
    eventually(lambda: stage.waiting == 2)
    stage.let_go()
    assert [call.result(5) for call in (first, second, third)] == [b"first:2", b"second:3", b"third:4"]
    stage.check()


@LOSSES
@pytest.mark.parametrize("more", [0, 2], ids=["alone", "with calls behind it"])
def test_the_completion_of_a_call(stage: Stage, loss: Loss, more: int) -> None:
    calls = [stage.call_and_hold(say="x")]
    calls += [stage.call(say="x") for _ in range(more)]
    eventually(lambda: stage.waiting == more)
    stage.lose(loss)
    stage.let_go()
    assert [call.result(5) for call in calls] == [b"x:%d" % n for n in range(2, 3 + more)]
    assert stage.began("call") == 1 + more
    stage.check()


@LOSSES
@pytest.mark.parametrize(
    "what", [{"fail": "no"}, {"timer": 0.05}, {"timer": 0}, {"remove": 0}, {"remove": 0.05}], ids=str
)
def test_a_completion_and_what_it_brings(stage: Stage, loss: Loss, what: dict[str, Any]) -> None:
    call = stage.call_and_hold(**what)
    stage.lose(loss)
    stage.let_go()
    if "fail" in what:
        with pytest.raises(ProcessorError, match="no"):
            call.result(5)
        assert stage.status == ("error", "no")
    elif "remove" in what:
        assert call.result(5) == b":2"
        eventually(lambda: stage.status is None)
        stage.node.client.init(ns=NS, id=stage.id)
    else:
        assert call.result(5) == b":2"
        eventually(lambda: stage.events == [("init", ""), ("call", ""), ("timeout", "")])
    stage.check()


@LOSSES
def test_a_loop(stage: Stage, loss: Loss) -> None:
    stage.node.client.init(ns=NS, id="loop " + stage.id, args=order(loop=0, until=300))
    for number in range(1, 6):
        stage.lose(loss)
        assert stage.proxy.lost.wait(5), number
    eventually(lambda: len(said(stage.connection, NS, "loop " + stage.id)) == 300, 30)
    assert stage.cluster.began("cut", "loop " + stage.id, "timeout") == 299
    stage.check()


@LOSSES
def test_the_claim_of_a_timer(stage: Stage, loss: Loss) -> None:
    assert stage.node.client.call(ns=NS, id=stage.id, args=order(timer=0.7)) == b":2"
    stage.lose(loss)
    eventually(lambda: len(stage.events) == 3)
    assert stage.began("timeout") == 1
    stage.check()


@LOSSES
@pytest.mark.parametrize("verb", ["repair", "simple_repair"])
def test_what_changes_a_broken_process(stage: Stage, loss: Loss, key: str | None, verb: str) -> None:
    with pytest.raises(ProcessorError):
        stage.node.client.call(ns=NS, id=stage.id, args=order(fail="no"))
    stage.lose(loss)
    act: Callable[..., Any] = getattr(stage.node.client, verb)
    act(ns=NS, id=stage.id, idempotency_key=key)
    assert stage.status == ("running", None)
    stage.check()


@LOSSES
def test_a_removal(stage: Stage, loss: Loss, key: str | None) -> None:
    """Without a key it leaves no trace. A process that is there may be a new one: its caller has to look."""
    stage.lose(loss)
    in_doubt = key is None and loss is Loss.REQUEST
    with pytest.raises(RequestTimeout, match="get the process before") if in_doubt else nullcontext():
        stage.node.client.remove(ns=NS, id=stage.id, idempotency_key=key)
    assert stage.status == (("running", None) if in_doubt else None)
    stage.check()


@LOSSES
def test_a_removal_that_waits(stage: Stage, loss: Loss, key: str | None) -> None:
    call = stage.call_and_hold()
    stage.lose(loss)
    removal = stage.node.client.future.remove(ns=NS, id=stage.id, idempotency_key=key)
    assert stage.proxy.lost.wait(5)
    in_doubt = key is None and loss is Loss.REQUEST
    with pytest.raises(RequestTimeout, match="get the process before") if in_doubt else nullcontext():
        eventually(lambda: stage.waiting or removal.done())
        stage.let_go()
        removal.result(5)
    assert call.result(5) == b":2"
    assert stage.status == (("running", None) if in_doubt else None)
    stage.check()


@LOSSES
def test_a_put(stage: Stage, loss: Loss) -> None:
    """It has no task that could be found again, so its caller has to look."""
    new = f"new {stage.id}"
    stage.proxy.lose("progressor default_front_pool", loss)
    with pytest.raises(RequestTimeout, match="get the process before you put it again"):
        stage.node.client.put(ns=NS, id=new, process=Process(new, history=[Event(b"x")]))
    assert status(stage.connection, NS, new) == (("running", None) if loss is Loss.ANSWER else None)
    stage.check()


@LOSSES
def test_many_at_once(stage: Stage, loss: Loss) -> None:
    calls = []
    for n in range(60):
        stage.node.client.future.init(ns=NS, id=f"{stage.id} {n}")
        calls += [stage.node.client.future.call(ns=NS, id=f"{stage.id} {n}", args=order(say=str(m))) for m in range(3)]
        if n % 20 == 10:
            stage.lose(loss)
    assert [call.result(10) for call in calls] == [b"%d:%d" % (m, m + 2) for _ in range(60) for m in range(3)]
    stage.check()


def test_a_request_whose_fate_is_unknown_for_long_is_no_zombie(stage: Stage) -> None:
    """This node started it, but does not know yet; its own zombie collector must not take it for an orphan."""
    stage.proxy.refuse(WRITER)
    stage.lose(Loss.ANSWER)
    call = stage.call(say="x")
    assert stage.proxy.lost.wait(5)
    _let_time_pass(2 * LEASE)
    stage.proxy.accept(WRITER)
    assert call.result(10) == b"x:2"
    assert stage.status == ("running", None)
    assert stage.began("call") == 1
    stage.check()


def test_a_request_in_doubt_goes_on_when_its_caller_has_given_up(stage: Stage) -> None:
    """`timeout` says that the outcome is unknown and the task goes on."""
    stage.proxy.refuse(WRITER)
    stage.lose(Loss.ANSWER)
    with pytest.raises(RequestTimeout):  # never StorageUnavailable, which would say that nothing was done
        stage.node.client.call(ns=NS, id=stage.id, args=order(say="x"), timeout=0.5)
    assert stage.proxy.lost.is_set()
    _let_time_pass(0.7)  # longer than the writer pauses between its attempts
    stage.proxy.accept(WRITER)
    eventually(lambda: stage.events == [("init", ""), ("call", "x")])
    _let_time_pass(1.5 * LEASE)
    assert stage.status == ("running", None)
    assert stage.node.client.call(ns=NS, id=stage.id) == b":3"
    stage.check()


def test_a_request_that_was_never_sent_is_not_carried_out_after_its_time(stage: Stage) -> None:
    stage.proxy.refuse(WRITER)
    stage.proxy.cut(WRITER)
    for text in ("in doubt", "never sent"):
        with pytest.raises((RequestTimeout, StorageUnavailable)):
            stage.node.client.call(ns=NS, id=stage.id, args=order(say=text), timeout=0.3)
    _let_time_pass(0.7)
    stage.proxy.accept(WRITER)
    stage.node.client.call(ns=NS, id=stage.id, args=order(say="x"))
    assert stage.events == [("init", ""), ("call", "in doubt"), ("call", "x")]


def _let_time_pass(seconds: float) -> None:
    """What is waited for is time itself."""
    Flag().wait(seconds)
