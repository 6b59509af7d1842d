"""What a node has in its hands is not taken for a zombie by the node itself, however slow its other parts are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event as Flag

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from progressor import Node
from progressor.engine.directory import Role
from progressor.engine.messages import CollectZombies
from tests.conftest import Database
from tests.eventually import eventually
from tests.integration.engine.conftest import theatre_of
from tests.integration.storage.nodes import Connection
from tests.stage import PATIENCE, Gate, Theatre, does

LEASE = {"lease_timeout": 2, "heartbeat_interval": 0.3}
ONE_WORKER = {"worker_pool_size": 1, "task_scan_timeout": 0.5, "call_scan_timeout": 0.5}


@pytest.fixture
def theatre(database: Database) -> Iterator[Theatre]:
    with theatre_of(database, node=LEASE, defaults=ONE_WORKER) as theatre:
        yield theatre


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    with psycopg.connect(**database.conninfo, autocommit=True) as connection:
        yield connection


def outlive_the_lease(connection: Connection) -> None:
    connection.execute("select pg_sleep(%s)", [LEASE["lease_timeout"] + 0.5])


def rounds(node: Node) -> float:
    """How often zombies have been collected."""
    pattern = rb'^progressor_zombie_collection_duration_ms_count\{.*"a/b".*\} (\S+)$'
    found = re.search(pattern, node.scrape(), re.MULTILINE)
    return 0.0 if found is None else float(found[1])


def test_a_task_that_begins_while_the_scheduler_is_asked_is_not_taken(
    theatre: Theatre, connection: Connection, gate: Gate
) -> None:
    """The scheduler answers the collector, but not at once: somebody's callback holds it up."""
    first, second = theatre.play(does(), gate.holds(does())), theatre.play(does(), does(response=b"yes"))
    first.init()
    second.init()
    entered, opened = Flag(), Flag()

    def hold(_: Future[bytes | None]) -> None:
        entered.set()
        opened.wait(PATIENCE)

    held = first.later("call")
    held.add_done_callback(hold)
    gate.open()
    assert entered.wait(PATIENCE)
    directory = theatre.node._directory
    scheduler = directory.find(Role.SCHEDULER, "a/b")
    assert scheduler is not None
    directory.cast(Role.ZOMBIE_COLLECTOR, "a/b", CollectZombies())
    eventually(lambda: scheduler.mailbox_length)
    call = second.later("call")
    eventually(lambda: second.tasks[-1] == "call running")
    outlive_the_lease(connection)
    opened.set()
    assert call.result() == b"yes"


def test_a_task_that_is_being_handed_back_is_not_taken(theatre: Theatre, connection: Connection, gate: Gate) -> None:
    """It has waited for a worker for longer than a lease, and the scanner, who hands back, is in a long scan."""
    busy, waiting = theatre.play(does(), gate.holds(does())), theatre.play(does(), does(response=b"yes"))
    busy.init()
    waiting.init()
    busy.later("call")
    gate.wait_entered()
    waiting.later("call")
    eventually(lambda: waiting.tasks[-1] == "call running")
    outlive_the_lease(connection)
    with ThreadPoolExecutor() as threads:
        with psycopg.connect(**theatre.database.conninfo) as scan:
            scan.execute(SQL("lock table {} in access exclusive mode").format(Identifier("a/b_schedule")))
            waits = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
            eventually(lambda: connection.execute(waits).fetchall())
            stop = threads.submit(theatre.node.stop)
            eventually(lambda: not theatre.node.is_ready)
            before = rounds(theatre.node)
            eventually(lambda: rounds(theatre.node) >= before + 2)
        gate.open()
        stop.result(PATIENCE)
    found = connection.execute(
        SQL("select process_id, status::text, attempts_count from {}").format(Identifier("a/b_schedule"))
    ).fetchall()
    assert found == [(waiting.id, "waiting", 0)]
