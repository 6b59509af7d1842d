"""A database and a node for a module. The tests of a module have processes of their own on it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from progressor.otp import actors
from progressor.storage.embedded import EmbeddedPostgres
from tests import stage
from tests.conftest import Database, fresh_database
from tests.eventually import eventually

NAMESPACES = {
    "a/b": {},
    "impatient": {"process_step_timeout": 0.5, "retry_policy": stage.FAST_RETRIES | {"max_attempts": 5}},
    "picky": {"retry_policy": stage.FAST_RETRIES | {"max_attempts": 5, "non_retryable_errors": ["enough", "Declined"]}},
}


@contextmanager
def theatre_of(database: Database, **settings: Any) -> Iterator[stage.Theatre]:
    """`settings` as those of `stage.config`."""
    theatre = stage.Theatre(database)
    with stage.node(database, dict.fromkeys(NAMESPACES, theatre), namespaces=NAMESPACES, **settings) as node:
        theatre.node = node
        yield theatre


@pytest.fixture(scope="module", autouse=True)
def _nothing_survives(postgres_server: EmbeddedPostgres) -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    eventually(lambda: not actors())
    eventually(lambda: set(threading.enumerate()) <= before)


@pytest.fixture(scope="module")
def shared_database(postgres_server: EmbeddedPostgres) -> Iterator[Database]:
    with fresh_database(postgres_server) as database:
        yield database


@pytest.fixture(scope="module")
def theatre(shared_database: Database) -> Iterator[stage.Theatre]:
    """`a/b`; `impatient`, whose steps have half a second; `picky`, where `enough` and Declined are not retried."""
    with theatre_of(shared_database) as theatre:
        yield theatre


@pytest.fixture
def gate() -> Iterator[stage.Gate]:
    """Opened after the test, whatever happens."""
    with stage.Gate() as gate:
        yield gate
