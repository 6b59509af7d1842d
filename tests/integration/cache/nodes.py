"""Nodes with a cached namespace, `a/b`, and a look at what their caches do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from progressor import Node
from progressor.cache.cache import Miss
from tests import stage
from tests.conftest import Database
from tests.eventually import eventually

CACHED = {"storage": {"cache": "progressor_db"}}
NS = "a/b"


class Cached:
    """A node, and the figures of its cache."""

    def __init__(self, node: Node) -> None:
        self.node = node

    @property
    def health(self) -> Any:
        return self.node.health()[1][NS]["cache"]

    def wait_connected(self) -> None:
        eventually(lambda: self.health["connected"], 30)

    def wait_lost(self) -> None:
        eventually(lambda: not self.health["connected"], 30)

    @property
    def hits(self) -> int:
        return int(self.sample("progressor_cache_hits_total", prg_namespace=NS))

    def misses(self, reason: Miss) -> int:
        return int(self.sample("progressor_cache_misses_total", prg_namespace=NS, reason=str(reason)))

    @property
    def entries(self) -> int:
        return int(self.sample("progressor_cache_entries", prg_namespace=NS))

    @property
    def bytes(self) -> int:
        return int(self.sample("progressor_cache_bytes"))

    def sample(self, name: str, **labels: str) -> float:
        value = self.node.metrics.registry.get_sample_value(name, labels)
        assert value is not None, name
        return value


@contextmanager
def cached_node(database: Database, script: stage.Script, **node: Any) -> Iterator[Cached]:
    """`node`: settings of `[progressor]`."""
    with stage.node(database, {NS: script}, namespaces={NS: CACHED}, node=node) as running:
        cached = Cached(running)
        cached.wait_connected()
        yield cached


@contextmanager
def cached_theatre(database: Database, **node: Any) -> Iterator[tuple[stage.Theatre, Cached]]:
    theatre = stage.Theatre(database)
    with cached_node(database, theatre, **node) as cached:
        theatre.node = cached.node
        yield theatre, cached


def slots(database: Database) -> int:
    """How many slots there are in this database."""
    with psycopg.connect(**database.conninfo) as connection:
        query = "select count(*) from pg_replication_slots where database = current_database()"
        row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])
