"""Text for people: tables, times and bytes on one line each, whatever is in them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import UTC, datetime

from progressor.cli import document

LONGEST = 80
"""Characters of a cell."""
NOTHING = "-"


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as they need to be; numbers to the right."""
    cells = [list(heads), *([cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [any(isinstance(row[n], int | float) for row in rows) for n in range(len(heads))]
    return "\n".join(_line(row, widths, right) for row in cells)


def pairs(values: Sequence[tuple[str, object]]) -> str:
    """A line each; what is None is left out."""
    shown = [(name, value) for name, value in values if value is not None]
    width = max(len(name) for name, _ in shown)
    return "\n".join(f"{name:{width}}  {cell(value, longest=None)}" for name, value in shown)


def cell(value: object, longest: int | None = LONGEST) -> str:
    match value:
        case None:
            return NOTHING
        case bytes():
            shown = readable(value)
        case datetime():
            return time(value)
        case float():
            return f"{value:,.1f}"
        case _:
            shown = str(value)
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
    return shown if longest is None or len(shown) <= longest else shown[: longest - 1] + "…"


def readable(data: bytes) -> str:
    """Text, or base64 with a mark, as arguments are read too."""
    text = document.text(data)
    return f"base64:{base64.b64encode(data).decode()}" if text is None else text


def time(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(" ", "milliseconds").removesuffix("+00:00") + "Z"


def _line(row: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    parts = [text.rjust(width) if r else text.ljust(width) for text, width, r in zip(row, widths, right, strict=True)]
    return "  ".join(parts).rstrip()
