"""A node inside a program: what keeps it from starting, and that it starts once."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import pytest

from progressor import CannotListen, Node, Process, ProgressorError, StorageUnavailable
from tests import stage
from tests.conftest import Database
from tests.stage import does, steps


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
