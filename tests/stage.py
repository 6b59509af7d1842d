"""Nodes inside a test, with processors that the test writes as functions.

    with stage.node(database, {"a/b": script}) as node:
        node.client.init(ns="a/b", id="p", args=b"...")

A script takes the StepRequest and the context and returns an Intent or raises. `steps(...)` makes one of a
list of functions, one for each step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

from progressor import Intent, Node, StepRequest
from tests.conftest import Database

Script: TypeAlias = Callable[[StepRequest, bytes], Intent]

_SCRIPTS: dict[str, Script] = {}
_NUMBERS = itertools.count()

FAST_RETRIES = {"initial_timeout": 0.1, "backoff_coefficient": 1.0, "max_timeout": 1, "max_attempts": 2}


def process(request: StepRequest, options: Mapping[str, Any], context: bytes) -> Intent:
    """The processor of all scripts: `tests.stage:process`."""
    return _SCRIPTS[options["script"]](request, context)


def config(
    database: Database,
    scripts: Mapping[str, Script],
    *,
    node: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
    namespaces: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """A configuration for a test: few workers, short timeouts. `namespaces`: more keys, by namespace."""
    pools = {"default_pool": 4, "default_scan_pool": 2, "default_front_pool": 4}
    return {
        "progressor": {
            "drain_timeout": 10,
            **(node or {}),
            "defaults": {
                "worker_pool_size": 5,
                "process_step_timeout": 10,
                "task_scan_timeout": 1,
                "call_scan_timeout": 0.5,
                "retry_policy": FAST_RETRIES,
                **(defaults or {}),
            },
            "namespaces": {
                ns: {"processor": _processor(script), **(namespaces or {}).get(ns, {})}
                for ns, script in scripts.items()
            },
        },
        "databases": {
            "progressor_db": {
                "host": database.conninfo["host"],
                "port": database.conninfo["port"],
                "database": database.conninfo["dbname"],
                "username": database.conninfo["user"],
                "password": database.conninfo["password"],
            }
        },
        "pools": {name: {"database": "progressor_db", "size": size} for name, size in pools.items()},
    }


@contextmanager
def node(database: Database, scripts: Mapping[str, Script], **settings: Any) -> Iterator[Node]:
    """A running node; `settings` as in `config`."""
    with Node.from_config(config(database, scripts, **settings)) as running:
        yield running


def steps(*answers: Callable[[StepRequest], Intent]) -> Script:
    """A script that gives the n-th step of all to the n-th function; one step too many is a defect."""
    remaining = iter(answers)
    return lambda request, _: next(remaining)(request)


def _processor(script: Script) -> dict[str, Any]:
    name = f"script {next(_NUMBERS)}"
    _SCRIPTS[name] = script
    return {"client": "tests.stage:process", "options": {"script": name}}
