from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import uvloop
from prometheus_client import CollectorRegistry

from progressor.metrics import RequestMetrics
from progressor.rpc.acceptor import Acceptor
from progressor.rpc.listener import listen

CROWD = 100


@pytest.mark.parametrize("loop", [uvloop.new_event_loop, asyncio.new_event_loop])
def test_a_connection_is_counted_once_at_every_moment(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Whoever is accepted meets those before it, each of them in its handshake or behind it."""
    requests = RequestMetrics(CollectorRegistry())
    connected: list[asyncio.BaseTransport] = []
    met: list[int] = []

    class Counted(asyncio.Protocol):
        def __init__(self, arrived: Callable[[], None]) -> None:
            self._arrived = arrived

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self._arrived()
            connected.append(transport)
            if len(connected) == CROWD:
                complete.set()

    def has_room(handshakes: int) -> bool:
        met.append(handshakes + len(connected))
        return True

    async def accept(listener: socket.socket) -> None:
        acceptor = Acceptor(
            listener, None, 1, Counted, has_room, requests.connections("thrift"), requests.refused("thrift")
        )
        await asyncio.wait_for(complete.wait(), 30)
        acceptor.close()
        for transport in connected:
            transport.close()

    complete = asyncio.Event()
    with ExitStack() as stack, listen(("127.0.0.1", 0)) as listener, asyncio.Runner(loop_factory=loop) as runner:
        listener.setblocking(False)
        for _ in range(CROWD):
            stack.enter_context(socket.create_connection(listener.getsockname()))
        runner.run(accept(listener))
    assert met == list(range(CROWD))
