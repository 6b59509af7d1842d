"""What a database needs to feed a cache, and what to do when it is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from progressor.cache import publication, session
from progressor.errors import CacheUnavailable
from progressor.postgres import Connection, translated

_FOUND = """
select current_setting('wal_level'),
  current_setting('max_replication_slots')::int, (select count(*) from pg_replication_slots),
  current_setting('max_wal_senders')::int, (select count(*) from pg_stat_replication),
  rolname, rolreplication or rolsuper
from pg_roles where rolname = current_user"""


def prepare(conninfo: Mapping[str, Any], namespaces: Sequence[str]) -> None:
    """Raises CacheUnavailable, whose text says what to run, StorageUnavailable, StorageRejected."""
    with translated(), session.connect(conninfo) as connection:
        check(connection)
        publication.ensure(connection, namespaces)


def check(connection: Connection) -> None:
    """Raises CacheUnavailable."""
    problems = list(_problems(connection))
    if problems:
        raise CacheUnavailable(f"{CacheUnavailable.text}: " + "; ".join(problems))


def _problems(connection: Connection) -> Iterator[str]:
    ((wal_level, slots, slots_used, senders, senders_used, role, may_replicate),) = connection.execute(_FOUND)
    if wal_level != "logical":
        yield (
            f"wal_level is {wal_level}; run ALTER SYSTEM SET wal_level = 'logical' as a superuser "
            "and restart PostgreSQL"
        )
    for setting, limit, used in (
        ("max_replication_slots", slots, slots_used),
        ("max_wal_senders", senders, senders_used),
    ):
        if used >= limit:
            yield (
                f"all {limit} of {setting} are in use; run ALTER SYSTEM SET {setting} = {limit + 10} as a superuser "
                "and restart PostgreSQL (each node takes one)"
            )
    if not may_replicate:
        yield f'the role {role} may not replicate; run ALTER ROLE "{role}" REPLICATION as a superuser'
