"""The SQL of a namespace: named blocks and functions, with the names of its tables filled in once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from psycopg import sql

from progressor.errors import ProcessInError, ProcessRunning
from progressor.storage.response import OK, error_term

_TABLES = ("processes", "tasks", "schedule", "running", "events", "outbox", "dead_letters")
_FUNCTIONS = (
    *("lock", "announce", "erase", "started", "prepare", "complete", "claim", "takeover", "release"),
    *("settle", "let_go", "retry_dead_letter", "drop_dead_letter"),
)
_INDEXES = (
    *("tasks_process_idx", "tasks_key_idx", "schedule_process_idx", "schedule_timers_idx", "schedule_calls_idx"),
    *("dead_letters_process_idx", "dead_letters_refused_idx", "dead_letters_ready_idx"),
)
_SLICES = ("forward", "backward")
_MESSAGES = ("outbox", "letters")
PUBLISHING = 0x50524F48  # not that of migrations
"""With the oid of an outbox, the advisory lock of its publisher."""
PUBLISHER = "progressor publisher"
"""With its epoch, the name of its session."""


def names(ns: str) -> dict[str, sql.Composable]:
    """What stands for the placeholders of our SQL files."""
    found: dict[str, sql.Composable] = {
        part: sql.Identifier(f"{ns}_{part}") for part in (*_TABLES, *_FUNCTIONS, *_INDEXES)
    }
    found |= {f"{table}_name": sql.Literal(sql.Identifier(f"{ns}_{table}").as_string()) for table in _TABLES}
    found["tasks_sequence"] = sql.Literal(sql.Identifier(f"{ns}_tasks_task_id_seq").as_string())
    found["tasks_sequence_name"] = sql.Literal(f"{ns}_tasks_task_id_seq")
    found["outbox_sequence"] = sql.Literal(sql.Identifier(f"{ns}_outbox_message_id_seq").as_string())
    found["publishing"] = sql.Literal(PUBLISHING)
    found["publisher"] = sql.Literal(f"^{PUBLISHER} ([0-9]+)$")
    found["our_indexes"] = sql.SQL(", ").join(sql.Literal(f"{ns}_{index}") for index in _INDEXES)
    found["namespace"] = sql.Literal(ns)
    found["ok"] = sql.Literal(OK)
    found["process_is_error"] = sql.Literal(error_term(ProcessInError.text))
    found["process_is_running"] = sql.Literal(error_term(ProcessRunning.text))
    return found


def fill(template: str, ns: str) -> sql.Composed:
    """The template for one namespace. Bodies get a quote of their own, since `$$` may be part of a namespace."""
    return sql.SQL(template.replace("$$", "$progressor$")).format(**names(ns))


def functions(ns: str) -> sql.Composed:
    return fill(files(__package__).joinpath("functions.sql").read_text(), ns)


@cache
def queries(ns: str) -> Mapping[str, bytes]:
    """The named queries of queries.sql for one namespace; `process` and `reading` once for each direction, `messages`
    per source."""
    blocks = re.split(r"^-- name: (\w+)$", files(__package__).joinpath("queries.sql").read_text(), flags=re.MULTILINE)
    templates = dict(zip(blocks[1::2], blocks[2::2], strict=True))
    process, reading = templates.pop("process"), templates.pop("reading")
    for direction in _SLICES:
        whole = templates[f"process_{direction}"] = process.replace("{slice}", templates[direction])
        templates[f"reading_{direction}"] = reading.replace("{process}", whole)
    messages = templates.pop("messages")
    for source in _MESSAGES:
        templates[source] = messages.replace("{source}", templates[source])
    return {name: fill(text, escaped(ns)).as_bytes() for name, text in templates.items()}


@cache
def call(ns: str, function: str, arguments: int) -> bytes:
    """A query that selects the rows of one of the functions."""
    name = names(escaped(ns))[function]
    markers = sql.SQL(", ").join([sql.Placeholder()] * arguments)
    return sql.SQL("select * from {}({})").format(name, markers).as_bytes()


def escaped(ns: str) -> str:
    """A namespace in the text of a query with parameters, where `%` introduces one."""
    return ns.replace("%", "%%")
