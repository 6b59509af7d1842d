"""Ordinary connections beside the stream: for setting it up, and for looking after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import psycopg
from psycopg.rows import TupleRow

from progressor.cache.snapshot import Snapshot
from progressor.errors import StorageUnavailable

Connection: TypeAlias = psycopg.Connection[TupleRow]
NAME = "progressor cache"
_PATIENCE = {"connect_timeout": 5, "tcp_user_timeout": 5000}
_NOW = "select pg_current_snapshot()::text, (pg_current_wal_insert_lsn() - '0/0')::bigint"


def connect(conninfo: Mapping[str, Any]) -> Connection:
    """Statements take at most 5 seconds."""
    options = {**_PATIENCE, **conninfo, "application_name": NAME}
    connection = psycopg.connect(**options, autocommit=True)
    connection.execute("set statement_timeout to '5s'")
    return connection


@contextmanager
def translated() -> Iterator[None]:
    """What PostgreSQL says against it as StorageUnavailable."""
    try:
        yield
    except psycopg.Error as error:
        raise StorageUnavailable(f"{StorageUnavailable.text}: {error}") from error


def snapshot(connection: Connection) -> Snapshot:
    """What is visible now."""
    ((text, lsn),) = connection.execute(_NOW).fetchall()
    return Snapshot.parse(text, lsn)
