"""`progressor-node --processes` behind `progressor.Client`: one TCP port, several processes, and one of them ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event

import pytest

from progressor import Client, ProgressorError, RequestTimeout, StorageUnavailable
from tests.acceptance.nodes import FREE_PORT, NodeProcess, as_toml, config, is_alive, started
from tests.conftest import Database
from tests.eventually import eventually

ECHO = "shared/echo"
CALLERS = 8


@pytest.fixture
def fleet(database: Database, tmp_path: Path) -> Iterator[NodeProcess]:
    settings = config(database.conninfo, tmp_path)
    settings["progressor"]["namespaces"][ECHO] = {
        "processor": {"client": "echo"},
        "worker_pool_size": 4,
        "retry_interrupted": ["init", "call"],
    }
    settings["listen"]["thrift"] = FREE_PORT
    file = tmp_path / "sys.toml"
    file.write_text(as_toml(settings))
    with started(tmp_path / "log", "--config", file, "--processes", "2") as fleet:
        fleet.wait_ready()
        yield fleet


def alive(fleet: NodeProcess) -> list[int]:
    return [pid for pid in fleet.engine_processes() if is_alive(pid)]


def keep_calling(client: Client, name: str, enough: Event, begun: Barrier) -> int:
    """Calls with keys until it is enough, each once; how many were answered."""
    client.init(ns=ECHO, id=name, idempotency_key=f"init of {name}")
    begun.wait(30)
    calls = 0
    while not enough.is_set():
        arg = b"%d" % calls
        key = f"call {calls} of {name}"
        try:
            assert client.call(ns=ECHO, id=name, args=arg, idempotency_key=key) == arg
        except (RequestTimeout, StorageUnavailable):
            continue  # ask again, with the same key
        calls += 1
    return calls


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_calls_with_keys_are_done_once_though_a_process_ends(fleet: NodeProcess, number: signal.Signals) -> None:
    enough, begun = Event(), Barrier(CALLERS + 1)
    with Client(fleet.thrift_url) as client, ThreadPoolExecutor(CALLERS) as callers:
        names = [f"p{n}" for n in range(CALLERS)]
        answered = {name: callers.submit(keep_calling, client, name, enough, begun) for name in names}
        begun.wait(30)
        os.kill(alive(fleet)[0], number)
        eventually(lambda: len(fleet.engine_processes()) == 3 and len(alive(fleet)) == 2, 30)
        eventually(lambda: fleet.get("/health").status == 200, 30)
        enough.set()
        for name, calls in answered.items():
            wanted = [b"%d" % n for n in range(calls.result(60))]
            assert [event.payload for event in client.get(ns=ECHO, id=name).history] == wanted


def test_a_stop_ends_every_connection(fleet: NodeProcess) -> None:
    with Client(fleet.thrift_url) as client:
        client.init(ns=ECHO, id="p")
        assert fleet.stop() == 0
        with pytest.raises(ProgressorError, match="cannot connect"):
            client.get(ns=ECHO, id="p")
    assert "Traceback" not in fleet.errors
