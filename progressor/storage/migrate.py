"""Brings a database to the schema of this version: numbered, forward only, one after the other.

`NNNN_database.sql` is run once in a database, `NNNN_namespace.sql` once for each namespace; the functions are made anew
whenever their text changed. A database of the original Progressor is adopted by the same files that make a fresh one.
One advisory lock lets many nodes start at once. Each file is a transaction of its own.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import psycopg

from progressor.errors import SchemaOutdated, StorageRejected, StorageUnavailable
from progressor.postgres import Connection, connect, translate, translated
from progressor.storage import sql

logger = logging.getLogger(__name__)

NAME = "progressor migration"
_LOCK = 0x50524F47  # "PROG"
_JOURNAL = """
create table if not exists progressor_migrations (
  namespace text not null,  -- empty: the database itself
  version int not null,
  name text not null,
  applied_at timestamptz not null default now(),
  primary key (namespace, version)
);
create table if not exists progressor_functions (
  namespace text primary key,
  digest text not null
)"""
_WHOLE_DATABASE = ""


def migrate(conninfo: Mapping[str, Any], namespaces: Iterable[str]) -> None:
    """Raises StorageUnavailable, or StorageRejected when a file does not apply."""
    with translated(), _locked(conninfo) as connection:
        connection.execute(_JOURNAL)
        _apply_all(connection, _WHOLE_DATABASE, "database")
        for ns in namespaces:
            _apply_all(connection, ns, "namespace")
            _make_functions(connection, ns)


def check(conninfo: Mapping[str, Any], namespaces: Iterable[str]) -> None:
    """Raises SchemaOutdated unless everything that `migrate` would do has been done."""
    with translated(), connect(conninfo, application_name=NAME) as connection:
        if connection.execute("select to_regclass('progressor_migrations')").fetchone() == (None,):
            raise SchemaOutdated("the database has no Progressor schema: run progressor-node --migrate-only")
        for ns, kind in [(_WHOLE_DATABASE, "database"), *((ns, "namespace") for ns in namespaces)]:
            missing = [name for version, name, _ in _files(kind) if version not in _applied(connection, ns)]
            if missing or (ns and _digest(ns) != _functions_digest(connection, ns)):
                what = f'namespace "{ns}"' if ns else "the database"
                raise SchemaOutdated(f"the schema of {what} is outdated: run progressor-node --migrate-only")


@contextmanager
def _locked(conninfo: Mapping[str, Any]) -> Iterator[Connection]:
    with connect(conninfo, application_name=NAME) as connection:
        connection.execute("set statement_timeout to 0")  # a large table takes its time
        connection.execute("select pg_advisory_lock(%s)", [_LOCK])
        yield connection


def _apply_all(connection: Connection, ns: str, kind: str) -> None:
    applied = _applied(connection, ns)
    for version, name, text in _files(kind):
        if version in applied:
            continue
        logger.info("migration %s of namespace %r", name, ns)
        statements = sql.fill(text, ns).as_bytes() if ns else text.encode()
        with _named(name, ns), connection.transaction():
            connection.execute(statements)
            connection.execute(
                "insert into progressor_migrations (namespace, version, name) values (%s, %s, %s)",
                [ns, version, name],
            )


@contextmanager
def _named(name: str, ns: str) -> Iterator[None]:
    """Tells the operator which file the database refuses, and because of what: a view in the way, for instance."""
    try:
        yield
    except psycopg.Error as error:
        if isinstance(translate(error), StorageUnavailable):
            raise
        what = "; ".join(filter(None, (error.diag.message_primary, error.diag.message_detail)))
        raise StorageRejected(f'migration {name} of namespace "{ns}" does not apply: {what}') from error


def _applied(connection: Connection, ns: str) -> set[int]:
    query = "select version from progressor_migrations where namespace = %s"
    return {version for (version,) in connection.execute(query, [ns])}


def _files(kind: str) -> list[tuple[int, str, str]]:
    """Version, name and text of the migrations of a kind, in order."""
    folder = files(__package__).joinpath("migrations")
    names = sorted(f.name for f in folder.iterdir() if f.name.endswith(f"_{kind}.sql"))
    return [(int(name[:4]), name, folder.joinpath(name).read_text()) for name in names]


def _make_functions(connection: Connection, ns: str) -> None:
    if _digest(ns) == _functions_digest(connection, ns):
        return
    with connection.transaction():
        connection.execute(sql.functions(ns))
        connection.execute(
            "insert into progressor_functions values (%s, %s) "
            "on conflict (namespace) do update set digest = excluded.digest",
            [ns, _digest(ns)],
        )


def _digest(ns: str) -> str:
    return hashlib.sha256(sql.functions(ns).as_bytes()).hexdigest()


def _functions_digest(connection: Connection, ns: str) -> str | None:
    row = connection.execute("select digest from progressor_functions where namespace = %s", [ns]).fetchone()
    return None if row is None else str(row[0])
