"""PostgreSQL's errors in our words: the one place where the driver's exceptions end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout

from progressor.errors import LeaseLost, StorageError, StorageRejected, StorageUnavailable

LEASE_LOST = "PG001"
"""SQLSTATE that progressor_hold_lease raises."""


@contextmanager
def translated() -> Iterator[None]:
    try:
        yield
    except (psycopg.Error, PoolTimeout, PoolClosed) as error:
        raise translate(error) from error


def translate(error: Exception) -> StorageError:
    """By class and SQLSTATE (PostgreSQL manual, appendix A), never by text.

    OperationalError is the connection (08), resources (53), an operator's hand (57), and a transaction that
    lost a race (40, 55): all may pass. Data that does not fit (22, 23, 54 and the like) will not.
    """
    sqlstate = getattr(error, "sqlstate", None) or ""
    if sqlstate == LEASE_LOST:
        return LeaseLost()
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) and not sqlstate.startswith("54"):
        return StorageUnavailable(f"{StorageUnavailable.text}: {_first_line(error)}")
    if isinstance(error, psycopg.Error):
        return StorageRejected(f"{StorageRejected.text}: {_first_line(error)}")
    return StorageUnavailable(f"{StorageUnavailable.text}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
