"""The pool: never more than it may have, and nobody waits for ever."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg
import pytest
from psycopg_pool import PoolClosed, PoolTimeout

from progressor.storage.pool import Pool
from tests.conftest import Database
from tests.eventually import eventually

PATIENCE = 30.0


@pytest.fixture
def pool(migrated: Database) -> Iterator[Pool]:
    pool = Pool(migrated.conninfo, 2, "test")
    pool.open()
    with closing(pool):
        yield pool


def test_no_more_than_its_size_at_a_time(pool: Pool) -> None:
    with pool.connection() as one, pool.connection() as two:
        assert one.info.backend_pid != two.info.backend_pid
        with pytest.raises(PoolTimeout, match="'test'"), pool.connection(0.01):
            pass
        assert pool.figures()["free"] == 0
    assert pool.figures() == {"free": 2, "busy": 0, "waited_for": 0}


def test_many_threads_share_few_connections(pool: Pool) -> None:
    def pid(_: int) -> int:
        with pool.connection() as connection:
            return connection.info.backend_pid

    with ThreadPoolExecutor(20) as threads:
        assert len(set(threads.map(pid, range(500)))) <= 2


def test_a_turn_comes_back_when_the_connection_dies(pool: Pool) -> None:
    for _ in range(5):
        with pytest.raises(psycopg.OperationalError), pool.connection() as connection:
            connection.execute("select pg_terminate_backend(pg_backend_pid())")
    with pool.connection() as one, pool.connection() as two:
        assert one.execute("select 1").fetchone() == two.execute("select 1").fetchone() == (1,)


def test_closing_it_ends_all_waiting(pool: Pool) -> None:
    with ThreadPoolExecutor(5) as threads, pool.connection(), pool.connection():
        waiting = [threads.submit(pool.connection(PATIENCE).__enter__) for _ in range(5)]
        eventually(lambda: pool.figures()["waited_for"] == 5)
        pool.close()
        for future in waiting:
            assert isinstance(future.exception(PATIENCE), PoolClosed)
