"""progressor-node --processes: one parent, several engine processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from progressor import Node
from tests.acceptance.nodes import as_toml, is_alive
from tests.conftest import Database
from tests.eventually import eventually

NS = "fleet/counter"


def config(database: Database) -> dict[str, Any]:
    info = database.conninfo
    return {
        "progressor": {
            "lease_timeout": 2,
            "heartbeat_interval": 0.3,
            "defaults": {"worker_pool_size": 3, "task_scan_timeout": 1, "call_scan_timeout": 0.5},
            "namespaces": {NS: {"processor": {"client": "counter", "options": {"tick": 0.05}}}},
        },
        "databases": {
            "db": {
                "host": info["host"],
                "port": info["port"],
                "database": info["dbname"],
                "username": info["user"],
                "password": info["password"],
            }
        },
        "pools": {
            n: {"database": "db", "size": 3} for n in ("default_pool", "default_scan_pool", "default_front_pool")
        },
        "listen": {"http": "127.0.0.1:0"},
    }


class Fleet:
    def __init__(self, file: Path, log: Path) -> None:
        command = [sys.executable, "-m", "progressor.node", "--config", str(file), "--processes", "2"]
        self._log = log
        with log.open("w") as output:
            self.parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=output, text=True)
        assert self.parent.stdout is not None
        assert self.parent.stdout.readline() == "progressor-node: ready\n", log.read_text()
        address = re.search(r"(http://\S+)/metrics", log.read_text())
        assert address is not None
        self._url = address[1]

    def get(self, page: str) -> str:
        try:
            answer = urllib.request.urlopen(f"{self._url}/{page}", timeout=10)
        except urllib.error.HTTPError as error:  # a page that says no
            answer = error
        with answer:
            text: str = answer.read().decode()
            return text

    def children(self) -> list[int]:
        return [int(pid) for pid in re.findall(r"engine process \d: pid (\d+)", self._log.read_text())]

    def end(self) -> None:
        for pid in (self.parent.pid, *self.children()):
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)
        self.parent.wait()
        if self.parent.stdout is not None:
            self.parent.stdout.close()


@pytest.fixture
def fleet(database: Database, tmp_path: Path) -> Iterator[Fleet]:
    file = tmp_path / "sys.toml"
    file.write_text(as_toml(config(database)))
    running = Fleet(file, tmp_path / "log")
    yield running
    running.end()


@pytest.fixture
def events(database: Database) -> Iterator[Callable[[], int]]:
    with psycopg.connect(**database.conninfo, autocommit=True) as connection:

        def count() -> int:
            row = connection.execute(f'select count(*) from "{NS}_events"').fetchone()
            return 0 if row is None else int(row[0])

        yield count


def start_counters(database: Database) -> None:
    settings = config(database)
    settings.pop("listen")
    with Node.from_config(settings) as node:
        for n in range(6):
            node.client.init(ns=NS, id=f"counter {n}")


def test_two_processes_share_the_work_and_speak_with_one_voice(
    database: Database, fleet: Fleet, events: Callable[[], int]
) -> None:
    start_counters(database)
    before = events()
    eventually(lambda: events() > before + 100)
    metrics = eventually(lambda: found if steps_of(found := fleet.get("metrics"), "0") else "")
    eventually(lambda: steps_of(fleet.get("metrics"), "1") > 0)
    assert 'progressor_lease_age_seconds{database="db",process="0"}' in metrics
    health = json.loads(fleet.get("health"))
    assert health["status"] == "passing"
    assert set(health["details"]) == {"process 0", "process 1"}
    assert json.loads(fleet.get("ready")) == {"ready": True}


def test_a_process_that_dies_is_started_again(database: Database, fleet: Fleet, events: Callable[[], int]) -> None:
    start_counters(database)
    os.kill(fleet.children()[0], signal.SIGKILL)
    eventually(lambda: len(fleet.children()) == 3)
    eventually(lambda: json.loads(fleet.get("ready")) == {"ready": True}, timeout=30)
    before = events()
    eventually(lambda: events() > before + 50)


def test_a_process_that_freezes_is_told_of_and_the_others_answer(fleet: Fleet) -> None:
    frozen = fleet.children()[0]
    eventually(lambda: json.loads(fleet.get("health"))["status"] == "passing")
    os.kill(frozen, signal.SIGSTOP)
    try:
        for _ in range(2):
            answer = json.loads(fleet.get("health"))
            assert answer["status"] == "critical"
            assert answer["details"]["process 0"] == {"status": "no answer"}
            assert answer["details"]["process 1"]["status"] == "passing"
    finally:
        os.kill(frozen, signal.SIGCONT)
    eventually(lambda: json.loads(fleet.get("health"))["status"] == "passing", timeout=30)
    metrics = eventually(lambda: found if 'process="0"' in (found := fleet.get("metrics")) else "")
    assert 'process="1"' in metrics


def test_the_first_sigterm_drains_all(database: Database, fleet: Fleet) -> None:
    start_counters(database)
    fleet.parent.send_signal(signal.SIGTERM)
    assert fleet.parent.wait(timeout=60) == 0
    with psycopg.connect(**database.conninfo, autocommit=True) as connection:
        assert connection.execute("select count(*) from progressor_nodes").fetchone() == (0,)
        assert connection.execute(f'select count(*) from "{NS}_running"').fetchone() == (0,)


def test_children_whose_parent_is_killed_stop_by_themselves(fleet: Fleet) -> None:
    children = fleet.children()
    os.kill(fleet.parent.pid, signal.SIGKILL)
    fleet.parent.wait()
    eventually(lambda: not any(is_alive(pid) for pid in children), timeout=30)


def steps_of(metrics: str, process: str) -> float:
    pattern = rf'^progressor_task_processing_duration_ms_count{{.*process="{process}".*}} (\S+)$'
    return sum(float(value) for value in re.findall(pattern, metrics, re.MULTILINE))
