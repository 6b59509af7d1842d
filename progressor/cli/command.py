"""From arguments to an exit status; no traceback reaches a user."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from progressor.cli.arguments import parse
from progressor.cli.complaint import complain
from progressor.client import Client
from progressor.errors import CannotConnect, ConfigError, ProgressorError

FAILED, USAGE, NOT_CONNECTED = 1, 2, 3
READ_TIMEOUT = 60.0
INTERRUPTED, BROKEN_PIPE = 130, 141
"""As a shell tells of commands that SIGINT and SIGPIPE have ended."""


def main(arguments: Sequence[str] | None = None) -> int:
    if sys.stdout is None:
        print("progressor: standard output is closed, nothing was done", file=sys.stderr)
        return FAILED
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # whatever the locale can show
    try:
        return _run(parse(arguments))
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(given: argparse.Namespace) -> int:
    try:
        with _client(given) as client:
            status: int = given.run(client, given)
        sys.stdout.flush()
    except ProgressorError as error:
        complain(given, error)
        match error:
            case CannotConnect():
                return NOT_CONNECTED
            case ConfigError():
                return USAGE
        return FAILED
    except BrokenPipeError:  # nobody reads on
        _forget_output()
        return BROKEN_PIPE
    except OSError as error:
        _forget_output()
        complain(given, error, f"cannot write to standard output: {error.strerror}")
        return FAILED
    return status


def _forget_output() -> None:
    """What is left in the buffer goes nowhere, so that the interpreter's last flush is quiet."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _client(given: argparse.Namespace) -> Client:
    """Raises ConfigError."""
    return Client(
        given.url,
        ca=given.ca,
        certificate=given.certificate,
        key=given.key,
        secret=_secret(given.secret_file),
        read_timeout=given.timeout or READ_TIMEOUT,
        connections=1,
    )


def _secret(file: str | None) -> str | None:
    """Never an argument: everybody on the machine sees those."""
    if file is None:
        return os.environ.get("PROGRESSOR_SECRET") or None
    try:
        return Path(file).read_text().rstrip("\r\n")
    except (OSError, ValueError) as error:
        raise ConfigError([f"--secret-file: cannot be read: {getattr(error, 'strerror', 'not UTF-8')}"]) from None
