"""How the parts of a node connect: the operator's word wins, and nobody waits for ever for a server that is gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, TypeAlias

import pytest

from progressor.cache import session
from progressor.postgres import Connection
from progressor.storage.committer import Committer
from progressor.storage.leases import PostgresLeases
from progressor.storage.listener import Listener
from progressor.storage.outbox import PostgresOutbox
from progressor.storage.pool import Pool
from tests.conftest import Database
from tests.integration.storage.nodes import NS

Conninfo: TypeAlias = Mapping[str, Any]
OPERATOR = {"connect_timeout": "7", "tcp_user_timeout": "7000"}


def writer(conninfo: Conninfo) -> Connection:
    return Committer(conninfo, {})._connected()


def lease(conninfo: Conninfo) -> Connection:
    return PostgresLeases(conninfo, 2.5)._connected()


def listener(conninfo: Conninfo) -> Connection:
    return Listener(conninfo, lambda: 1, lambda ns, tasks: None)._connected()


def publisher(conninfo: Conninfo) -> Connection:
    return PostgresOutbox(conninfo, NS, holds_back=True)._connected(1)


@contextmanager
def of_a_pool(conninfo: Conninfo) -> Iterator[Connection]:
    pool = Pool(conninfo, 1, "test")
    pool.open()
    with closing(pool), pool.connection() as connection:
        yield connection


SESSIONS: dict[str, tuple[Callable[[Conninfo], Any], int]] = {
    "writer": (writer, 10_000),
    "lease": (lease, 2500),
    "listener": (listener, 10_000),
    "publisher": (publisher, 10_000),
    "pool": (of_a_pool, 10_000),
    "cache": (session.connect, 5000),
}
"""Who connects, and the milliseconds after which its connection is lost when nothing arrives."""
each_session = pytest.mark.parametrize(("connect", "patience"), SESSIONS.values(), ids=SESSIONS.keys())
BY_NAME = (writer, publisher)
"""Others find these by their names."""


@each_session
def test_a_server_that_is_gone_is_noticed(
    migrated: Database, connect: Callable[[Conninfo], Any], patience: int
) -> None:
    with connect(migrated.conninfo) as connection:
        parameters = connection.info.get_parameters()
    assert parameters["tcp_user_timeout"] == str(patience)
    assert 2 <= int(parameters["connect_timeout"]) <= 5
    assert parameters["application_name"].startswith("progressor ")


@each_session
def test_what_the_operator_wrote_wins(migrated: Database, connect: Callable[[Conninfo], Any], patience: int) -> None:
    with connect({**migrated.conninfo, **OPERATOR, "application_name": "shop"}) as connection:
        parameters = connection.info.get_parameters()
    assert OPERATOR.items() <= parameters.items()
    assert (parameters["application_name"] == "shop") == (connect not in BY_NAME)
