"""Keepers of leases on one database: who may declare whom dead (docs/adr/0004-leases.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import TypeAlias

import psycopg
import pytest

from progressor.engine.directory import Directory
from progressor.engine.lease import Lease, LeaseKeeper
from progressor.otp import Timer, start_root
from progressor.storage.leases import PostgresLeases
from tests.conftest import Database
from tests.eventually import eventually
from tests.integration.storage.nodes import Connection

LEASE, HEARTBEAT = 1.5, 0.3
MakeKeeper: TypeAlias = Callable[[str], Lease]


@pytest.fixture
def keep(migrated: Database) -> Iterator[MakeKeeper]:
    """Starts the keeper of a node; the lease that it keeps."""
    with ExitStack() as stack:
        timer = stack.enter_context(closing(Timer()))

        def start(name: str) -> Lease:
            lease = Lease(LEASE)
            leases = PostgresLeases(migrated.conninfo, LEASE / 2)
            keeper = start_root(
                lambda: LeaseKeeper(
                    database="db",
                    node_name=name,
                    namespaces=[],
                    lease=lease,
                    store=leases,
                    interval=HEARTBEAT,
                    directory=Directory(),
                    timer=timer,
                )
            )
            stack.callback(keeper.stop, 10)
            return lease

        yield start


@pytest.fixture
def connection(migrated: Database) -> Iterator[Connection]:
    with psycopg.connect(**migrated.conninfo, autocommit=True) as connection:
        yield connection


def valid(connection: Connection) -> list[int]:
    """The epochs whose leases have not expired by the database's clock."""
    found = connection.execute("select epoch from progressor_nodes where expires_at > clock_timestamp()")
    return sorted(epoch for (epoch,) in found)


def let_leases_pass(connection: Connection) -> None:
    """So that every keeper has renewed without a break for long enough to declare others dead."""
    connection.execute("select pg_sleep(%s)", [1.5 * LEASE])


def test_a_node_that_is_silent_is_declared_dead(keep: MakeKeeper, connection: Connection) -> None:
    lease = keep("alive")
    connection.execute("insert into progressor_nodes (node_name, expires_at) values ('silent', clock_timestamp())")
    eventually(lambda: connection.execute("select epoch from progressor_nodes").fetchall() == [(lease.epoch,)])


def test_a_jump_of_the_databases_clock_kills_nobody(keep: MakeKeeper, connection: Connection) -> None:
    leases = [keep("one"), keep("two")]
    epochs = sorted(lease.epoch for lease in leases)
    let_leases_pass(connection)
    assert valid(connection) == epochs
    connection.execute("update progressor_nodes set expires_at = expires_at - interval '1 hour'")
    eventually(lambda: len(valid(connection)) == len(epochs))
    assert valid(connection) == epochs
