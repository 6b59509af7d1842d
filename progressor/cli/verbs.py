"""One function for each verb: asks the node, and gives its answer as a document and as text."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from progressor.cli import document
from progressor.cli.look import Look
from progressor.cli.table import NOTHING, pairs, readable, table
from progressor.client import Client
from progressor.model import Answered, Event, Health, Op, Process, SetTimer, TraceUnit, now

DONE, CRITICAL = 0, 1


def step(client: Client, given: argparse.Namespace) -> int:
    op = Op(given.verb.replace("-", "_"))
    answer = client.execute(
        op,
        ns=given.ns,
        id=given.id,
        args=given.args,
        context=given.context,
        range=given.range,
        idempotency_key=given.idempotency_key,
        timeout=given.timeout,
    )
    show(given, document.answered(answer), _answer(op, answer))
    return DONE


def get(client: Client, given: argparse.Namespace) -> int:
    found = client.get(
        ns=given.ns,
        id=given.id,
        range=given.range,
        cache=not given.no_cache,
        at_least_event_id=given.at_least_event,
        timeout=given.timeout,
    )
    show(given, document.process(found), _process(found))
    return DONE


def put(client: Client, given: argparse.Namespace) -> int:
    process = document.read_process(given.id, given.file)
    action = None if given.timer is None else SetTimer(given.timer, remove=given.remove)
    client.put(ns=given.ns, id=given.id, process=process, action=action, context=given.context)
    show(given, {}, None)
    return DONE


def trace(client: Client, given: argparse.Namespace) -> int:
    units = client.trace(ns=given.ns, id=given.id)
    show(given, [document.unit(unit) for unit in units], _trace(units))
    return DONE


def list_processes(client: Client, given: argparse.Namespace) -> int:
    page = client.list(
        ns=given.ns,
        status=given.status,
        metadata=given.metadata,
        id_prefix=given.prefix,
        created_from=given.created_from,
        created_to=given.created_to,
        status_changed_from=given.status_changed_from,
        status_changed_to=given.status_changed_to,
        limit=given.limit,
        cursor=given.cursor,
    )
    show(given, document.page(page), _list(page.items))
    if page.cursor is not None and not given.json:
        print(f"more: --cursor {page.cursor!r}", file=sys.stderr)
    return DONE


def health(client: Client, given: argparse.Namespace) -> int:
    look = Look(now(), *client.health_check(given.namespaces))
    show(given, {"status": look.status, "details": look.details}, "\n".join([look.status, *look.problems]))
    return DONE if look.status is Health.PASSING else CRITICAL


def show(given: argparse.Namespace, answer: Any, text: str | None) -> None:
    if given.json:
        print(json.dumps(answer))
    elif text is not None:
        print(text)


# Text


def _answer(op: Op, answer: Answered) -> str | None:
    if op is Op.NOTIFY:
        return str(answer.task_id)
    return None if answer.response is None else readable(answer.response)


def _process(found: Process) -> str:
    about = pairs(
        [
            ("process", found.process_id),
            ("status", found.status),
            ("since", found.status_changed_at),
            ("before", found.previous_status),
            ("created", found.created_at),
            ("detail", found.detail),
            ("broken by task", found.corrupted_by),
            ("state", found.aux_state),
            ("metadata", _json(found.metadata)),
            ("last event", found.last_event_id),
        ]
    )
    return f"{about}\n\n{_events(found.history)}" if found.history else about


def _events(history: Sequence[Event]) -> str:
    return table(
        ("EVENT", "TIME", "TASK", "METADATA", "PAYLOAD"),
        [(e.event_id, e.timestamp, e.task_id, _json(e.metadata), e.payload) for e in history],
    )


def _trace(units: Sequence[TraceUnit]) -> str:
    return table(
        ("TASK", "TYPE", "STATUS", "SCHEDULED", "RUNNING", "FINISHED", "FAILED", "EVENTS", "ARGS", "ANSWER"),
        [
            (
                unit.task_id,
                unit.task_type,
                unit.status,
                unit.scheduled,
                unit.running,
                unit.finished,
                unit.retry_attempts,
                _span(unit.events),
                unit.args,
                unit.response if unit.error is None else f"error: {unit.error}",
            )
            for unit in units
        ],
    )


def _span(events: Sequence[Event]) -> str:
    if not events:
        return NOTHING
    first, last = events[0].event_id, events[-1].event_id
    return str(first) if first == last else f"{first}..{last}"


def _list(items: Sequence[Process]) -> str:
    return table(
        ("PROCESS", "STATUS", "SINCE", "CREATED", "EVENTS", "METADATA", "DETAIL"),
        [
            (p.process_id, p.status, p.status_changed_at, p.created_at, p.last_event_id, _json(p.metadata), p.detail)
            for p in items
        ],
    )


def _json(metadata: Mapping[str, Any] | None) -> str | None:
    return json.dumps(metadata, ensure_ascii=False) if metadata else None
