"""What a namespace publishes to the caches: one publication, of its processes and its events.

It is made by whoever comes first, under a lock, and mended when somebody has changed it: without its tables PostgreSQL
says nothing and sends nothing. Its name is `progressor_NAMESPACE`, at most 48 bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from psycopg.sql import SQL, Identifier

from progressor.cache import session
from progressor.cache.transaction import EVENTS, PROCESSES
from progressor.errors import CacheUnavailable
from progressor.postgres import Connection, translated

logger = logging.getLogger(__name__)

_LOCK = 0x50524F49  # beside those of migrations and publishers
_WHOLE = """
select count(*) from pg_publication p
where pubname = %s and pubinsert and pubupdate and pubdelete and pubtruncate and (puballtables or 2 = (
  select count(*) from pg_publication_rel r
  where prpubid = p.oid and prqual is null and prattrs is null and prrelid in (to_regclass(%s), to_regclass(%s))))"""


def name(ns: str) -> str:
    return f"progressor_{ns}"


def publish(conninfo: Mapping[str, Any], namespaces: Sequence[str]) -> None:
    """As `ensure`. Raises StorageUnavailable and StorageRejected too."""
    with translated(), session.connect(conninfo) as connection:
        ensure(connection, namespaces)


def incomplete(connection: Connection, namespaces: Sequence[str]) -> Sequence[str]:
    """Those that do not publish all they should."""
    return [ns for ns in namespaces if not _is_whole(connection, ns)]


def ensure(connection: Connection, namespaces: Sequence[str]) -> None:
    """Makes and mends what is missing. Raises CacheUnavailable when this role may not."""
    if not incomplete(connection, namespaces):
        return
    with connection.transaction():
        connection.execute("select pg_advisory_xact_lock(%s)", [_LOCK])
        for ns in incomplete(connection, namespaces):  # another node may have been here
            try:
                _publish(connection, ns)
            except psycopg.errors.InsufficientPrivilege as error:
                raise CacheUnavailable(
                    f'namespace "{ns}" is not published to caches, and this role may not do it '
                    f"({error.diag.message_primary}): run progressor-node --migrate-only with this configuration "
                    "as the owner of the tables, who needs CREATE on the database"
                ) from error
            logger.info("namespace %s is published to caches", ns)


def _is_whole(connection: Connection, ns: str) -> bool:
    tables = [Identifier(f"{ns}_{part}").as_string() for part in (PROCESSES, EVENTS)]
    return connection.execute(_WHOLE, [name(ns), *tables]).fetchone() == (1,)


def _publish(connection: Connection, ns: str) -> None:
    publication, tables = (
        Identifier(name(ns)),
        SQL(", ").join(Identifier(f"{ns}_{part}") for part in (PROCESSES, EVENTS)),
    )
    known = connection.execute("select from pg_publication where pubname = %s", [name(ns)]).fetchone()
    if known is None:
        connection.execute(SQL("create publication {} for table {}").format(publication, tables))
    else:
        connection.execute(SQL("alter publication {} set table {}").format(publication, tables))
        every = "alter publication {} set (publish = 'insert, update, delete, truncate')"
        connection.execute(SQL(every).format(publication))
