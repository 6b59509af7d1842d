"""`/metrics` for Prometheus, `/health` for operators, `/ready` for load balancers."""

from __future__ import annotations

import json
import logging
import socket
import sys
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST

from progressor.errors import ProgressorError
from progressor.model import Health
from progressor.otp import Actor

logger = logging.getLogger(__name__)

JSON = "application/json"
IDLE_TIMEOUT = 10.0


class CannotListen(ProgressorError):
    """cannot listen on this address"""


class HttpServer(Actor):
    """Serves one address; `metrics`, `health` and `is_ready` are asked at each request."""

    def __init__(
        self,
        address: tuple[str, int],
        metrics: Callable[[], bytes],
        health: Callable[[], tuple[Health, Mapping[str, Any]]],
        is_ready: Callable[[], bool],
        announce: Callable[[tuple[str, int]], None],
    ) -> None:
        super().__init__()
        self._address = address
        self._metrics = metrics
        self._health = health
        self._is_ready = is_ready
        self._announce = announce

    def init(self) -> None:
        """Raises CannotListen."""
        pages: dict[str, Callable[[], tuple[HTTPStatus, str, bytes]]] = {
            "/metrics": lambda: (HTTPStatus.OK, CONTENT_TYPE_LATEST, self._metrics()),
            "/health": self._health_page,
            "/ready": self._ready_page,
        }
        handler = type("Handler", (_Handler,), {"pages": pages})
        try:
            self._server = _Server(self._address, handler)
        except OSError as error:
            raise CannotListen(f"cannot listen on {url(self._address)}: {error.strerror}") from error
        self._thread = Thread(target=self._server.serve_forever, name="http", daemon=True)
        self._thread.start()
        host, port = self._server.server_address[:2]
        self._announce((str(host), int(port)))

    def terminate(self, reason: Exception) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _health_page(self) -> tuple[HTTPStatus, str, bytes]:
        health, details = self._health()
        status = HTTPStatus.OK if health is Health.PASSING else HTTPStatus.SERVICE_UNAVAILABLE
        return status, JSON, json.dumps({"status": health, "details": details}).encode()

    def _ready_page(self) -> tuple[HTTPStatus, str, bytes]:
        ready = self._is_ready()
        return (HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE), JSON, json.dumps({"ready": ready}).encode()


def url(address: tuple[str, int]) -> str:
    host, port = address
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is no event; anything else is a defect."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            logger.debug("%s went away", client_address)
        else:
            logger.error("no answer to %s", client_address, exc_info=error)


class _Handler(BaseHTTPRequestHandler):
    pages: Mapping[str, Callable[[], tuple[HTTPStatus, str, bytes]]]
    timeout = IDLE_TIMEOUT
    server_version = "progressor"
    sys_version = ""

    def do_GET(self) -> None:
        page = self.pages.get(self.path.partition("?")[0])
        if page is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        status, content_type, body = page()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        logger.debug(format, *args)
