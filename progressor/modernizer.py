"""Modernizers: an object with a method `modernize(request, options, context) -> Event`, or a plain function like it.

It answers the event of the request in its newer representation: payload and metadata, with the `format_version` in
these. An answer of the same version is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from progressor.model import Event, ModernizeRequest
from progressor.plugin import Plugin

Modernize: TypeAlias = Callable[[ModernizeRequest, bytes], Event]
"""One event, and the context of whoever asked for it."""

MODERNIZER = Plugin(
    "modernizer",
    "modernize",
    ("request", "options", "context"),
    {"thrift": "progressor.rpc.remote:RemoteModernizer"},
)


@dataclass(frozen=True, slots=True)
class Modernizer:
    """`format_version` is the current one: events of a lower one, or of none, are given to `modernize`."""

    format_version: int
    modernize: Modernize


def resolve(client: str, options: Mapping[str, Any]) -> Modernize:
    """Raises ConfigError."""
    modernize = MODERNIZER.resolve(client, options)
    return lambda request, context: modernize(request, options, context)
