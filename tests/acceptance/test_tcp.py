"""The TCP port of a node, and what strangers send to it."""

from __future__ import annotations

import re
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any

import pytest
from thrift.Thrift import TApplicationException

from progressor import CannotConnect, Client
from progressor.rpc import codec
from progressor.rpc.gen.native import Progressor as Native
from progressor.rpc.gen.native import ttypes as t
from progressor.storage.embedded import EmbeddedPostgres
from tests.acceptance.frames import frame, read_frame
from tests.acceptance.nodes import FREE_PORT, NS, Gates, NodeProcess, as_toml, config, native, started
from tests.acceptance.test_http_fuzz import figures
from tests.conftest import Database, fresh_database
from tests.eventually import eventually

LIMITS = {"request_bytes": 1_000_000, "connections": 40, "idle_timeout": 3, "stall_timeout": 1, "stop_timeout": 1}
BIG = b"x" * 900_000


@pytest.fixture(scope="module")
def shared(postgres_server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    directory = tmp_path_factory.mktemp("tcp")
    with fresh_database(postgres_server) as database:
        settings = config(database.conninfo, directory)
        settings["listen"] |= {"thrift": FREE_PORT, "limits": LIMITS}
        file = directory / "sys.toml"
        file.write_text(as_toml(settings))
        with started(directory / "log", "--config", file) as node:
            node.wait_ready()
            yield node


@pytest.fixture
def node(shared: NodeProcess) -> Iterator[NodeProcess]:
    """Whatever a test does to it, the node has nothing to complain about, and answers others."""
    yield shared
    eventually(lambda: connections(shared) == 0)
    assert health(shared)
    assert "Traceback" not in shared.errors
    assert "ERROR" not in shared.errors


def connect(node: NodeProcess) -> socket.socket:
    host, port = node.thrift_url.removeprefix("thrift://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def connections(node: NodeProcess) -> float:
    found = [line for line in node.get("/metrics").body.splitlines() if 'progressor_connections{port="thrift"}' in line]
    return float(found[0].split()[1])


def health(node: NodeProcess) -> bool:
    with native(node, "thrift") as client:
        return bool(client.HealthCheck([NS]).health == t.Health.passing)


GOOD = frame(codec.encode_message("HealthCheck", codec.CALL, 1, Native.HealthCheck_args([NS])))


def is_ended(connection: socket.socket) -> bool:
    """Waits for it."""
    try:
        return connection.recv(100_000) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\xff\xfe",
        b"\0\0\0\0",
        b"\x7f\xff\xff\xff" + b"x" * 1000,
        b"\x7f\xff\xff\xff" + b"\x80\x01\0\x01\x7f\xff\xff\xff",
        b"\x7f\xff\xff\xff" + b"\x80\x01\0\x01\xff\xff\xff\xff",
        b"\x7f\xff\xff\xff" + b"\x80\x01\0\x02\0\0\0\x03Get\0\0\0\x01",
        b"\xff\xff\xff\xff",
        frame(b"garbage"),
        frame(b"\x80\x01\0\x01\x7f\xff\xff\xffx"),
        GOOD[4:],
        frame(GOOD),
    ],
)
def test_garbage_and_huge_lengths_end_the_connection_at_once(node: NodeProcess, sent: bytes) -> None:
    with connect(node) as client:
        client.sendall(sent)
        assert is_ended(client)


@pytest.mark.parametrize(
    "sent", [b"\0", GOOD[:10], GOOD[:-1], b"\0\x0f\x42\x40" + b"x" * 100_000, b"\0\x0f\x42\x41" + b"\x80\x01"]
)
def test_half_a_frame_is_cut_off(node: NodeProcess, sent: bytes) -> None:
    with ExitStack() as stack:
        halves = [stack.enter_context(connect(node)) for _ in range(20)]
        for half in halves:
            half.sendall(sent)
        assert health(node)
        assert all(is_ended(half) for half in halves)


