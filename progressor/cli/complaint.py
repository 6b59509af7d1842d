"""How an error is told: on standard error, a line of text or an object of JSON."""

from __future__ import annotations

import argparse
import json
import sys


def complain(given: argparse.Namespace, error: Exception, text: str | None = None) -> None:
    """`text` instead of that of the error."""
    told = str(error) if text is None else text
    if given.json:
        print(json.dumps({"error": type(error).__name__, "message": told}), file=sys.stderr, flush=True)
    else:
        for line in told.splitlines():
            print(f"progressor: {line}", file=sys.stderr)
