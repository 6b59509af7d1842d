"""Databases with a migrated namespace, nodes that work on it, and a look at the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import TypeAlias

import psycopg
import pytest

from progressor.engine.ports import Streams
from progressor.storage import migrate
from progressor.storage.embedded import EmbeddedPostgres
from progressor.storage.outbox import PostgresOutbox
from progressor.storage.pool import Pool
from progressor.storage.postgres import Pools, PostgresStorage
from tests.conftest import Database, fresh_database
from tests.integration.storage.nodes import NS, ORDER, SECOND_NS, Node, Tap

MakeNode: TypeAlias = Callable[[], Node]
MakeOutbox: TypeAlias = Callable[..., PostgresOutbox]


@pytest.fixture(scope="session")
def shared_database(postgres_server: EmbeddedPostgres) -> Iterator[Database]:
    with fresh_database(postgres_server) as database:
        migrate.migrate(database.conninfo, [NS, SECOND_NS])
        yield database


@pytest.fixture
def migrated(shared_database: Database) -> Database:
    """A database with two namespaces and nothing in them. To empty one takes a tenth of the time of a new one."""
    with psycopg.connect(**shared_database.conninfo) as connection:
        connection.execute("delete from progressor_nodes")
        for tap in (Tap(connection, NS), Tap(connection, SECOND_NS)):
            for table in ORDER:
                tap.execute("delete from {" + table + "}")
            tap.execute("select setval({tasks_sequence}, 1, false)")
    return shared_database


@pytest.fixture
def make_node(migrated: Database) -> Iterator[MakeNode]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(closing(Node(migrated.conninfo)))


@pytest.fixture
def loud(migrated: Database) -> Iterator[Node]:
    """A node of a namespace whose messages are published."""
    with closing(Node(migrated.conninfo, streams=Streams(events=True, lifecycle=True))) as node:
        yield node


@pytest.fixture
def make_outbox(migrated: Database) -> Iterator[MakeOutbox]:
    """The outbox as the notifier of a node sees it."""
    with ExitStack() as stack:

        def make(*, holds_back: bool = True) -> PostgresOutbox:
            return stack.enter_context(closing(PostgresOutbox(migrated.conninfo, NS, holds_back=holds_back)))

        yield make


@pytest.fixture
def outbox(loud: Node, make_outbox: MakeOutbox) -> PostgresOutbox:
    """The outbox of the node that publishes."""
    outbox = make_outbox()
    assert outbox.lead(loud.epoch)
    return outbox


@pytest.fixture
def node(make_node: MakeNode) -> Node:
    return make_node()


@pytest.fixture
def other(make_node: MakeNode) -> Node:
    """A second node of the cluster."""
    return make_node()


@pytest.fixture
def tap(migrated: Database) -> Iterator[Tap]:
    with psycopg.connect(**migrated.conninfo, autocommit=True) as connection:
        yield Tap(connection)


@pytest.fixture
def storage(migrated: Database) -> Iterator[PostgresStorage]:
    with open_storage(migrated) as storage:
        yield storage


@contextmanager
def open_storage(database: Database) -> Iterator[PostgresStorage]:
    pool = Pool(database.conninfo, 2, "test")
    pool.open()
    with closing(pool):
        yield PostgresStorage(Pools(pool, pool, pool))
