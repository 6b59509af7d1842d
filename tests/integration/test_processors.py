"""The sample processors on a real database: what they promise to those who learn from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from processors.bank import Bank, Refusal
from processors.payment import Payment
from progressor import (
    Health,
    Node,
    Process,
    ProcessInError,
    ProcessNotFound,
    ProcessorError,
    ProcessStatus,
    StepRequest,
    TaskStatus,
    TaskType,
    TraceUnit,
)
from tests import stage
from tests.conftest import Database
from tests.eventually import eventually

NS = "a/b"
GOOD, REFUSED, UNRELIABLE, BROKEN = "4077", "4000 0002", "4000 0119", "4000 0341"
QUICK = {"approval_timeout": 0.2, "retention": 30}
PATIENT = {"approval_timeout": 30, "retention": 30}


@contextmanager
def running(database: Database, client: str, options: Mapping[str, Any] | None = None) -> Iterator[Node]:
    settings = stage.config(database, {})
    retries = {**stage.FAST_RETRIES, "max_attempts": 4}
    settings["progressor"]["namespaces"] = {
        NS: {"processor": {"client": client, "options": dict(options or {})}, "retry_policy": retries}
    }
    with Node.from_config(settings) as node:
        yield node


def js(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def pay(node: Node, card: str, **fields: Any) -> bytes | None:
    return node.client.init(ns=NS, id="p", args=js(amount=100, currency="EUR", card=card, **fields))


def kinds(process: Process) -> list[str]:
    return [json.loads(event.payload)["type"] for event in process.history]


def sees(node: Node, looks_right: Callable[[Process], bool]) -> Process:
    """The payment, as soon as it is what is waited for."""
    eventually(lambda: looks_right(node.client.get(ns=NS, id="p")))
    return node.client.get(ns=NS, id="p")


def becomes(node: Node, status: str) -> Process:
    return sees(node, lambda process: (process.metadata or {}).get("status") == status)


def breaks(node: Node) -> Process:
    return sees(node, lambda process: process.status == ProcessStatus.ERROR)


def timers(node: Node) -> list[TraceUnit]:
    return [unit for unit in node.client.trace(ns=NS, id="p") if unit.status == TaskStatus.WAITING]


def test_a_payment_is_captured_when_the_webhook_approves(database: Database) -> None:
    with running(database, "payment", PATIENT) as node:
        assert pay(node, GOOD) == js(status="authorised")
        assert node.client.call(ns=NS, id="p", args=js(type="approved")) == js(status="capturing")
        process = becomes(node, "completed")
        assert kinds(process) == ["authorised", "capturing", "completed"]
        assert [event.metadata for event in process.history] == [{"format_version": 1}] * 3
        state = json.loads(process.aux_state or b"")
        assert state == {
            "amount": 100,
            "currency": "EUR",
            "authorisation": state["authorisation"],
            "receipt": json.loads(process.history[-1].payload)["receipt"],
            "status": "completed",
        }


def test_a_payment_is_captured_when_nobody_objects(database: Database) -> None:
    with running(database, "payment", QUICK) as node:
        pay(node, GOOD)
        assert kinds(becomes(node, "completed")) == ["authorised", "completed"]


def test_a_declined_payment_is_not_captured_and_is_removed_later(database: Database) -> None:
    with running(database, "payment", PATIENT) as node:
        pay(node, GOOD)
        assert node.client.call(ns=NS, id="p", args=js(type="declined")) == js(status="declined")
        (timer,) = timers(node)
        assert timer.task_type is TaskType.REMOVE


@pytest.mark.parametrize("args", [b"", b"{", b"[]", js(type="refunded"), js(type=["approved"])])
def test_nonsense_in_a_webhook_changes_nothing(database: Database, args: bytes) -> None:
    with running(database, "payment", PATIENT) as node:
        pay(node, GOOD)
        assert node.client.call(ns=NS, id="p", args=args) == js(status="authorised", ignored=True)
        assert node.client.get(ns=NS, id="p").last_event_id == 1
        (timer,) = timers(node)
        assert timer.task_type is TaskType.TIMEOUT


def test_a_webhook_that_comes_too_late_changes_nothing(database: Database) -> None:
    with running(database, "payment", QUICK) as node:
        pay(node, GOOD)
        becomes(node, "completed")
        assert node.client.call(ns=NS, id="p", args=js(type="declined")) == js(status="completed", ignored=True)


def test_a_capture_is_tried_again_and_leaves_the_next_timer_all_its_attempts(database: Database) -> None:
    with running(database, "payment", QUICK) as node:
        pay(node, UNRELIABLE)
        becomes(node, "completed")
        init, capture, removal = node.client.trace(ns=NS, id="p")
        assert (init.retry_attempts, capture.retry_attempts, removal.retry_attempts) == (0, 2, 0)
        assert removal.task_type is TaskType.REMOVE


def test_a_refused_card_is_the_error_of_its_caller_and_can_be_repaired(database: Database) -> None:
    with running(database, "payment", PATIENT) as node:
        with pytest.raises(ProcessorError, match=r"^card refused$"):
            pay(node, REFUSED)
        process = node.client.get(ns=NS, id="p")
        assert (process.status, process.detail, process.last_event_id) == ("error", "card refused", 0)
        with pytest.raises(ProcessInError):
            node.client.call(ns=NS, id="p", args=js(type="approved"))
        with pytest.raises(ProcessorError, match=r"^missing: amount, currency$"):
            node.client.repair(ns=NS, id="p", args=js(card=GOOD))
        node.client.repair(ns=NS, id="p", args=js(amount=1, currency="EUR", card=GOOD))
        assert kinds(becomes(node, "completed")) == ["capturing", "completed"]


def test_a_defect_waits_for_a_repair_with_another_card(database: Database) -> None:
    with running(database, "payment", QUICK) as node:
        pay(node, BROKEN)
        assert breaks(node).detail == "KeyError: 'receipt'"
        node.client.repair(ns=NS, id="p")
        assert breaks(node).detail == "KeyError: 'receipt'", "the old card again"
        node.client.repair(ns=NS, id="p", args=js(card=GOOD))
        process = becomes(node, "completed")
        assert kinds(process)[-2:] == ["capturing", "completed"]
        assert (process.status, process.detail) == ("running", None)


def test_a_receipt_is_sent_and_the_timer_stays(database: Database) -> None:
    with running(database, "payment", PATIENT) as node:
        pay(node, GOOD)
        before = timers(node)
        node.client.notify(ns=NS, id="p", args=js(email="anna@example.org"))
        process = sees(node, lambda process: process.last_event_id == 2)
        assert json.loads(process.history[1].payload) == {
            "type": "receipt_sent",
            "to": "anna@example.org",
            "status": "authorised",
        }
        eventually(lambda: [t.task_id for t in timers(node)] == [t.task_id for t in before])


def test_a_finished_payment_is_removed_after_its_retention(database: Database) -> None:
    with running(database, "payment", {"approval_timeout": 0.1, "retention": 0.2}) as node:
        pay(node, GOOD)

        def gone() -> bool:
            return not node.client.list(ns=NS).items

        eventually(gone)
        with pytest.raises(ProcessNotFound):
            node.client.get(ns=NS, id="p")
        assert node.client.health_check([NS])[0] is Health.PASSING


def test_a_step_that_runs_twice_asks_the_bank_for_the_same(database: Database) -> None:
    payment = Payment(PATIENT)
    init = StepRequest(TaskType.INIT, js(amount=1, currency="EUR", card=GOOD), Process("p"), NS, task_id=7)
    first, second = (payment.process(init, {}, b"") for _ in range(2))
    assert first.aux_state == second.aux_state
    captures = [
        payment.process(StepRequest(TaskType.TIMEOUT, b"", Process("p", aux_state=first.aux_state), NS, task), {}, b"")
        for task in (8, 9)
    ]
    assert captures[0].aux_state == captures[1].aux_state


def test_the_bank_forgets_no_order_and_mixes_none_up() -> None:
    bank = Bank(failures=1)
    assert bank.authorise("k", GOOD) == bank.authorise("k", GOOD) != bank.authorise("l", GOOD)
    with pytest.raises(Refusal):
        bank.authorise("k", REFUSED)
    unreliable = bank.authorise("k", UNRELIABLE)
    with pytest.raises(ConnectionError):
        bank.capture("k", unreliable)
    assert bank.capture("k", unreliable) == bank.capture("k", unreliable)


def test_echo_remembers_what_it_is_told(database: Database) -> None:
    with running(database, "echo") as node:
        assert node.client.init(ns=NS, id="p", args=b"one") == b"one"
        assert node.client.call(ns=NS, id="p", args=b"\0\xff") == b"\0\xff"
        assert node.client.call(ns=NS, id="p") == b""
        history = node.client.get(ns=NS, id="p").history
        assert [(event.event_id, event.payload) for event in history] == [(1, b"one"), (2, b"\0\xff")]


def test_counter_counts(database: Database) -> None:
    with running(database, "counter") as node:
        assert node.client.init(ns=NS, id="p") == b"0"
        assert node.client.call(ns=NS, id="p") == b"1"
        assert node.client.call(ns=NS, id="p", args=b"-40") == b"-39"
        with pytest.raises(ProcessorError, match=r"^not a number: ten$"):
            node.client.call(ns=NS, id="p", args=b"ten")
        assert node.client.repair(ns=NS, id="p") == b"-39"
        process = node.client.get(ns=NS, id="p")
        assert (process.status, process.aux_state, process.last_event_id) == ("running", b"-39", 4)


def test_counter_ticks_by_itself(database: Database) -> None:
    with running(database, "counter", {"tick": 0.01}) as node:
        node.client.init(ns=NS, id="p", args=b"100")

        def counted() -> bool:
            return int(node.client.get(ns=NS, id="p").aux_state or b"0") >= 110

        eventually(counted)
        counts = [int(event.payload) for event in node.client.get(ns=NS, id="p").history]
        assert counts == list(range(100, 100 + len(counts)))
