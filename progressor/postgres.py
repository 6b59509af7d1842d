"""What all connections to PostgreSQL have in common: how they are made, and what their errors mean.

Storage and cache stand on it; the rest of Progressor does not know the driver.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypeAlias

import psycopg
from psycopg.rows import TupleRow
from psycopg_pool import PoolClosed, PoolTimeout

from progressor.errors import LeaseLost, StorageError, StorageRejected, StorageUnavailable

Connection: TypeAlias = psycopg.Connection[TupleRow]
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
"""From where PostgreSQL counts the microseconds of its timestamps."""
LEASE_LOST = "PG001"
"""SQLSTATE that progressor_hold_lease raises."""
READ_ONLY = "25006"
"""SQLSTATE of a standby, and of a database that is kept from growing."""
EXHAUSTED = ("53200", "53400", "57014")
"""SQLSTATEs: memory, another limit, or the time for a statement ran out."""
_DEFAULTS: Mapping[str, Any] = {"connect_timeout": 5, "tcp_user_timeout": 10_000}


def parameters(conninfo: Mapping[str, Any], **defaults: Any) -> dict[str, Any]:
    """The parameters of libpq for a connection: what the operator wrote, `conninfo`, wins over our `defaults`.

    Without a word of anybody, to connect may take 5 seconds, and what was sent 10 seconds to arrive.
    """
    return {**_DEFAULTS, **defaults, **conninfo}


def connect(conninfo: Mapping[str, Any], *, patience: float | None = None, **defaults: Any) -> Connection:
    """A connection that commits each statement by itself; see `parameters`. Raises psycopg.Error.

    `patience` (seconds) bounds each statement, even if the server does not answer, and to connect too.
    """
    if patience is None:
        return psycopg.connect(**parameters(conninfo, **defaults), autocommit=True)
    milliseconds = round(patience * 1000)
    bounds = {"connect_timeout": max(2, round(patience)), "tcp_user_timeout": milliseconds}
    connection = psycopg.connect(**parameters(conninfo, **bounds, **defaults), autocommit=True)
    connection.execute("select set_config('statement_timeout', %s, false)", [str(milliseconds)])
    return connection


@contextmanager
def translated() -> Iterator[None]:
    """Errors of the driver as our own: here they end."""
    try:
        yield
    except (psycopg.Error, PoolTimeout, PoolClosed) as error:
        raise translate(error) from error


def translate(error: Exception) -> StorageError:
    """By class and SQLSTATE (PostgreSQL manual, appendix A), never by text.

    OperationalError is the connection (08), resources (53), an operator's hand (57), and a transaction that
    lost a race (40, 55): all may pass, and so may READ_ONLY. Data that does not fit (22, 23, 54 and the like) will not.
    """
    sqlstate = getattr(error, "sqlstate", None) or ""
    if sqlstate == LEASE_LOST:
        return LeaseLost()
    passes = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) and not sqlstate.startswith("54")
    if passes or sqlstate == READ_ONLY:
        return StorageUnavailable(f"{StorageUnavailable.text}: {_first_line(error)}")
    if isinstance(error, psycopg.Error):
        return StorageRejected(f"{StorageRejected.text}: {_first_line(error)}")
    return StorageUnavailable(f"{StorageUnavailable.text}: {_first_line(error)}")


def may_be_to_blame(error: psycopg.Error) -> bool:
    """Whether what was sent may be why the database failed: the connection broke over it, or something ran out.

    It is not to blame for a full disk, nor for locks of others.
    """
    return not error.sqlstate or error.sqlstate.startswith("08") or error.sqlstate in EXHAUSTED


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
