"""Processors: an object with a method `process(request, options, context) -> Intent`, or a plain function like it.

One object serves all steps of a namespace, up to `worker_pool_size` at the same time, each in its own thread; with
`--processes` there is one in each engine process. So it must be thread-safe, and what belongs to a process of the
namespace belongs in its events and its aux_state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from progressor.model import Intent, StepRequest
from progressor.plugin import Plugin

Processor: TypeAlias = Callable[[StepRequest, bytes], Intent]
"""Runs one step: the request, and the context of its task."""

PROCESSOR = Plugin(
    "processor",
    "process",
    ("request", "options", "context"),
    {
        "echo": "processors.echo:Echo",
        "counter": "processors.counter:Counter",
        "payment": "processors.payment:Payment",
        "thrift": "progressor.rpc.remote:RemoteProcessor",
    },
)


def resolve(client: str, options: Mapping[str, Any]) -> Processor:
    """Raises ConfigError."""
    process = PROCESSOR.resolve(client, options)
    return lambda request, context: process(request, options, context)
