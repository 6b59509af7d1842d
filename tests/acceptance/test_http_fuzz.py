"""The Automaton under mutated requests: no crash, no leak, and others are served meanwhile.

`PROGRESSOR_FUZZ` says how many requests; by default few, for a quick look.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from progressor.storage.embedded import EmbeddedPostgres
from tests.acceptance.nodes import NodeProcess, as_toml, config, started
from tests.acceptance.test_automaton import GET_MACHINE, VECTORS
from tests.conftest import fresh_database
from tests.eventually import eventually

REQUESTS = int(os.environ.get("PROGRESSOR_FUZZ", "4000"))
CLIENTS = 4
LONGEST_ANSWER = 10_000
HEAD = (
    b"POST /v1/automaton HTTP/1.1\r\nHost: x\r\ncontent-type: application/x-thrift\r\nwoody.trace-id: t\r\n"
    b"woody.span-id: s\r\nwoody.parent-id: p\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
)
BODIES = [body for name, body in VECTORS.items() if name.startswith("automaton") and "reply" not in name]
INTERESTING = (0, 1, 2, 8, 11, 12, 13, 15, 0x7F, 0x80, 0xFF)


@pytest.fixture
def node(postgres_server: EmbeddedPostgres, tmp_path: Path) -> Iterator[NodeProcess]:
    with fresh_database(postgres_server) as database:
        settings = config(database.conninfo, tmp_path)
        settings["progressor"]["namespaces"]["default/default"] = {"processor": {"client": "echo"}}
        file = tmp_path / "sys.toml"
        file.write_text(as_toml(settings))
        with started(tmp_path / "log", "--config", file) as node:
            node.wait_ready()
            yield node


def mutated(body: bytes, source: random.Random) -> bytes:
    data = bytearray(body)
    for _ in range(source.randrange(1, 5)):
        at = source.randrange(len(data) + 1)
        match source.randrange(5):
            case 0 if at < len(data):
                data[at] = source.choice(INTERESTING)
            case 1 if at < len(data):
                data[at] ^= 1 << source.randrange(8)
            case 2:
                del data[at : at + source.randrange(1, 9)]
            case 3:
                data[at:at] = source.randbytes(source.randrange(1, 9))
            case _:
                data[at:at] = data[source.randrange(len(data) + 1) :][: source.randrange(1, 30)]
    return bytes(data)


def send(address: tuple[str, int], request: bytes, *, is_all: bool = True) -> bytes:
    """What comes back; `is_all` False: whatever the request announces, no more of it comes."""
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(request)
        if not is_all:
            connection.shutdown(socket.SHUT_WR)
        return connection.recv(LONGEST_ANSWER)


def fuzz(address: tuple[str, int], seed: int) -> int:
    """How many requests with a good head got no answer that has a status."""
    source, silent = random.Random(seed), 0
    good = HEAD % len(GET_MACHINE) + GET_MACHINE
    for number in range(REQUESTS // CLIENTS):
        body = mutated(source.choice(BODIES), source)
        request = HEAD % len(body) + body
        if source.random() < 0.2:
            send(address, mutated(request, source), is_all=False)
        else:
            silent += not send(address, request).startswith(b"HTTP/1.1 ")
        if number % 50 == 0:
            assert send(address, good).startswith(b"HTTP/1.1 200 ")
    return silent


def figures(node: NodeProcess) -> dict[str, int]:
    """Threads, open files and memory of the process."""
    status = Path(f"/proc/{node.pid}/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in status)
    files = len(list(Path(f"/proc/{node.pid}/fd").iterdir()))
    return {"threads": int(found["Threads"]), "files": files, "kB": int(found["VmRSS"].split()[0])}


@pytest.mark.timeout(3600)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc to look for leaks in")
def test_mutated_requests(node: NodeProcess) -> None:
    host, port = node.url.removeprefix("http://").split(":")
    address = (host, int(port))
    for body in BODIES * 50:
        assert send(address, HEAD % len(body) + body).startswith(b"HTTP/1.1 200 ")
    before = figures(node)
    with ThreadPoolExecutor(CLIENTS) as clients:
        assert sum(clients.map(fuzz, [address] * CLIENTS, range(CLIENTS))) == 0
    eventually(lambda: figures(node)["files"] <= before["files"] + 2)
    after = figures(node)
    assert after["threads"] <= before["threads"] + 40  # those of the pool that serves pages
    assert after["kB"] < before["kB"] + 64 * 1024
    assert "Traceback" not in node.errors
    assert node.get("/ready").json == {"ready": True}
