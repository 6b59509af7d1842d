"""Migrations: fresh and adopted databases come to the same schema, and nothing is ever done by halves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import TypeAlias

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from progressor.config import LONGEST_NAMESPACE
from progressor.engine.ports import Selection
from progressor.errors import SchemaOutdated, StorageRejected, StorageUnavailable
from progressor.model import Answered, Event, Intent, Range, SetTimer
from progressor.storage import migrate
from progressor.storage.embedded import EmbeddedPostgres
from tests.conftest import Database, fresh_database
from tests.integration.storage import original
from tests.integration.storage.catalog import catalog
from tests.integration.storage.conftest import open_storage
from tests.integration.storage.nodes import NS, Node, soon
from tests.integration.storage.original import FORMS, NEW, OLD, Form

MakeDatabase: TypeAlias = Callable[[], Database]

ODD_NAMESPACES = [
    "plain",
    "with/slash",
    "with space",
    'double"quote',
    "single'quote",
    "per%cent %s %%",
    "br{ace} {processes} {{",
    "dollar $$ $1 $body$",
    "back\\slash",
    "semi; drop table x; --",
    "émigré/процесс",
    "UPPER case",
    "n" * LONGEST_NAMESPACE,
    "é" * (LONGEST_NAMESPACE // 2),
]


@pytest.fixture
def make_database(postgres_server: EmbeddedPostgres) -> Iterator[MakeDatabase]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(fresh_database(postgres_server))


def execute(database: Database, query: str) -> None:
    with psycopg.connect(**database.conninfo, autocommit=True) as connection:
        connection.execute(query.encode())


def value(database: Database, query: str) -> object:
    with psycopg.connect(**database.conninfo, autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
    return None if row is None else row[0]


def add_file(monkeypatch: pytest.MonkeyPatch, kind: str, text: str) -> None:
    """One more migration of a kind."""
    known = migrate._files
    added = (9999, f"9999_{kind}.sql", text)
    monkeypatch.setattr(migrate, "_files", lambda asked: [*known(asked), *([added] if asked == kind else [])])


# Fresh databases


def test_a_fresh_database_has_the_tables_of_each_namespace(database: Database) -> None:
    migrate.migrate(database.conninfo, ["one", "two"])
    relations = {name for name, *_ in catalog(database)["relations"]}
    for ns in ("one", "two"):
        assert {f"{ns}_{table}" for table in ("processes", "tasks", "schedule", "running", "events")} <= relations


def test_a_second_run_changes_nothing(database: Database) -> None:
    migrate.migrate(database.conninfo, [NS])
    before, at = catalog(database), value(database, "select max(applied_at) from progressor_migrations")
    migrate.migrate(database.conninfo, [NS])
    assert catalog(database) == before
    assert value(database, "select max(applied_at) from progressor_migrations") == at


def test_a_namespace_can_be_added_later(database: Database) -> None:
    migrate.migrate(database.conninfo, ["one"])
    migrate.migrate(database.conninfo, ["one", "two"])
    migrate.check(database.conninfo, ["one", "two"])


def test_many_nodes_migrate_at_once(database: Database) -> None:
    with ThreadPoolExecutor(4) as threads:
        runs = [threads.submit(migrate.migrate, database.conninfo, [NS, "two"]) for _ in range(4)]
    assert [run.exception() for run in runs] == [None] * 4
    migrate.check(database.conninfo, [NS, "two"])


def test_a_statement_timeout_of_the_role_does_not_end_a_migration(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_file(monkeypatch, "database", "select pg_sleep(0.05)")
    migrate.migrate({**database.conninfo, "options": "-c statement_timeout=20ms"}, [])


# check


def test_check_names_the_remedy_for_an_empty_database(database: Database) -> None:
    with pytest.raises(SchemaOutdated, match="progressor-node --migrate-only"):
        migrate.check(database.conninfo, [NS])


def test_check_names_a_namespace_that_is_missing(database: Database) -> None:
    migrate.migrate(database.conninfo, ["one"])
    with pytest.raises(SchemaOutdated, match=r'"two".*progressor-node --migrate-only'):
        migrate.check(database.conninfo, ["one", "two"])


@pytest.mark.parametrize("kind", ["database", "namespace"])
def test_check_finds_a_missing_migration(database: Database, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    migrate.migrate(database.conninfo, [NS])
    add_file(monkeypatch, kind, "select 1")
    with pytest.raises(SchemaOutdated):
        migrate.check(database.conninfo, [NS])
    migrate.migrate(database.conninfo, [NS])
    migrate.check(database.conninfo, [NS])


def test_check_finds_functions_of_another_version_and_migrate_makes_them_anew(database: Database) -> None:
    migrate.migrate(database.conninfo, [NS])
    fresh = catalog(database)
    execute(database, "update progressor_functions set digest = 'old'")
    execute(database, f"create or replace function \"{NS}_lock\"(p_ids text[]) returns void language sql as ''")
    with pytest.raises(SchemaOutdated):
        migrate.check(database.conninfo, [NS])
    migrate.migrate(database.conninfo, [NS])
    migrate.check(database.conninfo, [NS])
    assert catalog(database) == fresh


# Failures


@pytest.mark.parametrize("kind", ["database", "namespace"])
def test_a_file_that_fails_leaves_nothing_half_done(
    make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    database = make_database()
    with monkeypatch.context() as patch:
        add_file(patch, kind, "create table half (); select 1 / 0; create table other_half ()")
        with pytest.raises(StorageRejected, match=f"9999_{kind}.sql.*division by zero"):
            migrate.migrate(database.conninfo, [NS])
    assert value(database, "select to_regclass('half')") is None
    assert value(database, "select count(*) from progressor_migrations where version = 9999") == 0
    migrate.migrate(database.conninfo, [NS])
    healthy = make_database()
    migrate.migrate(healthy.conninfo, [NS])
    assert catalog(database) == catalog(healthy)


def test_a_view_in_the_way_is_named_and_nothing_is_half_done(database: Database) -> None:
    original.create(database.conninfo, NS, NEW)
    execute(database, f'create view report as select event_id from "{NS}_events"')
    with pytest.raises(StorageRejected, match=r"0002_namespace.*view report"):
        migrate.migrate(database.conninfo, [NS])
    assert value(database, f"select to_regclass('\"{NS}_tasks_process_idx\"')") is not None
    assert value(database, "select max(version) from progressor_migrations where namespace <> ''") == 1
    execute(database, "drop view report")
    migrate.migrate(database.conninfo, [NS])


def test_a_server_that_is_away_is_unavailable(database: Database) -> None:
    away = {**database.conninfo, "dbname": "no_such_database"}
    for action in (migrate.migrate, migrate.check):
        with pytest.raises(StorageUnavailable):
            action(away, [NS])


# Names


@pytest.mark.parametrize("ns", ODD_NAMESPACES)
def test_any_name_of_a_namespace_works(database: Database, ns: str) -> None:
    migrate.migrate(database.conninfo, [ns])
    migrate.check(database.conninfo, [ns])
    with closing(Node(database.conninfo, ns)) as node, open_storage(database) as storage:
        claimed = node.start("init", "p", key="k")
        node.finish(claimed, Intent([Event(b"e")], response=b"done", action=SetTimer(soon())))
        assert node.ask("init", "p", key="k") == Answered(b"done", claimed.task.task_id)
        node.finish(node.start("call", "p"))
        process = storage.get(ns, "p", Range())
        assert process is not None
        assert [e.payload for e in process.history] == [b"e"]
        assert [unit.task_type for unit in storage.trace(ns, "p")] == ["init", "timeout", "call"]
        assert [p.process_id for p in storage.page(ns, Selection(), 10, None).items] == ["p"]
        assert len(storage.upcoming(ns, 7200, None, 10)) == 1
        assert isinstance(node.ask("remove", "p"), Answered)


def test_an_original_database_of_the_longest_name_is_adopted(database: Database) -> None:
    ns = "é" * (LONGEST_NAMESPACE // 2)
    original.create(database.conninfo, ns, NEW)
    migrate.migrate(database.conninfo, [ns])
    with closing(Node(database.conninfo, ns)) as node:
        node.process("p", Intent(action=SetTimer(soon())))


# Databases of the original


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_migrated_original_equals_a_fresh_database(make_database: MakeDatabase, form: Form) -> None:
    fresh, adopted = make_database(), make_database()
    original.create(adopted.conninfo, NS, form)
    for database in (fresh, adopted):
        migrate.migrate(database.conninfo, [NS])
    ours, theirs = catalog(fresh), catalog(adopted)
    for part in ours:
        assert theirs[part] == ours[part], part


def test_indexes_and_keys_are_found_whatever_their_names(make_database: MakeDatabase) -> None:
    fresh, adopted = make_database(), make_database()
    original.create(adopted.conninfo, NS, OLD)
    execute(adopted, 'alter index process_idx rename to "odd name"')
    execute(adopted, f'alter table "{NS}_tasks" rename constraint "{NS}_tasks_idempotency_key_key" to "odd; key"')
    execute(adopted, f'alter table "{NS}_tasks" rename constraint "{NS}_tasks_process_id_fkey" to "odd "" key"')
    execute(adopted, f'create unique index again on "{NS}_tasks" (idempotency_key)')
    for database in (fresh, adopted):
        migrate.migrate(database.conninfo, [NS])
    assert catalog(adopted) == catalog(fresh)


def test_an_index_of_the_operator_stays(database: Database) -> None:
    original.create(database.conninfo, NS, NEW)
    execute(database, f'create index mine on "{NS}_processes" using gin (metadata)')
    migrate.migrate(database.conninfo, [NS])
    assert value(database, "select to_regclass('mine')") is not None


def test_views_over_columns_that_stay_as_they_are_stay(database: Database) -> None:
    original.create(database.conninfo, NS, NEW)
    execute(database, f'create view report as select process_id, status, metadata from "{NS}_processes"')
    execute(database, f'create view payloads as select process_id, payload from "{NS}_events"')
    migrate.migrate(database.conninfo, [NS])
    assert value(database, "select count(*) from report") == 0


def test_a_renamed_sequence_is_found(make_database: MakeDatabase) -> None:
    fresh, adopted = make_database(), make_database()
    original.create(adopted.conninfo, NS, NEW)
    execute(adopted, f'alter sequence "{NS}_tasks_task_id_seq" rename to "{NS}_tasks_task_id_seq1"')
    for database in (fresh, adopted):
        migrate.migrate(database.conninfo, [NS])
    assert catalog(adopted) == catalog(fresh)


def test_a_publication_of_a_cached_namespace_survives(database: Database) -> None:
    original.create(database.conninfo, NS, OLD, cached=True)
    migrate.migrate(database.conninfo, [NS])
    with psycopg.connect(**database.conninfo) as connection:
        found = connection.execute("select pubname, tablename from pg_publication_tables").fetchall()
    assert sorted(found) == [(NS, f"{NS}_events"), (NS, f"{NS}_processes")]


def test_the_types_may_be_shared_with_another_namespace_of_the_original(database: Database) -> None:
    original.create(database.conninfo, "first", OLD)
    original.create_tables(database.conninfo, "second", OLD)
    migrate.migrate(database.conninfo, ["first"])
    migrate.migrate(database.conninfo, ["first", "second"])
    migrate.check(database.conninfo, ["first", "second"])


@pytest.mark.parametrize("form", [*FORMS, None], ids=str)
def test_the_owner_of_the_tables_needs_no_superuser(database: Database, form: Form | None) -> None:
    role = f"owner_{database.name}"
    conninfo = {**database.conninfo, "user": role, "password": "secret"}
    with psycopg.connect(**database.conninfo, autocommit=True) as admin:
        name = Identifier(role)
        admin.execute(SQL("create role {} login password 'secret'").format(name))
        try:
            admin.execute(SQL("alter schema public owner to {}").format(name))
            if form is not None:
                original.create(conninfo, NS, form)
            migrate.migrate(conninfo, [NS])
            migrate.check(conninfo, [NS])
            with closing(Node(conninfo)) as node:
                node.process("p")
        finally:
            admin.execute(SQL("reassign owned by {} to current_user").format(name))
            admin.execute(SQL("drop owned by {}").format(name))
            admin.execute(SQL("drop role {}").format(name))


def test_the_types_may_belong_to_somebody_else(database: Database) -> None:
    role = f"owner_{database.name}"
    conninfo = {**database.conninfo, "user": role, "password": "secret"}
    with psycopg.connect(**database.conninfo, autocommit=True) as admin:
        name = Identifier(role)
        admin.execute(SQL("create role {} login password 'secret'").format(name))
        try:
            admin.execute(SQL("grant create on schema public to {}").format(name))
            original.create_types(database.conninfo, NEW)
            original.create_tables(conninfo, NS, NEW)
            migrate.migrate(conninfo, [NS])
        finally:
            admin.execute(SQL("drop owned by {}").format(name))
            admin.execute(SQL("drop role {}").format(name))
