"""Processes that go on by themselves, and how far they have come."""

from __future__ import annotations

from bench.job import NS, Progress
from bench.meter import Figures
from progressor import Client, LocalClient


def init_all(client: LocalClient | Client, processes: int, args: bytes = b"") -> None:
    for future in [client.future.init(ns=NS, id=f"p{n}", args=args) for n in range(processes)]:
        future.result()


def steps_between(before: Progress, after: Progress) -> tuple[Figures, int]:
    """Steps a second and their share-out among the processes; how many steps in all."""
    steps = {name: after.events[name] - events for name, events in before.events.items()}
    total, fewest, most = sum(steps.values()), min(steps.values()), max(steps.values())
    spread = {"most / fewest": most / fewest} if fewest else {}
    figures = {
        "per_second": total / (after.at - before.at),
        "fewest steps": float(fewest),
        "most steps": float(most),
        **spread,
        "processes that did not advance": float(sum(not done for done in steps.values())),
    }
    return figures, total
