"""What a database consists of, to compare databases that came about in different ways."""

from __future__ import annotations

from typing import Any, TypeAlias

import psycopg

from tests.conftest import Database

Catalog: TypeAlias = dict[str, set[tuple[str, ...]]]

_PARTS = {
    "columns": """
        select c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
          pg_get_expr(d.adbin, d.adrelid), a.attidentity
        from pg_attribute a join pg_class c on c.oid = a.attrelid
        left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
        where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'c', 'v')
          and a.attnum > 0 and not a.attisdropped""",
    "indexes": """
        select i.indrelid::regclass, pg_get_indexdef(i.indexrelid), i.indisvalid, i.indisreplident
        from pg_index i join pg_class c on c.oid = i.indexrelid where c.relnamespace = 'public'::regnamespace""",
    "constraints": """
        select conrelid::regclass, conname, pg_get_constraintdef(oid) from pg_constraint
        where connamespace = 'public'::regnamespace""",
    "relations": "select relname, relkind, reloptions from pg_class where relnamespace = 'public'::regnamespace",
    "functions": "select proname, pg_get_functiondef(oid) from pg_proc where pronamespace = 'public'::regnamespace",
    "enums": "select enumtypid::regtype, enumlabel from pg_enum",
    "sequences": """
        select objid::regclass, refobjid::regclass, refobjsubid from pg_depend
        where classid = 'pg_class'::regclass and deptype in ('a', 'i')
          and objid in (select oid from pg_class where relkind = 'S')""",
    "types": "select typname, typtype from pg_type where typnamespace = 'public'::regnamespace",
}


def catalog(database: Database) -> Catalog:
    """All that migrations make; neither the order of columns nor that of enum labels is looked at."""
    with psycopg.connect(**database.conninfo, autocommit=True) as connection:
        return {part: {_texts(row) for row in connection.execute(query)} for part, query in _PARTS.items()}


def _texts(row: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(map(str, row))
