"""The demonstration: payments on an embedded PostgreSQL, from their authorisation to their removal.

    make demo

Five payments, each with the trace of its tasks. What is shown is checked too: exit status 1 when something is not as
it should be. On a terminal there are colours, unless NO_COLOR is set.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from progressor import (
    Health,
    Node,
    ProcessNotFound,
    ProcessorError,
    ProcessStatus,
    ProgressorError,
    TaskStatus,
    TraceUnit,
)
from progressor.node import dev_config
from progressor.storage.embedded import EmbeddedPostgres

T = TypeVar("T")

NS = "default/payment"
APPROVAL_TIMEOUT, RETENTION = 1.0, 5.0
PATIENCE = 15.0
LATEST = 5.0
"""Seconds that a timer may be late on a machine that has much else to do."""

GOOD, REFUSED, UNRELIABLE, BROKEN = "4000000000000077", "4000000000000002", "4000000000000119", "4000000000000341"
PAYMENT = {"amount": 42, "currency": "EUR"}

COLOURS = {"finished": 32, "running": 32, "passing": 32, "waiting": 33, "error": 31, "critical": 31, "cancelled": 90}
METRICS = (
    "progressor_task_processing_duration_ms_count",
    "progressor_retries_total",
    "progressor_failures_total",
    "progressor_batch_size_count",
    "progressor_workers_free",
)


class NotAsExpected(Exception):
    """What the demonstration shows is not what it is meant to show."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Payments on an embedded PostgreSQL, from authorisation to removal.")
    parser.add_argument("--verbose", action="store_true", help="print the log of the node to stderr")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.CRITICAL)
    started = time.monotonic()
    try:
        with EmbeddedPostgres.start() as postgres:
            say(f"PostgreSQL {postgres.version} on {postgres.host}:{postgres.port}, gone when this ends")
            with Node.from_config(config(postgres)) as node:
                tell(Demo(node))
    except (NotAsExpected, ProgressorError) as error:
        print(f"demo: {error}\n--verbose prints the log of the node", file=sys.stderr)
        return 1
    say(f"\nAll as expected, in {time.monotonic() - started:.1f} s.")
    return 0


def config(postgres: EmbeddedPostgres) -> dict[str, Any]:
    """As `progressor-node --dev`, but payments are in a hurry."""
    found: dict[str, Any] = copy.deepcopy(dict(dev_config(postgres)))
    found["progressor"]["namespaces"][NS] = {
        "processor": {
            "client": "payment",
            "options": {"approval_timeout": APPROVAL_TIMEOUT, "retention": RETENTION},
        },
        "retry_policy": {"initial_timeout": 0.2, "backoff_coefficient": 2, "max_timeout": 2, "max_attempts": 5},
    }
    return found


def tell(demo: Demo) -> None:
    demo.goes_well()
    demo.nobody_objects()
    demo.bank_hangs_up()
    demo.is_refused()
    demo.breaks_and_is_repaired()
    demo.goes_when_kept_long_enough()
    demo.node_is_well()


