"""A node inside a program: what keeps it from starting, and that it starts once."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from progressor import (
    CannotListen,
    Client,
    InvalidRequest,
    Node,
    Process,
    ProcessNotFound,
    ProgressorError,
    RequestTimeout,
    StorageUnavailable,
)
from progressor.engine.directory import Role
from progressor.rpc import codec
from progressor.storage.embedded import EmbeddedPostgres
from tests import stage
from tests.conftest import FAST_SETTINGS, Database
from tests.eventually import eventually
from tests.stage import PATIENCE, does, steps


@pytest.mark.parametrize("port", ["http", "thrift"])
def test_a_port_that_is_taken_is_an_error_of_ours(database: Database, port: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        node = Node.from_config(stage.config(database, {"a/b": steps()}) | {"listen": {port: address}})
        with pytest.raises(ProgressorError, match=f"^cannot listen on {address}: Address already in use$") as failed:
            node.start()
    assert type(failed.value) is CannotListen
    assert isinstance(failed.value.__cause__, OSError)
    with pytest.raises(RuntimeError, match="starts once"):
        node.start()


def test_the_futures_of_a_node_that_has_stopped(database: Database) -> None:
    with Node.from_config(stage.config(database, {"a/b": steps(does(b"1"))})) as node:
        node.client.init(ns="a/b", id="p")
        client = node.client.future
    p: Mapping[str, Any] = {"ns": "a/b", "id": "p"}
    asked: list[Future[Any]] = [
        client.call(**p),
        client.get(**p),
        client.put(ns="a/b", id="new", process=Process("new")),
        client.trace(**p),
        client.list(ns="a/b"),
        client.health_check(["a/b"]),
        client.timer(**p),
        client.modernize(**p),
    ]
    for future in asked:
        with pytest.raises(StorageUnavailable, match="the node stops"):
            future.result()


def test_a_stop_answers_all_who_wait_though_the_database_is_away(
    postgres_bin: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """One request is in the writer's hands, the others are in its mailbox."""
    p: Mapping[str, Any] = {"ns": "a/b", "id": "p"}
    with (
        EmbeddedPostgres.start(bin_dir=postgres_bin, settings=FAST_SETTINGS) as server,
        ThreadPoolExecutor() as threads,
        stage.node(Database("postgres", server.conninfo), {"a/b": steps(does())}) as node,
    ):
        node.client.init(**p)
        server.stop()
        asked = [node.client.future.call(**p)]
        eventually(lambda: "items wait" in caplog.text)
        asked += [node.client.future.call(**p), threads.submit(node.client.call, **p)]
        writer = node._directory.find(Role.WRITER, "progressor_db")
        assert writer is not None
        eventually(lambda: writer.mailbox_length == 2)
        node.stop(drain=False)
        wait(asked, PATIENCE)
        assert [type(future.exception(0)) for future in asked[1:]] == [RequestTimeout, RequestTimeout]
        assert isinstance(asked[0].exception(0), ProgressorError)


def test_a_stop_answers_who_waits_for_a_thread_with_an_error_of_ours(database: Database) -> None:
    held = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    with psycopg.connect(**database.conninfo, autocommit=True) as connection:
        with stage.node(database, {"a/b": steps()}) as node, psycopg.connect(**database.conninfo) as other:
            other.execute(SQL("lock table {} in access exclusive mode").format(Identifier("a/b_tasks")))
            asked = [node.client.future.trace(ns="a/b", id="p") for _ in range(10)]
            eventually(lambda: len(connection.execute(held).fetchall()) == 4)
            node.stop(drain=False)
        found = {type(future.exception(PATIENCE)) for future in asked}
    assert found <= {ProcessNotFound, StorageUnavailable}
    assert StorageUnavailable in found


def test_a_node_starts_once(database: Database) -> None:
    config = stage.config(database, {"a/b": steps(does(b"1"), does(b"2"))})
    with Node.from_config(config) as node:
        node.client.init(ns="a/b", id="p")
        with pytest.raises(RuntimeError, match=r"^a node starts once: make another one$"):
            node.start()
        node.client.call(ns="a/b", id="p")
    with pytest.raises(RuntimeError, match="starts once"):
        node.start()
    with Node.from_config(config) as another:
        assert another.client.get(ns="a/b", id="p").last_event_id == 2


@pytest.mark.parametrize("port", ["http", "thrift"])
def test_an_answer_that_is_too_large_for_thrift(database: Database, monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    settings = stage.config(database, {"a/b": steps()}) | {"listen": {port: "127.0.0.1:0"}}
    with Node.from_config(settings) as node:
        node.client.put(ns="a/b", id="p", process=Process("p", aux_state=b"x" * 1000))
        address = node.http_address if port == "http" else node.thrift_address
        assert address is not None
        with Client(f"{port}://{address[0]}:{address[1]}") as client:
            monkeypatch.setattr(codec, "LARGEST", 1000)
            with pytest.raises(InvalidRequest, match=r"more than 1000 bytes, .* ask for a smaller range"):
                client.get(ns="a/b", id="p")
            monkeypatch.undo()
            assert client.get(ns="a/b", id="p").aux_state == b"x" * 1000
