"""`progressor-node --dev`: nothing but the checkout and Python."""

from __future__ import annotations

import http.client
import json
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from progressor import Node
from progressor.node import dev_config
from progressor.storage.embedded import EmbeddedPostgres
from tests.chaos.cluster import PROGRESSOR_NODE, NodeProcess
from tests.eventually import eventually

HISTOGRAMS = (
    "progressor_calls_scanning_duration_ms",
    "progressor_timers_scanning_duration_ms",
    "progressor_zombie_collection_duration_ms",
    "progressor_request_preparing_duration_ms",
    "progressor_task_processing_duration_ms",
    "progressor_task_completion_duration_ms",
    "progressor_process_removing_duration_ms",
    "progressor_notification_duration_ms",
)
OTHERS = (
    "progressor_workers_busy",
    "progressor_workers_free",
    "progressor_tasks_ready",
    "progressor_retries_total",
    "progressor_zombies_total",
    "progressor_fenced_completions_total",
    "progressor_batch_size",
    "progressor_commit_duration_ms",
    "progressor_lease_age_seconds",
    "progressor_pool_connections",
)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    node = dev_node(tmp_path_factory.mktemp("dev"))
    yield node
    node.close()


def dev_node(directory: Path, *more: str) -> NodeProcess:
    node = NodeProcess(
        "dev", [*PROGRESSOR_NODE, "--dev", "--http", "127.0.0.1:0", *more], directory / "log", directory / "none"
    )
    node.start()
    node.wait_ready()
    return node


def address(node: NodeProcess) -> tuple[str, int]:
    found = re.search(r"http://([\d.]+):(\d+)/", node.output)
    assert found is not None
    return found[1], int(found[2])


def home(node: NodeProcess) -> Path:
    found = re.search(r"embedded PostgreSQL \d+: (\S+)", node.output)
    assert found is not None
    return Path(found[1])


def test_metrics(node: NodeProcess) -> None:
    status, body = node.get("/metrics?name=anything")
    text = body.decode()
    assert status == 200
    for name in HISTOGRAMS:
        assert f"# TYPE {name} histogram\n" in text
    for name in OTHERS:
        assert re.search(rf"^# TYPE {name} ", text, re.MULTILINE), name
    eventually(lambda: node.metric("progressor_timers_scanning_duration_ms_count", prg_namespace="default/echo") > 0)


def test_health(node: NodeProcess) -> None:
    status, body = node.get("/health")
    answer = json.loads(body)
    assert (status, answer["status"]) == (200, "passing")
    assert set(answer["details"]) == {"default/echo", "default/counter", "default/payment"}


def test_ready(node: NodeProcess) -> None:
    status, body = node.get("/ready")
    assert (status, json.loads(body)) == (200, {"ready": True})


@pytest.mark.parametrize("path", ["/", "/metricsx", "/health/", "/../etc/passwd", "/%00", "//health"])
def test_an_unknown_path(node: NodeProcess, path: str) -> None:
    connection = http.client.HTTPConnection(*address(node), timeout=5)
    connection.request("GET", path)
    answer = connection.getresponse()
    assert answer.status == 404
    assert path.strip("/") not in answer.read().decode() or path == "/"
    connection.close()


@pytest.mark.parametrize(
    ("garbage", "answer"),
    [
        (b"\0\xff\xfe" * 300 + b"\r\n\r\n", b" 400 "),
        (b"GET " + b"/" * 70000 + b" HTTP/1.1\r\n\r\n", b" 414 "),
        (b"GET /health HTTP/9.9\r\n\r\n", b" 505 "),
        (b"POST /health HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", b" 501 "),
        (b"GET /health HTTP/1.1\r\n" + b"X-A: b\r\n" * 200 + b"\r\n", b" 431 "),
    ],
    ids=["bytes", "long", "version", "verb", "headers"],
)
def test_garbage(node: NodeProcess, garbage: bytes, answer: bytes) -> None:
    with socket.create_connection(address(node), timeout=5) as client:
        client.sendall(garbage)
        client.shutdown(socket.SHUT_WR)
        received = b""
        try:
            while more := client.recv(65536):
                received += more
        except ConnectionResetError:  # it has not read all
            assert received
    assert answer in received[:100], received[:200]
    assert node.get("/health")[0] == 200


def test_clients_that_go_away_in_the_middle(node: NodeProcess) -> None:
    for start in (b"", b"GET", b"GET /metrics HTTP/1.1\r\n\r\n"):
        client = socket.create_connection(address(node), timeout=5)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        client.sendall(start)
        client.close()
    assert node.get("/ready")[0] == 200
    assert "Traceback" not in node.output


def test_the_shipped_processors_work(node: NodeProcess) -> None:
    """A client in another process, until there is one on the network."""
    home_directory = home(node)
    lines = (home_directory / "data" / "postmaster.pid").read_text().splitlines()
    conninfo = {
        "host": "127.0.0.1",
        "port": int(lines[3]),
        "user": EmbeddedPostgres.user,
        "password": (home_directory / "password").read_text(),
        "dbname": EmbeddedPostgres.dbname,
    }
    settings = dict(dev_config(_Server(conninfo), http=None))
    with Node.from_config(settings) as client:
        assert client.client.init(ns="default/echo", id="e", args=b"x") == b"x"
        client.client.init(ns="default/counter", id="c")
        assert client.client.call(ns="default/counter", id="c", args=b"41") == b"41"
        assert client.client.call(ns="default/counter", id="c") == b"42"
    assert node.get("/health")[0] == 200


class _Server(EmbeddedPostgres):
    """Somebody else's server."""

    def __init__(self, conninfo: dict[str, object]) -> None:
        self.port = int(str(conninfo["port"]))
        self.password = str(conninfo["password"])


def test_sigterm_stops_the_node_and_its_postgres(tmp_path: Path) -> None:
    node = dev_node(tmp_path)
    postgres = int((home(node) / "data" / "postmaster.pid").read_text().splitlines()[0])
    assert node.stop() == 0
    assert not Path(f"/proc/{postgres}").exists()
    assert not home(node).exists()
    assert "Traceback" not in node.output


def test_a_killed_node_takes_its_postgres_along(tmp_path: Path) -> None:
    node = dev_node(tmp_path)
    place = home(node)
    node.kill()
    eventually(lambda: not place.exists(), 20)


def test_with_a_directory_the_data_stay(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    for parent in (tmp_path, *tmp_path.parents[:3]):  # whoever runs PostgreSQL must get there
        if parent.owner() != "root" or parent == Path("/tmp"):
            continue
        parent.chmod(0o755)
    for expected in (0, 1):
        node = dev_node(tmp_path, "--data", str(directory))
        try:
            lines = (directory / "data" / "postmaster.pid").read_text().splitlines()
            password = (directory / "password").read_text()
            with psycopg.connect(
                host="127.0.0.1", port=int(lines[3]), user="progressor", password=password, dbname="postgres"
            ) as connection:
                text = """select count(*) from pg_class where relname = 'kept'"""
                assert connection.execute(text).fetchone() == (expected,)
                connection.execute("create table if not exists kept ()")
            assert node.stop() == 0
        finally:
            node.close()
