"""The committer's connection: what it does when that is lost, and how the driver's errors are told."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta

import psycopg
import pytest
from psycopg import errors as pg
from psycopg_pool import PoolClosed, PoolTimeout

from progressor.engine import lifecycle
from progressor.engine.ports import Accepted, Batch, Completed, Lost
from progressor.errors import LeaseLost, StorageError, StorageRejected, StorageUnavailable
from progressor.model import Answered, Event, Intent, Range
from progressor.postgres import LEASE_LOST, translate, translated
from progressor.storage.committer import Committer
from progressor.storage.embedded import EmbeddedPostgres
from progressor.storage.postgres import PostgresStorage
from tests.conftest import Database
from tests.eventually import eventually
from tests.integration.storage.nodes import NS, SECOND_NS, Node, Tap, request, soon, started, step


def backend(node: Node) -> int:
    """The process id of the server's side of the committer's connection."""
    connection = node.committer._connection
    assert connection is not None
    return connection.info.backend_pid


def alive(tap: Tap, pid: int) -> bool:
    return bool(tap.rows("select from pg_stat_activity where pid = %s", pid))


def terminate(tap: Tap, pid: int) -> None:
    tap.execute("select pg_terminate_backend(%s)", pid)
    eventually(lambda: not alive(tap, pid))


def cut(node: Node) -> None:
    """Ends the connection on our side of the network only; the server's session does not notice while it waits."""
    connection = node.committer._connection
    assert connection is not None
    with socket.socket(fileno=os.dup(connection.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def watch(migrated: Database) -> Iterator[Tap]:
    """Looks at sessions; within a transaction that would always be the same look."""
    with psycopg.connect(**migrated.conninfo, autocommit=True) as connection:
        yield Tap(connection)


# Connections


def test_a_committer_connects_again(node: Node, tap: Tap) -> None:
    node.process("p")
    old = backend(node)
    terminate(tap, old)
    batch = [request("call", "p")]
    with pytest.raises(StorageUnavailable):
        node.commit(batch)
    (answer,) = node.commit(batch, again=True).requests
    assert node.finish(started(answer)) == Completed()
    assert backend(node) != old


def test_a_committer_can_be_closed_before_it_was_used(node: Node) -> None:
    node.close()


def test_a_committer_survives_refused_batches(node: Node) -> None:
    """Also when they come while psycopg is about to prepare its statements."""
    for n in range(12):
        with pytest.raises(StorageRejected):
            node.ask("init", "\0")
        node.process(f"p{n}")


def test_a_lost_session_is_ended_before_the_batch_is_sent_again(node: Node, tap: Tap, watch: Tap) -> None:
    """Else its transaction could come true after the one that repeats it."""
    node.process("p")
    old = backend(node)
    batch = [request("call", "p")]
    with ThreadPoolExecutor(1) as thread:
        with tap.locked("p"):
            lost = thread.submit(node.commit, batch)
            eventually(lambda: _waits(watch, old))
            cut(node)
            assert isinstance(lost.exception(10), StorageUnavailable)
            assert alive(watch, old)
            again = thread.submit(node.commit, batch, again=True)
            eventually(lambda: not alive(watch, old))
            assert not again.done()
        (answer,) = again.result(10).requests
    assert started(answer).task.task_type == "call"
    assert tap.value("select count(*) from {tasks} where task_type = 'call'") == 1


def test_a_batch_that_was_stored_before_its_session_was_lost_is_not_stored_twice(node: Node, tap: Tap) -> None:
    batch = [request("init", "p")]
    first = node.commit(batch).requests
    cut(node)
    with pytest.raises(StorageUnavailable):
        node.commit(batch)
    assert node.commit(batch, again=True).requests == first
    assert tap.value("select count(*) from {tasks}") == 1


def _waits(tap: Tap, pid: int) -> bool:
    return tap.rows("select wait_event_type from pg_stat_activity where pid = %s", pid) == [("Lock",)]


def test_a_read_gets_over_a_connection_that_died_in_the_pool(node: Node, tap: Tap, storage: PostgresStorage) -> None:
    node.process("p", Intent([Event(b"e")]))
    assert storage.get(NS, "p", Range()) is not None
    sessions = tap.rows("select pid from pg_stat_activity where application_name = 'progressor test'")
    assert sessions
    for (pid,) in sessions:
        terminate(tap, pid)
    assert storage.get(NS, "p", Range()) is not None


def test_sessions_speak_utc(migrated: Database) -> None:
    foreign = {**migrated.conninfo, "options": "-c timezone=Asia/Tokyo"}
    with closing(Node(foreign)) as node:
        at = node.start("init", "p").task.scheduled_time
    assert at.utcoffset() == timedelta(0)


# Namespaces


def test_one_transaction_takes_batches_of_many_namespaces(node: Node) -> None:
    batches = {ns: Batch([request("init", "p", ns.encode())]) for ns in (SECOND_NS, NS)}
    results = node.committer.commit(node.epoch, batches, again=False)
    assert {ns: started(results[ns].requests[0]).task.args for ns in results} == {SECOND_NS: b"second", NS: NS.encode()}


def test_poison_in_one_namespace_stops_the_others(node: Node, tap: Tap) -> None:
    batches = {NS: Batch([request("init", "p")]), SECOND_NS: Batch([request("init", "\0")])}
    with pytest.raises(StorageRejected):
        node.committer.commit(node.epoch, batches, again=False)
    assert not any(tap.tables().values())


def test_an_idempotency_key_belongs_to_its_namespace(node: Node) -> None:
    batches = {ns: Batch([request("init", f"p of {ns}", key="k")]) for ns in (SECOND_NS, NS)}
    results = node.committer.commit(node.epoch, batches, again=False)
    assert all(isinstance(results[ns].requests[0], Accepted) for ns in batches)


def test_an_empty_commit_asks_for_the_lease_only(node: Node) -> None:
    assert node.committer.commit(node.epoch, {}, again=False) == {}
    node.die()
    with pytest.raises(LeaseLost):
        node.committer.commit(node.epoch, {}, again=False)


def test_a_node_that_is_declared_dead_waits_for_the_transactions_of_its_lease(node: Node, tap: Tap, watch: Tap) -> None:
    """So nothing of it comes after what its heir does."""
    node.process("p")
    claimed = node.start("call", "p")
    with ThreadPoolExecutor(2) as threads:
        with tap.locked("p"):
            commit = threads.submit(node.complete, step(claimed))
            eventually(lambda: _waits(watch, backend(node)))
            death = threads.submit(node.die)
            eventually(lambda: watch.value("select count(*) from pg_locks where not granted") == 2)
            assert not death.done()
        assert commit.result(10) == Completed()
        death.result(10)


# Errors


def test_data_that_are_refused_leave_no_doubt(node: Node) -> None:
    for process_id in ("\0", "\ud800"):  # one is refused by the server, the other is never sent
        with pytest.raises(StorageRejected):
            node.ask("init", process_id)
        assert not node.committer.in_doubt


def test_an_answer_that_cannot_be_read_leaves_what_was_committed(node: Node, tap: Tap) -> None:
    """Python has no such time. The batch has to be sent again as one that was stored."""
    node.process("p")
    timer = node.timer("p", soon())
    claimed = node.start("call", "p")
    tap.execute("update {schedule} set scheduled_time = 'infinity' where task_id = %s", timer.task_id)
    batch, completion = [request("init", "q")], step(claimed, Intent(response=b"answer"))
    with pytest.raises(StorageRejected):
        node.commit(batch, [completion])
    assert node.committer.in_doubt
    assert tap.task_status(claimed.task.task_id) == "finished"
    result = node.commit(batch, [completion], again=True)
    assert started(result.requests[0]).task.task_type == "init"
    assert result.completions == [Lost(Answered(b"answer", claimed.task.task_id))]
    assert tap.value("select count(*) from {tasks} where process_id = 'q'") == 1


def test_a_step_that_was_committed_after_all_is_not_replaced_by_its_refusal(node: Node) -> None:
    node.process("p")
    completion = step(node.start("call", "p"), Intent([Event(b"e")], response=b"answer"))
    node.queue("call", "p")
    assert isinstance(node.complete(completion), Completed)
    fate = node.complete(lifecycle.refuse(completion, "no"), again=True)
    assert fate == Lost(Answered(b"answer", completion.task.task_id))


def test_a_batch_is_suspect_when_the_time_for_a_statement_ran_out(node: Node, tap: Tap, watch: Tap) -> None:
    node.process("p")
    with ThreadPoolExecutor(1) as thread, tap.locked("p"):
        lost = thread.submit(node.ask, "call", "p")
        eventually(lambda: _waits(watch, backend(node)))
        watch.execute("select pg_cancel_backend(%s)", backend(node))
        assert isinstance(lost.exception(10), StorageUnavailable)
    assert node.committer.is_suspect
    assert node.committer.in_doubt


def _with_state(error: type[psycopg.Error], sqlstate: str) -> psycopg.Error:
    found = error("first line\nsecond line")
    found.sqlstate = sqlstate
    return found


class _Lease(psycopg.errors.DatabaseError):
    sqlstate = LEASE_LOST


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (pg.AdminShutdown, StorageUnavailable),
        (pg.CrashShutdown, StorageUnavailable),
        (pg.CannotConnectNow, StorageUnavailable),
        (pg.IdleSessionTimeout, StorageUnavailable),
        (pg.QueryCanceled, StorageUnavailable),
        (pg.TooManyConnections, StorageUnavailable),
        (pg.DiskFull, StorageUnavailable),
        (pg.OutOfMemory, StorageUnavailable),
        (pg.DeadlockDetected, StorageUnavailable),
        (pg.SerializationFailure, StorageUnavailable),
        (pg.LockNotAvailable, StorageUnavailable),
        (pg.ConnectionFailure, StorageUnavailable),
        (pg.SqlclientUnableToEstablishSqlconnection, StorageUnavailable),
        (pg.IoError, StorageUnavailable),
        (pg.ReadOnlySqlTransaction, StorageUnavailable),
        (psycopg.OperationalError, StorageUnavailable),
        (psycopg.InterfaceError, StorageUnavailable),
        (psycopg.errors.ConnectionTimeout, StorageUnavailable),
        (psycopg.errors.PipelineAborted, StorageUnavailable),
        (PoolTimeout, StorageUnavailable),
        (PoolClosed, StorageUnavailable),
        (pg.UniqueViolation, StorageRejected),
        (pg.NotNullViolation, StorageRejected),
        (pg.ForeignKeyViolation, StorageRejected),
        (pg.StringDataRightTruncation, StorageRejected),
        (pg.NumericValueOutOfRange, StorageRejected),
        (pg.CharacterNotInRepertoire, StorageRejected),
        (pg.UntranslatableCharacter, StorageRejected),
        (pg.InvalidTextRepresentation, StorageRejected),
        (pg.ProgramLimitExceeded, StorageRejected),
        (pg.StatementTooComplex, StorageRejected),
        (pg.UndefinedTable, StorageRejected),
        (pg.InsufficientPrivilege, StorageRejected),
        (psycopg.DataError, StorageRejected),
        (_Lease, LeaseLost),
    ],
)
def test_an_error_is_told_by_its_class_and_sqlstate(error: type[Exception], expected: type[StorageError]) -> None:
    found = translate(error("the first line\nthe second"))
    assert type(found) is expected
    assert "second" not in str(found)
    assert ("the first line" in str(found)) == (expected is not LeaseLost)


