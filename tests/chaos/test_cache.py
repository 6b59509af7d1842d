"""The stream of a cache breaks in every way: readers are answered, the cache comes back, and nothing old survives."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg.sql import SQL, Composed, Identifier

from progressor import Event, Intent, Process, StepRequest
from progressor.cache import stream
from progressor.cache.cache import Miss
from progressor.storage.embedded import EmbeddedPostgres
from tests.chaos.proxy import Proxy, Way
from tests.conftest import Database, fresh_database
from tests.eventually import eventually
from tests.integration.cache.nodes import NS, Cached, cached_node, slots

RECONNECT = {"cache_reconnect_timeout": 200}


def counting(request: StepRequest, _: bytes) -> Intent:
    """Each step adds an event and counts it in the state."""
    number = request.process.last_event_id + 1
    return Intent([Event(b"%d" % number)], aux_state=b"%d" % number)


class Through:
    """A node behind a proxy, with one process `p` in its cache."""

    def __init__(self, cached: Cached, proxy: Proxy, database: Database) -> None:
        self.cached = cached
        self.proxy = proxy
        self.database = database
        self.client = cached.node.client
        self.client.init(ns=NS, id="p")
        self.steps = 1
        self.get()

    def step(self) -> None:
        self.client.call(ns=NS, id="p")
        self.steps += 1

    def get(self, **options: Any) -> Process:
        process = self.client.get(ns=NS, id="p", **options)
        assert process.aux_state == b"%d" % process.last_event_id
        return process

    def follows(self) -> bool:
        """Whether the cache has the last step."""
        process = self.get()
        return process.last_event_id == self.steps

    def sql(self, *statements: LiteralString | Composed) -> list[Any]:
        """What the last one answers."""
        with psycopg.connect(**self.database.conninfo, autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def is_mended(self) -> None:
        """The cache has come back, with all that was done meanwhile, and follows again."""
        self.cached.wait_connected()
        assert self.follows()
        hits = self.cached.hits
        self.step()
        eventually(self.follows)
        assert self.cached.hits > hits


@contextmanager
def through(database: Database) -> Iterator[Through]:
    with closing(Proxy((database.conninfo["host"], database.conninfo["port"]))) as proxy:
        behind = replace(database, conninfo={**database.conninfo, "host": "127.0.0.1", "port": proxy.port})
        with cached_node(behind, counting, **RECONNECT) as cached:
            yield Through(cached, proxy, database)
    eventually(lambda: not slots(database))


@pytest.fixture
def there(database: Database) -> Iterator[Through]:
    with through(database) as there:
        yield there


KILL = "select pg_terminate_backend(active_pid) from pg_replication_slots where database = current_database()"


def test_the_walsender_is_killed(there: Through, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "progressor.cache"):
        (slot,) = there.sql("select slot_name from pg_replication_slots where database = current_database()")
        there.sql(KILL)
        there.cached.wait_lost()
        assert "terminating connection" in there.cached.health["problem"]
        there.step()
        assert there.follows()
        assert there.cached.misses(Miss.DISCONNECTED) > 0
        there.is_mended()
    assert there.cached.health["reconnects"] == 1
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert there.sql("select slot_name from pg_replication_slots where database = current_database()") != [slot]


def test_the_network_is_cut_and_refuses(there: Through, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "progressor.cache"):
        for name in ("progressor replication", "progressor cache"):
            there.proxy.refuse(name)
            there.proxy.cut(name)
        there.cached.wait_lost()
        eventually(lambda: there.cached.health["reconnects"] > 3)
        there.step()
        assert there.follows()
    assert len({record.getMessage() for record in caplog.records}) == len(caplog.records) <= 2
    for name in ("progressor replication", "progressor cache"):
        there.proxy.accept(name)
    there.is_mended()


def test_the_network_is_silent(there: Through, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "SILENCE", 1.0)
    there.proxy.freeze(stream.NAME)
    there.step()
    there.cached.wait_lost()
    assert "no word from the server" in there.cached.health["problem"]
    assert there.follows()
    there.proxy.thaw(stream.NAME)
    there.is_mended()


def test_a_quiet_network_is_not_lost(there: Through, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "SILENCE", 0.5)
    asked = [0]
    report = stream.Stream._report

    def counted(self: stream.Stream, now: float, *, ask: bool = False) -> None:
        asked[0] += ask
        report(self, now, ask=ask)

    monkeypatch.setattr(stream.Stream, "_report", counted)
    eventually(lambda: asked[0] >= 3)
    assert there.cached.health["reconnects"] == 0
    there.is_mended()


PUBLICATION = Identifier(f"progressor_{NS}")


@pytest.mark.parametrize(
    "damage",
    [
        SQL("drop publication {}").format(PUBLICATION),
        SQL("alter publication {} drop table {}").format(PUBLICATION, Identifier(f"{NS}_events")),
        SQL("alter publication {} set (publish = 'insert')").format(PUBLICATION),
    ],
    ids=["dropped", "without a table", "without updates"],
)
def test_the_publication_is_damaged(there: Through, damage: Composed) -> None:
    there.sql(damage)
    there.step()
    there.cached.wait_lost()
    there.is_mended()
    assert there.cached.health["reconnects"] == 1


@pytest.fixture
def server(postgres_bin: str | None) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres.start(bin_dir=postgres_bin) as server:
        yield server


@pytest.mark.parametrize(
    "how", [EmbeddedPostgres.restart, lambda server: server.restart("immediate")], ids=["in peace", "crashed"]
)
def test_postgres_is_restarted(server: EmbeddedPostgres, how: Callable[[EmbeddedPostgres], None]) -> None:
    with fresh_database(server) as database, through(database) as there:
        how(server)
        there.cached.wait_lost()
        eventually(lambda: there.cached.node.is_ready, 30)
        there.step()
        assert there.follows()
        there.is_mended()


# Readings that race with commits


def test_a_reading_that_is_overtaken_by_commits(there: Through) -> None:
    """Its answer is held up in the network, while the stream brings what was committed meanwhile."""
    front = "progressor default_front_pool"
    there.step()
    evict(there)
    there.proxy.freeze(front, Way.DOWN)
    ((now,),) = there.sql("select clock_timestamp()::text")
    reading: Future[Process] = there.client.future.get(ns=NS, id="p")
    eventually(lambda: there.sql(READ.format(now)))
    before = there.cached.sample("progressor_cache_lag_seconds", database="progressor_db")
    there.step()
    there.step()
    eventually(lambda: there.cached.sample("progressor_cache_lag_seconds", database="progressor_db") != before)
    there.proxy.thaw(front)
    assert reading.result().last_event_id >= 2
    hits = there.cached.hits
    assert there.get(at_least_event_id=there.steps).last_event_id == there.steps
    assert there.cached.hits == hits + 1


READ = SQL("""
select 1 from pg_stat_activity where datname = current_database() and application_name = 'progressor default_front_pool'
and state = 'idle' and query like '%pg_current_snapshot%' and query_start > {}""")


def evict(there: Through) -> None:
    """By a reconnection, since nothing else makes the cache forget at once."""
    there.sql(KILL)
    there.cached.wait_lost()
    there.cached.wait_connected()


def test_a_commit_that_is_streamed_before_it_is_visible(server: EmbeddedPostgres) -> None:
    """It waits for a synchronous standby that does not exist: the WAL has it, other sessions do not see it."""
    with fresh_database(server) as database:
        with psycopg.connect(**database.conninfo, autocommit=True) as connection:
            name = Identifier(database.name)
            connection.execute(SQL("alter database {} set synchronous_commit to local").format(name))
            connection.execute("alter system set synchronous_standby_names to nobody")
            connection.execute("select pg_reload_conf()")
        with through(database) as there, ThreadPoolExecutor() as pool:
            commit = pool.submit(there.sql, "set synchronous_commit to on", CHANGE)
            eventually(lambda: there.get().detail == "changed")
            assert there.get(cache=False).detail is None
            there.sql(KILL)
            there.cached.wait_lost()
            reading = there.client.future.get(ns=NS, id="p")
            with pytest.raises(TimeoutError):
                reading.result(0.5)
            there.sql("alter system set synchronous_standby_names to ''", "select pg_reload_conf()")
            commit.result(10)
            assert reading.result(10).detail == "changed"
            there.is_mended()


CHANGE = SQL("update {} set detail = 'changed'").format(Identifier(f"{NS}_processes"))
