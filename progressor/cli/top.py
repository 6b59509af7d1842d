"""`progressor top`: the load of namespaces, from the details of their health, again and again.

On a terminal each look is drawn over the last one. A node that is away is waited for, unless there is one look only.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Event
from typing import Any

from progressor.cli import document
from progressor.cli.complaint import complain
from progressor.cli.look import Look
from progressor.cli.table import table, time
from progressor.client import Client
from progressor.errors import ProgressorError
from progressor.model import now

RATES = ("steps", "retries", "failures")
TOTALS = ("failures", "zombies", "fenced")
HOME, SHOW_CURSOR, HIDE_CURSOR = "\033[H\033[J", "\033[?25h", "\033[?25l"


def top(client: Client, given: argparse.Namespace) -> int:
    if given.once:
        _print(given, _look(client, given), None)
        return 0
    with _screen() as begin:
        last: Look | None = None
        while True:
            try:
                look = _look(client, given)
                print(begin, end="")
                _print(given, look, last)
                last = look
            except ProgressorError as error:
                if given.json:
                    complain(given, error)
                else:
                    print(f"{begin}{time(now())} {error}", flush=True)
            Event().wait(given.interval)


@contextmanager
def _screen() -> Iterator[str]:
    """What to print before each look. It ends by an exception only."""
    is_terminal = sys.stdout.isatty()
    print(HIDE_CURSOR if is_terminal else "", end="")
    try:
        yield HOME if is_terminal else ""
    finally:
        print(SHOW_CURSOR if is_terminal else "", end="", flush=True)


def _look(client: Client, given: argparse.Namespace) -> Look:
    at = now()
    return Look(at, *client.health_check(given.namespaces))


def _print(given: argparse.Namespace, look: Look, last: Look | None) -> None:
    if given.json:
        shown = json.dumps({"at": document.instant(look.at), "status": look.status, "details": look.details})
    else:
        shown = view(look, last)
    print(shown, flush=True)


def view(look: Look, last: Look | None) -> str:
    """Text for one look; rates need a last one."""
    loads = look.loads
    rows = [_row(process, ns, load, _rates(look, last, (process, ns))) for (process, ns), load in loads.items()]
    heads = ("NAMESPACE", "NODE", "BUSY", "WORKERS", "READY", "OLDEST S", "HINTS", "CALLERS")
    return "\n\n".join(
        part
        for part in (
            f"{time(look.at)}  {look.status}",
            "\n".join(look.problems),
            table((*heads, *(f"{name.upper()}/S" for name in RATES), *map(str.upper, TOTALS)), rows),
            _leases(loads),
        )
        if part
    )


def _row(process: str, ns: str, load: Mapping[str, Any], rates: Mapping[str, float | None]) -> tuple[object, ...]:
    figures, totals, workers = load["load"], load["totals"], load["workers"]
    idle = figures.get("idle_workers")
    return (
        ns,
        process,
        None if idle is None else workers - idle,
        workers,
        figures.get("ready"),
        figures.get("oldest_ready"),
        figures.get("expected"),
        figures.get("waiting_callers"),
        *(rates[name] for name in RATES),
        *(totals[name] for name in TOTALS),
    )


def _rates(look: Look, last: Look | None, key: tuple[str, str]) -> Mapping[str, float | None]:
    """In a second; None without a last look, or when the node has begun anew since."""
    before = None if last is None else last.loads.get(key)
    now_ = look.loads[key]
    if last is None or before is None or any(now_["totals"][n] < before["totals"][n] for n in RATES):
        return dict.fromkeys(RATES)
    seconds = (look.at - last.at).total_seconds()
    return {name: (now_["totals"][name] - before["totals"][name]) / seconds for name in RATES}


def _leases(loads: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    nodes = {node["epoch"]: node for load in loads.values() for node in load["nodes"]}
    rows = [
        (node["name"], epoch, document.read_instant(node["started"]), node["seconds_left"])
        for epoch, node in sorted(nodes.items())
    ]
    return table(("LEASE OF", "EPOCH", "STARTED", "SECONDS LEFT"), rows) if rows else ""