class Demo:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._client = node.client

    def goes_well(self) -> None:
        title("A payment that goes well: authorised, approved by a call, captured; the customer asks for a receipt")
        self._init("good", GOOD)
        answer = self._client.call(ns=NS, id="good", args=js(type="approved"), idempotency_key="webhook 1")
        check("the answer to the webhook", answer, js(status="capturing"))
        again = self._client.call(ns=NS, id="good", args=js(type="approved"), idempotency_key="webhook 1")
        check("the answer to the same webhook, sent twice", again, answer)
        self._reaches("good", "completed")
        self._client.notify(ns=NS, id="good", args=js(email="anna@example.org"))
        self._wait("the receipt is sent", lambda: "receipt_sent" in self._events("good"))
        self._show("good")
        self._has_events("good", "authorised", "capturing", "completed", "receipt_sent")

    def nobody_objects(self) -> None:
        title(f"Nobody calls: the timer fires after {APPROVAL_TIMEOUT:g} s and captures")
        self._init("silent", GOOD)
        self._reaches("silent", "completed")
        self._show("silent")
        self._has_events("silent", "authorised", "completed")
        _, timeout, _ = self._client.trace(ns=NS, id="silent")
        late = (timeout.running or timeout.scheduled) - timeout.scheduled
        if not 0 <= late.total_seconds() < LATEST:
            raise NotAsExpected(f"the timer fired {late.total_seconds():.3f} s after it was due")
        say(f"  The timer fired {1000 * late.total_seconds():.0f} ms after it was due.")

    def bank_hangs_up(self) -> None:
        title("The bank hangs up twice: the step is tried again, after 0.2 and 0.4 s, as the retry policy says")
        self._init("retried", UNRELIABLE)
        self._client.call(ns=NS, id="retried", args=js(type="approved"))
        self._reaches("retried", "completed")
        self._show("retried")
        self._has_events("retried", "authorised", "capturing", "completed")
        failed = [u.retry_attempts for u in self._client.trace(ns=NS, id="retried") if u.status == TaskStatus.FINISHED]
        check("the failed attempts of init, call and timeout", failed, [0, 0, 2])

    def is_refused(self) -> None:
        title("A refused card: a business error, which the caller is told and the process keeps")
        try:
            self._client.init(ns=NS, id="refused", args=js(**PAYMENT, card=REFUSED))
        except ProcessorError as error:
            say(f"  init raised {type(error).__name__}: {error}")
        self._show("refused")
        self._is("refused", ProcessStatus.ERROR, "card refused")

    def breaks_and_is_repaired(self) -> None:
        title("The bank sends nonsense: a defect. The payment stops, until it is repaired with another card")
        self._init("broken", BROKEN)
        self._client.call(ns=NS, id="broken", args=js(type="approved"))
        self._wait("the payment breaks", lambda: self._status("broken") == ProcessStatus.ERROR)
        self._is("broken", ProcessStatus.ERROR, "KeyError: 'receipt'")
        say("  status error, detail KeyError: 'receipt'; repair with another card:")
        answer = self._client.repair(ns=NS, id="broken", args=js(card=GOOD))
        check("the answer to the repair", answer, js(status="capturing"))
        self._reaches("broken", "completed")
        self._show("broken")
        self._has_events("broken", "authorised", "capturing", "capturing", "completed")
        self._is("broken", ProcessStatus.RUNNING, None)

    def goes_when_kept_long_enough(self) -> None:
        title(f"Finished payments are kept for {RETENTION:g} s, then they are gone")
        self._wait("the finished payments are gone", lambda: self._ids() == ["refused"])
        try:
            self._client.get(ns=NS, id="good")
        except ProcessNotFound as error:
            say(f"  get raised {type(error).__name__}: {error}")
        say(f"  Left: {', '.join(self._ids())}; an error waits for its repair, or for somebody to remove it.")
        self._client.remove(ns=NS, id="refused")
        check("what is left after that", self._ids(), [])

    def node_is_well(self) -> None:
        title("Health and some of the metrics of the node")
        health, details = self._client.health_check([NS])
        say(f"  {paint(health)}  {json.dumps(details[NS])}")
        check("the health", health, Health.PASSING)
        lines = self._node.scrape().decode().splitlines()
        for line in (line for name in METRICS for line in lines if re.match(rf"{name}\b", line)):
            if NS in line or "{" not in line:
                say(f"  {line}")

    # Steps of a story

    def _init(self, name: str, card: str) -> None:
        answer = self._client.init(ns=NS, id=name, args=js(**PAYMENT, card=card), idempotency_key=f"init {name}")
        check(f"the answer to the init of {name}", answer, js(status="authorised"))

    def _reaches(self, name: str, status: str) -> None:
        """Asked by metadata, as an operator would."""

        def there() -> bool:
            page = self._client.list(ns=NS, metadata={"status": status}, id_prefix=name)
            return [process.process_id for process in page.items] == [name]

        self._wait(f"{name} is {status}", there)

    def _wait(self, what: str, happened: Callable[[], T]) -> T:
        deadline = time.monotonic() + PATIENCE
        while not (found := happened()):
            if time.monotonic() > deadline:
                raise NotAsExpected(f"not within {PATIENCE:g} s: {what}")
            time.sleep(0.02)
        return found

    def _ids(self) -> list[str]:
        return [process.process_id for process in self._client.list(ns=NS).items]

    def _status(self, name: str) -> str:
        return self._client.get(ns=NS, id=name).status

    def _events(self, name: str) -> list[str]:
        return [json.loads(event.payload)["type"] for event in self._client.get(ns=NS, id=name).history]

    def _has_events(self, name: str, *kinds: str) -> None:
        check(f"the events of {name}", self._events(name), list(kinds))

    def _is(self, name: str, status: ProcessStatus, detail: str | None) -> None:
        process = self._client.get(ns=NS, id=name)
        check(f"the status of {name}", (process.status, process.detail), (status, detail))

    def _show(self, name: str) -> None:
        units = self._client.trace(ns=NS, id=name)
        begin = min(unit.scheduled for unit in units)
        header = ("due", "begun", "task", "status", "failed", "events", "answer")
        table = [header, *(row(unit, begin) for unit in units)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for number, cells in enumerate(table):
            padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
            padded[3] = paint(padded[3])
            line = "  " + "  ".join(padded).rstrip()
            say(paint(line, 1) if number == 0 else line)


def row(unit: TraceUnit, begin: datetime) -> tuple[str, ...]:
    return (
        instant(unit.scheduled, begin),
        instant(unit.running, begin),
        unit.task_type,
        unit.status,
        str(unit.retry_attempts or ""),
        ", ".join(json.loads(event.payload)["type"] for event in unit.events),
        unit.error or (unit.response or b"").decode(),
    )


def instant(at: datetime | None, begin: datetime) -> str:
    return "" if at is None else f"+{(at - begin).total_seconds():.3f} s"


def check(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise NotAsExpected(f"{what}: expected {wanted!r}, found {found!r}")


def js(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def title(text: str) -> None:
    say(f"\n{paint(text, 1)}")


def say(text: str) -> None:
    print(text, flush=True)


def paint(text: str, code: int | None = None) -> str:
    """Coloured by what it says, on a terminal that may be."""
    code = COLOURS.get(text.strip()) if code is None else code
    plain = code is None or not sys.stdout.isatty() or "NO_COLOR" in os.environ
    return text if plain else f"\033[{code}m{text}\033[0m"


if __name__ == "__main__":
    sys.exit(main())
