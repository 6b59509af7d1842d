"""What the command understands: `progressor [OPTIONS] VERB ...`, options also behind the verb."""

from __future__ import annotations

import argparse
import base64
import binascii
import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from progressor.cli import document, top, verbs
from progressor.model import Direction, ProcessStatus, Range

DEFAULT_URL = "http://127.0.0.1:8022"
BYTES = "TEXT, @FILE, - (standard input), base64:..., or text:... for a text that looks like one of these"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Ends the process with status 2 when they are wrong."""
    parser = argparse.ArgumentParser(
        prog="progressor", description="Asks a node of Progressor.", parents=[_common(os.environ)]
    )
    commands = parser.add_subparsers(metavar="VERB", required=True)
    _add_steps(commands)
    _add_reads(commands)
    put = _command(commands, "put", verbs.put, "import a process, as `get --json` prints it")
    put.add_argument("file", metavar="FILE", type=_document, help="- is standard input")
    put.add_argument("--timer", metavar="TIME", type=_instant, help="when the process gets a timeout")
    put.add_argument("--remove", action="store_true", help="with --timer: remove the process then instead")
    put.add_argument("--context", metavar="BYTES", type=_bytes, default=b"")
    given = parser.parse_args(arguments)
    if getattr(given, "remove", False) and given.timer is None:
        put.error("--remove goes with --timer")
    if "offset" in given:
        given.range = _range(given)
    return given


def _common(environment: Mapping[str, str] | None = None) -> argparse.ArgumentParser:
    """The options of every verb. Their defaults are set once, before the verb."""
    parser = argparse.ArgumentParser(add_help=False)

    def add(name: str, variable: str | None = None, default: Any = None, **settings: Any) -> None:
        if environment is None:
            default = argparse.SUPPRESS
        elif variable is not None:
            default = environment.get(variable) or default
        parser.add_argument(name, default=default, **settings)

    url = f"thrift[s]://HOST:PORT or http[s]://HOST[:PORT][/PATH]; else PROGRESSOR_URL, else {DEFAULT_URL}"
    add("--url", "PROGRESSOR_URL", DEFAULT_URL, help=url)
    add("--ca", "PROGRESSOR_CA", metavar="FILE", help="authorities to trust, in PEM; else PROGRESSOR_CA")
    add("--certificate", "PROGRESSOR_CERTIFICATE", metavar="FILE", help="ours; else PROGRESSOR_CERTIFICATE")
    add("--key", "PROGRESSOR_KEY", metavar="FILE", help="of our certificate; else PROGRESSOR_KEY")
    file = "with the secret of the native service; else PROGRESSOR_SECRET_FILE, or PROGRESSOR_SECRET itself"
    add("--secret-file", "PROGRESSOR_SECRET_FILE", metavar="FILE", help=file)
    add("--timeout", metavar="SECONDS", type=_seconds, help="how long to wait for the answer")
    add("--json", default=False, action="store_true", help="JSON instead of text, errors too")
    return parser


def _command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    """A verb about one process."""
    parser = _verb(commands, name, run, text)
    parser.add_argument("ns", metavar="NS", help="the namespace")
    parser.add_argument("id", metavar="ID", help="of the process")
    return parser


def _verb(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, parents=[_common()])
    parser.set_defaults(run=run, verb=name)
    return parser


def _add_steps(commands: Any) -> None:
    for name, text in {
        "init": "create a process and run its init",
        "call": "run a call, after those that wait already",
        "repair": "have the processor repair a process in error",
        "notify": "leave a notification; prints the id of its task",
        "simple-repair": "let a process in error go on where it broke",
        "remove": "delete a process and all that belongs to it",
    }.items():
        parser = _command(commands, name, verbs.step, text)
        parser.add_argument("--context", metavar="BYTES", type=_bytes, default=b"", help="for the processor")
        parser.add_argument("--idempotency-key", metavar="KEY", help="requests with one key have one effect")
        if name in ("simple-repair", "remove"):
            parser.set_defaults(args=b"", range=None)
        else:
            parser.add_argument("args", metavar="ARGS", type=_bytes, nargs="?", default=b"", help=BYTES)
            _add_range(parser, "of the history that the step is given")


def _add_reads(commands: Any) -> None:
    get = _command(commands, "get", verbs.get, "show a process with its history")
    _add_range(get, "of the history")
    get.add_argument("--no-cache", action="store_true", help="read the database")
    get.add_argument("--at-least-event", metavar="ID", type=_number, help="as new as this event")
    _command(commands, "trace", verbs.trace, "show what a process has done, task by task, and why")
    listing = _verb(commands, "list", verbs.list_processes, "show processes, a page at a time")
    listing.add_argument("ns", metavar="NS", help="the namespace")
    listing.add_argument("--status", choices=tuple(map(str, ProcessStatus)))
    listing.add_argument("--metadata", metavar="JSON", type=_object, help="an object that theirs contain")
    listing.add_argument("--prefix", help="of their ids")
    for name in ("created", "status-changed"):
        listing.add_argument(f"--{name}-from", metavar="TIME", type=_instant)
        listing.add_argument(f"--{name}-to", metavar="TIME", type=_instant)
    listing.add_argument("--limit", metavar="N", type=_number, default=100, help="default: %(default)s")
    listing.add_argument("--cursor", help="of the next page, which the last one told")
    health = _verb(commands, "health", verbs.health, "show whether namespaces work; status 1 when one does not")
    health.add_argument("namespaces", metavar="NS", nargs="+")
    live = _verb(commands, "top", top.top, "show the load of namespaces until Ctrl-C")
    live.add_argument("namespaces", metavar="NS", nargs="+")
    live.add_argument("--once", action="store_true", help="one look, and the end")
    live.add_argument("--interval", metavar="SECONDS", type=_seconds, default=2.0, help="default: %(default)s")


def _add_range(parser: argparse.ArgumentParser, what: str) -> None:
    group = parser.add_argument_group("range", f"{what}; all of it when nothing is said")
    group.add_argument("--offset", metavar="EVENT", type=_number, help="behind this event, or before it: --backward")
    group.add_argument("--limit", metavar="N", type=_number, help="at most so many events")
    group.add_argument("--backward", action="store_true", help="the newest first")


def _range(given: argparse.Namespace) -> Range | None:
    if (given.offset, given.limit, given.backward) == (None, None, False):
        return None
    return Range(given.offset, given.limit, Direction.BACKWARD if given.backward else Direction.FORWARD)


# Types of arguments. argparse takes ArgumentTypeError for wrong usage.


def _bytes(text: str) -> bytes:
    kind, colon, rest = text.partition(":")
    if text == "-":
        return _input()
    if text.startswith("@"):
        return _file(text[1:])
    if colon and kind == "text":
        return rest.encode(errors="surrogateescape")
    if colon and kind == "base64":
        try:
            return base64.b64decode(rest, validate=True)
        except binascii.Error as error:
            raise argparse.ArgumentTypeError(f"no base64: {error}") from None
    return text.encode(errors="surrogateescape")


def _input() -> bytes:
    if sys.stdin is None:
        raise argparse.ArgumentTypeError("standard input is closed")
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot read standard input: {error.strerror}") from None


def _file(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"cannot read {name!r}: {getattr(error, 'strerror', error)}") from None


def _document(name: str) -> object:
    return _json(_input() if name == "-" else _file(name), name)


def _object(text: str) -> dict[str, Any]:
    found = _json(text, text)
    if isinstance(found, dict):
        return found
    raise argparse.ArgumentTypeError(f"expected a JSON object, got {text!r}")


def _json(text: str | bytes, name: str) -> object:
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"no JSON in {name!r}: {error}") from None
    return found


def _instant(text: str) -> datetime:
    try:
        return document.read_instant(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _number(text: str) -> int:
    if text.isascii() and text.isdecimal() and len(text) < 20:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text!r}")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if 0 < seconds < 1e6:
        return seconds
    raise argparse.ArgumentTypeError(f"expected seconds, got {text!r}")
