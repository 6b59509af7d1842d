"""Metadata: JSON objects, in Python and on their way to the database."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_PLAIN = frozenset((str, int, float, bool, type(None)))
"""Types that JSON keeps as they are, and that nobody can change."""


def _dict(value: Any) -> Any:
    """Metadata may be any mapping; the encoder of the standard library knows `dict` only."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not JSON serializable")


encode = json.JSONEncoder(ensure_ascii=False, default=_dict).encode
"""A value as JSON. Raises TypeError, ValueError or RecursionError when it is none."""


def own(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """A copy of all of it, as it will be read again: JSON knows lists only, and keys that are text.

    What is no JSON stays as it is: the storage refuses it.
    """
    if not metadata:
        return {}
    if (
        type(metadata) is dict
        and _PLAIN.issuperset(map(type, metadata.values()))
        and {str}.issuperset(map(type, metadata))
    ):
        return dict(metadata)
    try:
        found: Mapping[str, Any] = json.loads(encode(metadata))
    except (TypeError, ValueError, RecursionError):
        return metadata
    return found
