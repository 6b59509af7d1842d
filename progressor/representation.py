"""The version of an event's representation, as its metadata tell it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VERSION_KEYS = ("format_version", "format")
"""Where it may stand: hellgate's key and machinery's."""


def format_version(metadata: Mapping[str, Any]) -> int | None:
    for key in VERSION_KEYS:
        found = metadata.get(key)
        if isinstance(found, int) and not isinstance(found, bool) and -(2**31) <= found < 2**31:
            return found
    return None


def with_version(metadata: Mapping[str, Any], number: int | None) -> Mapping[str, Any]:
    """The same metadata with another version, under the keys that there are; without any when it is None."""
    others = {key: value for key, value in metadata.items() if key not in VERSION_KEYS}
    keys = [key for key in VERSION_KEYS if key in metadata] or VERSION_KEYS[:1]
    return others if number is None else others | dict.fromkeys(keys, number)
