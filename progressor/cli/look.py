"""What a node said of its health, taken apart for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from progressor.cli.table import NOTHING, cell
from progressor.model import Health


@dataclass(frozen=True, slots=True)
class Look:
    """What a node said, and when. `loads`: details of namespaces, by process of the node and namespace."""

    at: datetime
    status: Health
    details: Mapping[str, Any]

    @property
    def loads(self) -> Mapping[tuple[str, str], Mapping[str, Any]]:
        """With `--processes` the details of each process stand in those of its node."""
        found: dict[tuple[str, str], Mapping[str, Any]] = {}
        for name, details in self.details.items():
            if "details" in details:
                found |= {(name.removeprefix("process "), ns): load for ns, load in details["details"].items()}
            elif "problems" in details:
                found[details.get("node", NOTHING), name] = details
        return found

    @property
    def problems(self) -> Sequence[str]:
        """A line each."""
        silent = [f"{name}: {details['status']}" for name, details in self.details.items() if _is_silent(details)]
        told = [f"{ns} on {node}: {text}" for (node, ns), load in self.loads.items() for text in load["problems"]]
        return [cell(problem, longest=None) for problem in silent + told]


def _is_silent(details: Mapping[str, Any]) -> bool:
    """A process of the node that gave no answer."""
    return not details.keys() & {"details", "problems"}
