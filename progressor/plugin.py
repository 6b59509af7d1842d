"""Finding the user's code: what `client` names in the configuration, made ready to be called.

It is an object with a method, or a plain function of the method's signature. A class is made with its options if its
constructor takes any.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from progressor.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Plugin:
    """A kind of user code. `method` is called with the names of its arguments; `shipped` has short names."""

    kind: str
    method: str
    arguments: tuple[str, ...]
    shipped: Mapping[str, str]

    def resolve(self, client: str, options: Mapping[str, Any]) -> Callable[..., Any]:
        """Raises ConfigError, naming what is wrong with the name or the thing it names."""
        found = self._bind(self._find(client, self.shipped.get(client, client)), client, options)
        try:
            inspect.signature(found).bind(*self.arguments)
        except TypeError as error:
            signature = f"{self.method}({', '.join(self.arguments)})"
            raise self._wrong(client, f"{signature} does not fit: {error}") from error
        return found

    def _find(self, client: str, target: str) -> Any:
        module, _, attribute = target.partition(":")
        if not attribute:
            return self._entry_point(client)
        try:
            found = import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except ModuleNotFoundError as error:
            raise self._wrong(client, f"there is no module {error.name!r}") from error
        except AttributeError as error:
            raise self._wrong(client, str(error)) from error
        except Exception as error:
            raise self._wrong(client, f"importing it failed: {type(error).__name__}: {error}") from error
        return found

    def _entry_point(self, name: str) -> Any:
        for entry_point in entry_points(group=f"progressor.{self.kind}s", name=name):
            try:
                return entry_point.load()
            except Exception as error:
                raise self._wrong(name, f"loading it failed: {type(error).__name__}: {error}") from error
        raise self._wrong(name, f"expected one of {', '.join(self.shipped)}, package.module:Name, or an entry point")

    def _bind(self, target: Any, client: str, options: Mapping[str, Any]) -> Callable[..., Any]:
        if inspect.isclass(target):
            try:
                arguments = [options] if inspect.signature(target).parameters else []
                target = target(*arguments)
            except Exception as error:
                raise self._wrong(client, f"{type(error).__name__}: {error}") from error
        method = getattr(target, self.method, target)
        if not callable(method):
            raise self._wrong(client, f"expected a method `{self.method}` or a function")
        return partial(method)

    def _wrong(self, client: str, problem: str) -> ConfigError:
        return ConfigError([f"{self.kind} {client!r}: {problem}"])
