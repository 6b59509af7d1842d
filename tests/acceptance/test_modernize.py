"""Automaton.Modernize: events that are stored get a newer representation, from a modernizer elsewhere or in Python."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import pytest

from progressor import ConfigError
from progressor.modernizer import resolve
from progressor.rpc import codec
from progressor.rpc.gen.msgpack.ttypes import Value
from progressor.rpc.gen.state_processing import Automaton
from progressor.rpc.gen.state_processing import ttypes as mg
from progressor.storage.embedded import EmbeddedPostgres
from tests.acceptance.nodes import NodeProcess, as_toml, automaton, config, started
from tests.acceptance.test_automaton import post
from tests.acceptance.test_remote_processor import free_port
from tests.conftest import fresh_database

PLAIN, HELLGATE, ALONE = "modern/plain", "modern/hellgate", "modern/none"
PYTHON = "modern/python"
new_id = map(str, count(1)).__next__


@pytest.fixture(scope="module")
def modernizer_port() -> Iterator[int]:
    port = free_port()
    command = [sys.executable, "-m", "tests.acceptance.modernizer", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield port
        finally:
            process.kill()


@pytest.fixture(scope="module")
def node(
    modernizer_port: int, postgres_server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NodeProcess]:
    directory = tmp_path_factory.mktemp("modernize")
    with fresh_database(postgres_server) as database:
        settings = config(database.conninfo, directory)
        namespaces = settings["progressor"]["namespaces"]
        for name in (PLAIN, HELLGATE, PYTHON, ALONE):
            namespaces[name] = {"processor": {"client": "tests.acceptance.processors:versioned"}, "worker_pool_size": 2}
        for name, dialect in ((PLAIN, "plain"), (HELLGATE, "hellgate")):
            options = {"url": f"http://127.0.0.1:{modernizer_port}/", "timeout": 5, "dialect": dialect}
            namespaces[name] |= {
                "dialect": dialect,
                "modernizer": {"client": "thrift", "format_version": 2, "options": options},
            }
        namespaces[PYTHON]["modernizer"] = {"client": "tests.acceptance.processors:newer", "format_version": 2}
        file = directory / "sys.toml"
        file.write_text(as_toml(settings))
        with started(directory / "log", "--config", file) as node:
            node.wait_ready()
            yield node


@pytest.fixture(scope="module")
def client(node: NodeProcess) -> Iterator[Automaton.Client]:
    with automaton(node) as machines:
        yield machines


def machine(name: str, ns: str = PLAIN, **range_: Any) -> mg.MachineDescriptor:
    return mg.MachineDescriptor(ns, mg.Reference(id=name), mg.HistoryRange(**range_))


def start(client: Automaton.Client, *events: tuple[str, Mapping[str, Any]], ns: str = PLAIN) -> str:
    name = new_id()
    client.Start(ns, name, Value(bin=json.dumps(events).encode()))
    return name


def history(client: Automaton.Client, name: str, ns: str = PLAIN) -> list[tuple[bytes, int | None]]:
    found = client.GetMachine(machine(name, ns)).history
    return [(bytes(event.data.bin), event.format_version) for event in found]


OLD = {"format_version": 1}


@pytest.mark.parametrize("ns", [PLAIN, HELLGATE])
def test_what_is_older_than_the_current_version_is_modernized(client: Automaton.Client, ns: str) -> None:
    events: list[tuple[str, Mapping[str, Any]]] = [
        ("a", OLD),
        ("b", {}),
        ("c", {"format_version": 2}),
        ("d", {"format": 1, "k": "v"}),
        ("same", OLD),
    ]
    name = start(client, *events, ns=ns)
    before = client.GetMachine(machine(name, ns)).history
    client.Modernize(machine(name, ns))
    mark = f"{ns} {name}".encode()
    expected = [(mark + b" 1 a", 2), (mark + b" 2 b", 2), (b"c", 2), (mark + b" 4 d", 2), (b"same", 1)]
    assert history(client, name, ns) == expected
    client.Modernize(machine(name, ns))
    assert history(client, name, ns) == expected
    after = client.GetMachine(machine(name, ns)).history
    assert [(e.id, e.created_at) for e in after] == [(e.id, e.created_at) for e in before]
    client.Call(machine(name, ns), Value(bin=json.dumps([("later", {"format_version": 2})]).encode()))
    assert history(client, name, ns) == [*expected, (b"later", 2)]


def test_a_range_is_modernized_in_its_order(client: Automaton.Client) -> None:
    name = start(client, *[(str(n), OLD) for n in range(1, 6)])
    client.Modernize(machine(name, after=1, limit=2))
    assert [version for _, version in history(client, name)] == [1, 2, 2, 1, 1]
    client.Modernize(machine(name, limit=1, direction=mg.Direction.backward))
    assert [version for _, version in history(client, name)] == [1, 2, 2, 1, 2]
    client.Modernize(machine(name, limit=0))
    assert [version for _, version in history(client, name)] == [1, 2, 2, 1, 2]


def test_a_history_of_many_pages(client: Automaton.Client) -> None:
    name = start(client, *[("x", OLD)] * 250)
    client.Modernize(machine(name, limit=230))
    assert [version for _, version in history(client, name)] == [2] * 230 + [1] * 20
    client.Modernize(machine(name, direction=mg.Direction.backward))
    assert [version for _, version in history(client, name)] == [2] * 250


@pytest.mark.parametrize(
    ("told", "status", "error_class", "reason"),
    [
        ("lower", 500, "Result Unexpected", "event 2: the modernizer answered version 0 for 1"),
        ("none", 500, "Result Unexpected", "event 2: the modernizer answered version None for 1"),
        ("unavailable", 503, "Resource Unavailable", "resource unavailable: HTTP status 503"),
        ("broken", 500, "Result Unexpected", "result unexpected: HTTP status 500"),
    ],
)
def test_a_modernizer_that_fails_leaves_what_is_done(
    node: NodeProcess, client: Automaton.Client, told: str, status: int, error_class: str, reason: str
) -> None:
    name = start(client, ("a", OLD), (told, OLD), ("c", OLD))
    message = codec.encode_message("Modernize", codec.CALL, 0, Automaton.Modernize_args(machine(name)))
    found, headers, _ = post(node, message)
    assert (found, headers["woody.error-class"], headers["woody.error-reason"]) == (status, error_class, reason)
    assert [version for _, version in history(client, name)] == [2, 1, 1]


def test_a_modernizer_in_python(node: NodeProcess, client: Automaton.Client) -> None:
    name = start(client, ("a", OLD), ("defect", OLD), ns=PYTHON)
    client.Modernize(machine(name, PYTHON, limit=1))
    assert history(client, name, PYTHON) == [(b"A", 2), (b"defect", 1)]
    message = codec.encode_message("Modernize", codec.CALL, 0, Automaton.Modernize_args(machine(name, PYTHON)))
    assert post(node, message)[1]["woody.error-reason"] == "ValueError: no idea"


def test_nobody_to_ask(client: Automaton.Client) -> None:
    with pytest.raises(mg.NamespaceNotFound):
        client.Modernize(machine(start(client, ns=ALONE), ALONE))
    with pytest.raises(mg.NamespaceNotFound):
        client.Modernize(machine("x", "no/where"))
    with pytest.raises(mg.MachineNotFound):
        client.Modernize(machine("ghost"))


@pytest.mark.parametrize("name", ["thrift", "nothing", "tests.acceptance.processors:gone", "json:loads"])
def test_a_modernizer_that_is_wrong_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"modernizer '{name}'|url"):
        resolve(name, {})
