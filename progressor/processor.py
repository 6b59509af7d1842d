"""Finding the user's code: what `processor.client` names, made ready to be called.

A processor is an object with a method `process(request, options, context) -> Intent`, or a plain function of that
signature. A class is made with its options if its constructor takes any.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypeAlias

from progressor.errors import ConfigError
from progressor.model import Intent, StepRequest

Processor: TypeAlias = Callable[[StepRequest, bytes], Intent]
"""Runs one step: the request, and the context of its task."""

ENTRY_POINTS = "progressor.processors"
SHIPPED = {
    "echo": "processors.echo:Echo",
    "counter": "processors.counter:Counter",
    "payment": "processors.payment:Payment",
    "thrift": "progressor.rpc.remote:RemoteProcessor",
}


def resolve(client: str, options: Mapping[str, Any]) -> Processor:
    """Raises ConfigError, naming what is wrong with the name or the thing it names."""
    target = _find(SHIPPED.get(client, client))
    process = _bind(target, client, options)
    try:
        inspect.signature(process).bind(None, options, b"")
    except TypeError as error:
        raise ConfigError(
            [f"processor {client!r}: process(request, options, context) does not fit: {error}"]
        ) from error
    return lambda request, context: process(request, options, context)


def _find(name: str) -> Any:
    module, _, attribute = name.partition(":")
    if not attribute:
        return _entry_point(name)
    try:
        found = import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        raise ConfigError([f"processor {name!r}: there is no module {error.name!r}"]) from error
    except AttributeError as error:
        raise ConfigError([f"processor {name!r}: {error}"]) from error
    except Exception as error:
        raise ConfigError([f"processor {name!r}: importing it failed: {type(error).__name__}: {error}"]) from error
    return found


def _entry_point(name: str) -> Any:
    for entry_point in entry_points(group=ENTRY_POINTS, name=name):
        try:
            return entry_point.load()
        except Exception as error:
            raise ConfigError([f"processor {name!r}: loading it failed: {type(error).__name__}: {error}"]) from error
    known = ", ".join(SHIPPED)
    raise ConfigError([f"processor {name!r}: expected one of {known}, package.module:Name, or an entry point"])


def _bind(target: Any, client: str, options: Mapping[str, Any]) -> Callable[..., Intent]:
    if inspect.isclass(target):
        try:
            arguments = [options] if inspect.signature(target).parameters else []
            target = target(*arguments)
        except Exception as error:
            raise ConfigError([f"processor {client!r}: {type(error).__name__}: {error}"]) from error
    process = getattr(target, "process", target)
    if not callable(process):
        raise ConfigError([f"processor {client!r}: expected a method `process` or a function"])
    return partial(process)
