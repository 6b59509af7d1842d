"""progressor-node --dev: nothing but the checkout is needed, and nothing is left behind."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import TupleRow

from progressor import Client, Health
from tests.acceptance.nodes import FREE_PORT, NodeProcess, run, servers_in, started
from tests.eventually import eventually

OF_THE_ORIGINAL = {
    "progressor_calls_scanning_duration_ms",
    "progressor_timers_scanning_duration_ms",
    "progressor_zombie_collection_duration_ms",
    "progressor_request_preparing_duration_ms",
    "progressor_task_processing_duration_ms",
    "progressor_task_completion_duration_ms",
    "progressor_process_removing_duration_ms",
    "progressor_notification_duration_ms",
}
OURS = {
    "progressor_workers_busy": "gauge",
    "progressor_workers_free": "gauge",
    "progressor_tasks_ready": "gauge",
    "progressor_tasks_ready_oldest_seconds": "gauge",
    "progressor_tasks_expected": "gauge",
    "progressor_callers_waiting": "gauge",
    "progressor_retries_total": "counter",
    "progressor_failures_total": "counter",
    "progressor_zombies_total": "counter",
    "progressor_fenced_completions_total": "counter",
    "progressor_workers_abandoned_total": "counter",
    "progressor_batch_size": "histogram",
    "progressor_commit_duration_ms": "histogram",
    "progressor_lease_age_seconds": "gauge",
    "progressor_pool_connections": "gauge",
}
NAMESPACES = {"default/echo", "default/counter", "default/payment"}


@pytest.fixture
def start_dev(open_dir: Path, tmp_path: Path) -> Iterator[Callable[..., NodeProcess]]:
    """Starts a node whose temporary directories are made in `open_dir`."""
    with ExitStack() as stack:

        def start(*arguments: str | Path) -> NodeProcess:
            command = ("--dev", "--http", FREE_PORT, "--thrift", FREE_PORT, *arguments)
            return stack.enter_context(started(tmp_path / "log", *command, env={"TMPDIR": str(open_dir)}))

        yield start
    eventually(lambda: not servers_in(open_dir), 30)  # the watchdog stops what a failed test leaves


def test_from_the_start_to_the_end(start_dev: Callable[..., NodeProcess], open_dir: Path) -> None:
    node = start_dev()
    node.wait_ready()
    assert len(servers_in(open_dir)) > 1
    check_pages(node)
    check_metrics(node)
    check_ports(node)
    assert node.stop() == 0
    assert servers_in(open_dir) == []
    assert list(open_dir.iterdir()) == []
    assert not re.search("Traceback|ERROR", node.errors)


def check_pages(node: NodeProcess) -> None:
    health, ready = node.get("/health"), node.get("/ready")
    assert (health.status, health.content_type) == (200, "application/json")
    assert health.json["status"] == "passing"
    assert set(health.json["details"]) == NAMESPACES
    assert all(details["problems"] == [] for details in health.json["details"].values())
    assert (ready.status, ready.content_type, ready.json) == (200, "application/json", {"ready": True})
    assert node.get("/unknown").status == 404


def check_ports(node: NodeProcess) -> None:
    for url in (node.thrift_url, node.url):
        with Client(url) as client:
            assert client.health_check(sorted(NAMESPACES))[0] == Health.PASSING


def check_metrics(node: NodeProcess) -> None:
    eventually(lambda: node.metric("progressor_workers_free") == 60)  # counted a moment after the start
    page = node.get("/metrics")
    assert (page.status, page.content_type.split(";")[0]) == (200, "text/plain")
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", page.body, re.MULTILINE))
    assert {name for name in OF_THE_ORIGINAL if types.get(name) == "histogram"} == OF_THE_ORIGINAL
    assert OURS.items() <= types.items()
    assert all(f'progressor_workers_free{{prg_namespace="{ns}"}} 20.0\n' in page.body for ns in NAMESPACES)


def test_the_data_are_kept_where_one_wants_them(start_dev: Callable[..., NodeProcess], open_dir: Path) -> None:
    data = open_dir / "data"
    for kept in ([], [(1,)]):
        node = start_dev("--data", data)
        node.wait_ready()
        with connect(data) as connection:
            connection.execute("create table if not exists kept (n int)")
            assert connection.execute("select n from kept").fetchall() == kept
            connection.execute("insert into kept values (1)")
        assert node.stop(signal.SIGINT) == 0
        assert servers_in(open_dir) == []
    assert list(open_dir.iterdir()) == [data]


def connect(data: Path) -> psycopg.Connection[TupleRow]:
    """As `EmbeddedPostgres` would; the port is in the fourth line of the server's lock file."""
    port = int((data / "data" / "postmaster.pid").read_text().splitlines()[3])
    return psycopg.connect(
        host="127.0.0.1", port=port, user="progressor", password=(data / "password").read_text(), dbname="postgres"
    )


def test_told_to_stop_before_it_runs(start_dev: Callable[..., NodeProcess], open_dir: Path) -> None:
    node = start_dev()
    eventually(lambda: list(open_dir.glob("*/password")))  # initdb begins
    assert node.stop() == 1
    assert list(open_dir.iterdir()) == []
    assert servers_in(open_dir) == []
    assert "Traceback" not in node.errors


@pytest.mark.parametrize("ports", [("--http", "--thrift"), ("--thrift", "--http")])
def test_a_port_that_is_taken_leaves_no_server(open_dir: Path, ports: tuple[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = run("--dev", ports[0], address, ports[1], FREE_PORT, env={"TMPDIR": str(open_dir)})
    assert result.returncode == 1
    assert result.stderr.endswith(f"progressor-node: cannot listen on {address}: Address already in use\n")
    assert "Traceback" not in result.stderr
    assert servers_in(open_dir) == []
    assert list(open_dir.iterdir()) == []