def test_who_says_nothing_is_cut_off_later(node: NodeProcess) -> None:
    with connect(node) as silent, connect(node) as polite:
        polite.sendall(GOOD)
        assert polite.recv(1000)
        assert is_ended(silent)
        assert is_ended(polite)


def test_frames_in_pieces_and_many_in_one(node: NodeProcess) -> None:
    with connect(node) as client:
        for at in range(len(GOOD)):
            client.sendall(GOOD[at : at + 1])
        assert read_frame(client)
        client.sendall(GOOD * 5)
        assert all(read_frame(client) for _ in range(5))


def test_who_never_reads_is_cut_off(node: NodeProcess) -> None:
    """Others are served meanwhile; what it asked for takes up no room when it is gone."""
    with native(node, "thrift") as client:
        client.Put(t.PutRequest(NS, "big", t.NewProcess(aux_state=BIG)))
    ask = frame(codec.encode_message("Get", codec.CALL, 1, Native.Get_args(t.GetRequest(NS, "big"))))
    with ExitStack() as stack:
        deaf = [stack.enter_context(connect(node)) for _ in range(10)]
        for each in deaf:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            each.sendall(ask * 10)
        eventually(lambda: connections(node) >= 10)
        assert health(node)
        eventually(lambda: connections(node) == 0)


def test_who_reads_slowly_is_not_cut_off(node: NodeProcess) -> None:
    with native(node, "thrift") as client:
        for n in range(10):
            client.Put(t.PutRequest(NS, f"slow{n}", t.NewProcess(aux_state=BIG)))
    ask = frame(codec.encode_message("List", codec.CALL, 1, Native.List_args(t.ListRequest(NS, id_prefix="slow"))))
    pause = Event()
    with connect(node) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        slow.sendall(ask)
        left = int.from_bytes(slow.recv(4), "big")
        assert left > 10 * len(BIG)
        began = monotonic()
        while left:
            pause.wait(0.02)
            got = len(slow.recv(min(left, 60_000)))
            assert got, "it was cut off"
            left -= got
        assert monotonic() - began > 2 * LIMITS["stall_timeout"]


def test_a_large_request_and_its_large_answer_hold_up_nobody(node: NodeProcess) -> None:
    """Ninety thousand empty events take seconds to decode, and to write."""
    process = t.NewProcess(history=[t.NewEvent(payload=b"")] * 90_000)
    put = codec.encode_message("Put", codec.CALL, 1, Native.Put_args(t.PutRequest(NS, "long", process)))
    get = codec.encode_message("Get", codec.CALL, 1, Native.Get_args(t.GetRequest(NS, "long")))
    for message in (put, get):
        with connect(node) as busy, native(node, "thrift") as other:
            busy.sendall(frame(message))
            other.HealthCheck([NS])
            assert not select.select([busy], [], [], 0)[0], "the answer of the later one is there first"
            assert codec.message_head(read_frame(busy))[1] == codec.REPLY


def test_who_cuts_the_connection(node: NodeProcess) -> None:
    for sent in (b"", GOOD[:3], GOOD[:-1], GOOD, GOOD * 3):
        with connect(node) as client:
            client.sendall(sent)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closes with RST


def test_too_many_connections(node: NodeProcess) -> None:
    with ExitStack() as stack:
        crowd = [stack.enter_context(connect(node)) for _ in range(LIMITS["connections"])]
        eventually(lambda: connections(node) == LIMITS["connections"])
        with connect(node) as one_more:
            assert is_ended(one_more)
        with Client(node.thrift_url) as client, pytest.raises(CannotConnect):
            client.call(ns=NS, id="nobody")
        crowd[0].sendall(GOOD)
        assert crowd[0].recv(1000)