def test_the_driver_s_error_is_the_cause() -> None:
    cause = pg.DeadlockDetected("x")
    with pytest.raises(StorageUnavailable) as caught, translated():
        raise cause
    assert caught.value.__cause__ is cause


def test_errors_of_others_pass() -> None:
    with pytest.raises(ZeroDivisionError), translated():
        raise ZeroDivisionError


def test_a_server_that_is_not_there_is_unavailable(migrated: Database) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        nowhere = {**migrated.conninfo, "host": "127.0.0.1", "port": port}
        with closing(Committer(nowhere, {})) as committer, pytest.raises(StorageUnavailable):
            committer.commit(1, {}, again=False)


def test_a_database_that_is_not_there_is_unavailable(migrated: Database, postgres_server: EmbeddedPostgres) -> None:
    nope = {**migrated.conninfo, "dbname": "nope"}
    with closing(Committer(nope, {})) as committer, pytest.raises(StorageUnavailable):
        committer.commit(1, {}, again=False)


def test_a_deadlock_is_unavailable_and_the_batch_can_be_sent_again(node: Node, tap: Tap, watch: Tap) -> None:
    node.process("p")
    node.process("q")
    node.ask("call", "nobody")
    with ThreadPoolExecutor(1) as thread, tap.connection.transaction(force_rollback=True):
        tap.execute("set local deadlock_timeout to '1h'")
        tap.execute("select from {processes} where process_id = 'q' for update")
        batch = [request("call", "p"), request("call", "q")]
        lost = thread.submit(node.commit, batch)
        eventually(lambda: _waits(watch, backend(node)))
        tap.execute("select from {processes} where process_id = 'p' for update")
        assert isinstance(lost.exception(20), StorageUnavailable)
        assert not node.committer.is_suspect
    assert [started(a).task.process_id for a in node.commit(batch, again=True).requests] == ["p", "q"]


def test_an_answer_is_the_same_after_everything(node: Node) -> None:
    claimed = node.start("init", "p", key="k")
    node.finish(claimed, Intent(response=b""))
    assert node.ask("init", "p", key="k") == Answered(b"", claimed.task.task_id)
