"""Tests about the tests."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).parents[1]


def is_empty(test: ast.FunctionDef) -> bool:
    """Nothing but a text, `...` or `pass`."""
    return all(
        isinstance(part, ast.Pass) or isinstance(getattr(part, "value", None), ast.Constant) for part in test.body
    )


def test_no_test_is_empty() -> None:
    for path in sorted(TESTS.rglob("test_*.py")):
        for found in ast.walk(ast.parse(path.read_text())):
            if isinstance(found, ast.FunctionDef) and found.name.startswith("test_"):
                assert not is_empty(found), f"{path.name}: {found.name}"
