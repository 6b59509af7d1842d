"""Who answers a byte at a time, and never comes to an end."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

PAUSE = 0.05


@contextmanager
def dripping(beginning: bytes) -> Iterator[int]:
    """The port of a server that answers whatever comes with this, and then a byte after the other."""
    stopped = Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with suppress(OSError), client:
                        client.recv(1)
                        client.sendall(beginning)
                        while not stopped.wait(PAUSE):
                            client.sendall(b"x")

        thread = Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            stopped.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
