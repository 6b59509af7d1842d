from __future__ import annotations

import math
import socket

import pytest
from prometheus_client import CollectorRegistry

from progressor.config import Limits
from progressor.metrics import RequestMetrics
from progressor.otp import start_root
from progressor.rpc.access import Caller
from progressor.rpc.tcp import TcpServer


class Broken:
    async def answer(self, message: bytes, caller: Caller) -> bytes:
        raise RuntimeError("never answers")

    def refusal(self, head: bytes, size: int, most: int, caller: Caller) -> bytes:
        raise AssertionError


def test_a_service_that_breaks_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    registry = CollectorRegistry()
    bound: list[tuple[str, int]] = []
    server = start_root(
        lambda: TcpServer(("127.0.0.1", 0), Broken(), bound.append, RequestMetrics(registry), None, Limits())
    )
    try:
        with socket.create_connection(bound[0], timeout=30) as client:
            client.sendall(b"\0\0\0\1x")
            assert client.recv(1) == b""
    finally:
        server.stop(math.inf)
    assert "never answers" in caplog.text
    assert registry.get_sample_value("progressor_connections", {"port": "thrift"}) == 0
