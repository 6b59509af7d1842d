"""Ordinary connections beside the stream: for setting it up, and for looking after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from progressor import postgres
from progressor.cache.snapshot import Snapshot
from progressor.postgres import Connection

NAME = "progressor cache"
PATIENCE = 5.0
"""Seconds that a statement may take."""
_NOW = "select pg_current_snapshot()::text, (pg_current_wal_insert_lsn() - '0/0')::bigint"


def connect(conninfo: Mapping[str, Any]) -> Connection:
    """See `postgres.connect`."""
    return postgres.connect(conninfo, patience=PATIENCE, application_name=NAME)


def snapshot(connection: Connection) -> Snapshot:
    """What is visible now."""
    ((text, lsn),) = connection.execute(_NOW).fetchall()
    return Snapshot.parse(text, lsn)
