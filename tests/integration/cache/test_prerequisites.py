"""What a database must have before a node with a cache starts, and what the node says when it is not there."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg.sql import SQL, Composed, Identifier, Literal

from progressor import Node
from progressor.cache import prerequisites, publication, session
from progressor.errors import CacheUnavailable, StorageRejected
from progressor.storage import migrate
from progressor.storage.embedded import EmbeddedPostgres
from tests import stage
from tests.conftest import Database, fresh_database
from tests.eventually import eventually
from tests.integration.cache.nodes import CACHED, NS, Cached
from tests.stage import does

PASSWORD = "secret"


def execute(database: Database, *statements: LiteralString | Composed) -> None:
    with psycopg.connect(**database.conninfo, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


@contextmanager
def role(database: Database, attributes: LiteralString) -> Iterator[str]:
    """A role of this test's own."""
    name = f"role_{secrets.token_hex(4)}"
    with psycopg.connect(**database.conninfo, autocommit=True) as connection:
        made = SQL("create role {} login password {} " + attributes).format(Identifier(name), Literal(PASSWORD))
        connection.execute(made)
        yield name
        connection.execute(SQL("drop owned by {}").format(Identifier(name)))
        connection.execute(SQL("drop role {}").format(Identifier(name)))


def with_role(database: Database, name: str, script: stage.Script, **node: Any) -> dict[str, Any]:
    """A configuration whose cache is fed by the same database under another role."""
    config = stage.config(database, {NS: script}, namespaces={NS: {"storage": {"cache": "feed"}}}, node=node)
    main = config["databases"]["progressor_db"]
    config["databases"]["feed"] = {**main, "username": name, "password": PASSWORD}
    return config


def refused(config: dict[str, Any]) -> str:
    """What a node says that does not start."""
    with pytest.raises(CacheUnavailable) as error:
        Node.from_config(config).start()
    return str(error.value)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"wal_level": "replica"}, "wal_level is replica; run ALTER SYSTEM SET wal_level = 'logical'"),
        ({"max_replication_slots": "0"}, "all 0 of max_replication_slots are in use; run ALTER SYSTEM SET"),
        ({"max_wal_senders": "0"}, "all 0 of max_wal_senders are in use; run ALTER SYSTEM SET max_wal_senders = 10"),
    ],
)
def test_settings_of_the_server(postgres_bin: str | None, settings: dict[str, str], expected: str) -> None:
    with (
        EmbeddedPostgres.start(bin_dir=postgres_bin, settings=settings) as server,
        fresh_database(server) as database,
    ):
        assert expected in refused(stage.config(database, {NS: stage.steps()}, namespaces={NS: CACHED}))


def test_a_role_that_may_not_replicate(database: Database) -> None:
    with role(database, "noreplication") as name:
        assert f'ALTER ROLE "{name}" REPLICATION' in refused(with_role(database, name, stage.steps()))


def test_a_role_of_its_own_for_the_stream(database: Database) -> None:
    """Whoever migrates publishes; who streams needs to own nothing."""
    with (
        role(database, "replication") as name,
        Node.from_config(with_role(database, name, stage.steps(does(b"1")))) as node,
    ):
        Cached(node).wait_connected()
        node.client.init(ns=NS, id="p")
        for _ in range(2):
            node.client.get(ns=NS, id="p")
        assert Cached(node).hits == 1


def test_tables_that_are_not_published_and_belong_to_others(database: Database) -> None:
    migrate.migrate(database.conninfo, [NS])
    with role(database, "replication") as name:
        config = with_role(database, name, stage.steps(), migration_enabled=False)
        assert "run progressor-node --migrate-only with this configuration as the owner" in refused(config)
        Node.from_config(config).migrate()
        with Node.from_config(config) as node:
            Cached(node).wait_connected()


def test_a_role_that_loses_its_right(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    with role(database, "replication") as name:
        config = with_role(database, name, stage.steps(does(b"1")), cache_reconnect_timeout=50)
        with Node.from_config(config) as node, caplog.at_level(logging.INFO, "progressor.cache"):
            cached = Cached(node)
            cached.wait_connected()
            execute(
                database,
                SQL("alter role {} noreplication").format(Identifier(name)),
                "select pg_terminate_backend(active_pid) from pg_replication_slots where database = current_database()",
            )
            eventually(lambda: "may not replicate" in (cached.health["problem"] or ""))
            eventually(lambda: cached.health["reconnects"] > 5)
            node.client.init(ns=NS, id="p")
            assert node.client.get(ns=NS, id="p").last_event_id == 1
            execute(database, SQL("alter role {} replication").format(Identifier(name)))
            cached.wait_connected()
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == len(set(said)) == 2


def test_many_nodes_may_publish_at_once(database: Database) -> None:
    namespaces = [f"n/{n}" for n in range(4)]
    migrate.migrate(database.conninfo, namespaces)
    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(prerequisites.prepare, database.conninfo, namespaces) for _ in range(6)]:
            done.result()
    with session.connect(database.conninfo) as connection:
        assert publication.incomplete(connection, namespaces) == []


@pytest.mark.parametrize(
    "damage",
    [
        "alter publication {publication} drop table {events}",
        "alter publication {publication} set (publish = 'insert, update')",
        "alter publication {publication} set table {events} (process_id, event_id), {processes}",
        "alter publication {publication} set table {events} where (event_id > 1), {processes}",
        "drop publication {publication}",
    ],
)
def test_what_is_not_published_is_mended(database: Database, damage: LiteralString) -> None:
    migrate.migrate(database.conninfo, [NS])
    names = {part: Identifier(f"{NS}_{part}") for part in ("events", "processes")}
    prerequisites.prepare(database.conninfo, [NS])
    execute(database, SQL(damage).format(publication=Identifier(publication.name(NS)), **names))
    with session.connect(database.conninfo) as connection:
        assert publication.incomplete(connection, [NS]) == [NS]
        publication.ensure(connection, [NS])
        assert publication.incomplete(connection, [NS]) == []


def test_a_publication_of_all_tables_will_do(database: Database) -> None:
    migrate.migrate(database.conninfo, [NS])
    execute(database, SQL("create publication {} for all tables").format(Identifier(publication.name(NS))))
    prerequisites.prepare(database.conninfo, [NS])


def test_a_table_that_is_missing_is_no_outage(database: Database) -> None:
    with pytest.raises(StorageRejected, match="does not exist"):
        publication.publish(database.conninfo, [NS])