def test_two_thousand_callers_wait_at_once(database: Database, gates: Gates, tmp_path: Path) -> None:
    """They cost their connections, and no threads."""
    callers = 2000
    settings = config(database.conninfo, gates.directory)
    settings["listen"]["thrift"] = FREE_PORT
    file = tmp_path / "sys.toml"
    file.write_text(as_toml(settings))
    with started(tmp_path / "log", "--config", file) as node, ExitStack() as stack:
        node.wait_ready()
        with native(node, "thrift") as client:
            client.Init(t.Request(NS, "held"))
        gates.hold("held")
        threads = figures(node)["threads"]
        call = frame(codec.encode_message("Call", codec.CALL, 1, Native.Call_args(t.Request(NS, "held"))))
        waiting = [stack.enter_context(connect(node)) for _ in range(callers)]
        for each in waiting:
            each.sendall(call)
        eventually(lambda: node.metric("progressor_callers_waiting") == callers, 30)
        assert figures(node)["threads"] <= threads + 10
        assert health(node)
        gates.open("held")
        task_ids = {answered(each).task_id for each in waiting}
        assert len(task_ids) == callers


def answered(connection: socket.socket) -> Any:
    result: Any = codec.decode(Native.Call_result, codec.message_head(read_frame(connection))[3])
    assert result.success is not None, result
    return result.success


def test_a_request_as_large_as_is_allowed(node: NodeProcess) -> None:
    with native(node, "thrift") as client:
        client.Put(t.PutRequest(NS, "large", t.NewProcess(aux_state=BIG)))
        assert client.Get(t.GetRequest(NS, "large")).aux_state == BIG


def huge(method: str, size: int = 2**31 - 1) -> bytes:
    """The head of a call of so many bytes, and the length before it."""
    return size.to_bytes(4, "big") + codec.encode_message(method, codec.CALL, 7, Native.Authenticate_args())[:-1]


def test_a_request_that_is_too_large_is_told_so(node: NodeProcess) -> None:
    """With the number of its call, on a connection that goes on."""
    before = node.metric("progressor_requests_refused_total")
    with native(node, "thrift") as client:
        with pytest.raises(t.InvalidRequest) as refused:
            client.Put(t.PutRequest(NS, "larger", t.NewProcess(aux_state=BIG * 2)))
        assert refused.value.field == "request"
        assert re.fullmatch(
            r"18\d{5} bytes, but the node takes 1000000: send less, or raise its listen\.limits\.request_bytes",
            refused.value.problem,
        )
        with pytest.raises(TApplicationException, match=r"listen\.limits\.request_bytes"):
            client.Authenticate("x" * 2 * len(BIG))
        assert client.HealthCheck([NS]).health == t.Health.passing
    assert node.metric("progressor_requests_refused_total") == before + 2


def test_it_is_told_when_the_head_is_there(node: NodeProcess) -> None:
    """Who does not send the rest in time is cut off."""
    with connect(node) as client, connect(node) as stranger:
        client.sendall(huge("Get"))
        name, kind, seqid, body = codec.message_head(read_frame(client))
        assert (name, kind, seqid) == ("Get", codec.REPLY, 7)
        assert codec.decode(Native.Get_result, body).invalid_request.problem.startswith("2147483647 bytes")
        stranger.sendall(huge("Explode"))
        name, kind, seqid, body = codec.message_head(read_frame(stranger))
        assert (name, kind, seqid) == ("Explode", codec.EXCEPTION, 7)
        assert codec.decode(TApplicationException, body).type == TApplicationException.UNKNOWN_METHOD
        assert is_ended(client)
        assert is_ended(stranger)


def test_what_is_too_large_takes_up_no_room(node: NodeProcess) -> None:
    before = figures(node)["kB"]
    portion = bytes(1_000_000)
    with connect(node) as client:
        client.sendall(huge("Get", 300_000_000))
        for _ in range(299):
            client.sendall(portion)
        assert figures(node)["kB"] < before + 20_000
        assert codec.message_head(read_frame(client))[0] == "Get"


def test_the_metrics_count_what_was_no_request(node: NodeProcess) -> None:
    before = node.metric("progressor_requests_refused_total")
    with connect(node) as client:
        client.sendall(b"\xff\xff\xff\xff")
        assert is_ended(client)
    assert node.metric("progressor_requests_refused_total") == before + 1
