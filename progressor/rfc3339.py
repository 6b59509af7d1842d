"""Instants as text, by RFC 3339: written in UTC, and read only so."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_FORM = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)


class NotUtc(ValueError):
    """not in UTC"""


def read(text: str) -> datetime:
    """With any number of digits behind the second, of which six are kept. Raises ValueError, NotUtc among them."""
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError(f"no RFC 3339 time: {text[:100]}")
    if found[3] not in ("Z", "+00:00", "-00:00"):
        raise NotUtc(f"not in UTC: {text[:100]}")
    try:
        whole = datetime.fromisoformat(found[1]).replace(tzinfo=UTC)
    except ValueError as error:
        raise ValueError(f"no RFC 3339 time: {text[:100]}: {error}") from None
    return whole.replace(microsecond=int((found[2] or ".0")[1:7].ljust(6, "0")))


def show(at: datetime, timespec: str = "microseconds") -> str:
    """`timespec` as of `datetime.isoformat`."""
    return at.astimezone(UTC).isoformat(timespec=timespec).removesuffix("+00:00") + "Z"
