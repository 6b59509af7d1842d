"""The sessions that read and write processes: what is set in them, and how they are found by others."""

from __future__ import annotations

from collections.abc import Mapping

from progressor.postgres import Connection
from progressor.storage import packing

WRITER = "progressor writer"
"""How the application names of the sessions that commit batches begin."""
SILENT_CLIENT = 4.0
"""Seconds after which a session that has locks, and hears nothing more of its node, is ended."""
PLANNING = {  # arrays make the planner guess; a batch wants the index, whatever the sizes
    "plan_cache_mode": "force_generic_plan",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_seqscan": "off",
}


def prepare(connection: Connection) -> None:
    packing.register(connection)
    # A frozen node must not hold locks that keep others from taking over: neither when it sends nothing more, nor
    # when it reads nothing more and the server waits for it with half of an answer.
    silence = f"{SILENT_CLIENT:g}s"
    silent = {"idle_in_transaction_session_timeout": silence, "tcp_user_timeout": silence}
    configure(connection, {"timezone": "UTC", **silent})


def configure(connection: Connection, settings: Mapping[str, str]) -> None:
    for setting, value in settings.items():
        connection.execute("select set_config(%s, %s, false)", [setting, value])
