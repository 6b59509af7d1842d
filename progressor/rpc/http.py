"""The HTTP port: `/metrics` for Prometheus, `/health` for operators, `/ready` for load balancers, and the services.

One event loop in one thread: a caller who waits for a step costs a coroutine, not a thread. A client that sends half
of a request, or does not read its answer, costs its own connection only.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from threading import Event, Thread
from typing import Any, Protocol

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from progressor.config import Limits, TlsConfig
from progressor.metrics import RequestMetrics
from progressor.model import Health
from progressor.otp import Actor
from progressor.rpc import woody
from progressor.rpc.acceptor import Acceptor
from progressor.rpc.access import Caller, peer_names
from progressor.rpc.address import DEFAULT_PATH
from progressor.rpc.asgi import Answer, Application, ClientGone, Handler, Request, TooLarge, page
from progressor.rpc.codec import DecodeError
from progressor.rpc.listener import PATIENCE, StopAccepting, Stopped, bound, own, tls_context

logger = logging.getLogger(__name__)

PORT = "http"
JSON = "application/json"

TOO_LARGE = "a request has at most {} bytes: send less, or raise listen.limits.request_bytes"
NAMES = "names"
"""Where the state of a request has the names of its client's certificate."""

Service = Callable[[bytes, woody.Call], Awaitable[tuple[bytes, Mapping[str, str]]]]
"""A message and where it comes from; the reply and its headers. Raises woody.Failure."""
NativeService = Callable[[bytes, Caller], Awaitable[bytes]]
"""A message and who sent it; the reply. Raises DecodeError."""


class Pages(Protocol):
    """Whom the server asks at each request of a page."""

    def scrape(self) -> bytes: ...

    def health(self, namespaces: Iterable[str] | None = None) -> tuple[Health, Mapping[str, Any]]:
        """Of these namespaces, or of all."""

    @property
    def is_ready(self) -> bool: ...


class HttpServer(Actor):
    """Serves a socket that listens, or an address."""

    def __init__(
        self,
        where: socket.socket | tuple[str, int],
        pages: Pages,
        announce: Callable[[tuple[str, int]], None],
        requests: RequestMetrics,
        services: Mapping[str, Service],
        tls: TlsConfig | None = None,
        limits: Limits | None = None,
        native: NativeService | None = None,
    ) -> None:
        """`services` by their paths. A socket stays its owner's: it is open when the server has stopped."""
        super().__init__()
        self._where = where
        self._pages = pages
        self._announce = announce
        self._requests = requests
        self._services = services
        self._tls = tls
        self._limits = limits or Limits()
        self._native = native

    def init(self) -> None:
        """Raises CannotListen and ConfigError."""
        context = None if self._tls is None else tls_context(self._tls)
        listener = own(self._where)
        application = Application(self._handlers())
        self._server = _Server(
            _configuration(application, self._limits, self._requests), context, self._limits, self._requests
        )
        self._thread = Thread(target=self._run, args=(listener,), name="http", daemon=True)
        self._thread.start()
        self._announce(bound(listener))

    def handle(self, message: object) -> object:
        if not isinstance(message, StopAccepting):
            return super().handle(message)
        self._server.leave()
        return None

    def terminate(self, reason: Exception) -> None:
        self._server.should_exit = True
        self._thread.join()

    def _run(self, listener: socket.socket) -> None:
        try:
            self._server.run(sockets=[listener])
        finally:
            listener.close()
            if not self._server.should_exit:
                self.ref.cast(Stopped())

    def _handlers(self) -> Mapping[str, Handler]:
        refused = self._requests.refused(PORT)
        endpoints = {path: _Endpoint(_call, service) for path, service in self._services.items()}
        if self._native is not None:
            endpoints[DEFAULT_PATH] = _native(self._native)
        return {
            "/metrics": page(self._metrics_page),
            "/health": page(self._health_page),
            "/ready": page(self._ready_page),
            **{path: _handler(endpoint, self._limits, refused) for path, endpoint in endpoints.items()},
        }

    def _metrics_page(self) -> Answer:
        return Answer(HTTPStatus.OK, {"content-type": CONTENT_TYPE_LATEST}, self._pages.scrape())

    def _health_page(self) -> Answer:
        health, details = self._pages.health()
        return _json({"status": health, "details": details}, is_well=health is Health.PASSING)

    def _ready_page(self) -> Answer:
        ready = self._pages.is_ready
        return _json({"ready": ready}, is_well=ready)


class _Server(uvicorn.Server):
    """Accepts in its own way, and can stop that long before it exits."""

    _leaving = False

    def __init__(
        self, config: uvicorn.Config, context: ssl.SSLContext | None, limits: Limits, requests: RequestMetrics
    ) -> None:
        super().__init__(config)
        self.servers = []  # those of asyncio, of which there are none
        self._context = context
        self._limits = limits
        self._requests = requests
        self._acceptors: list[Acceptor] = []
        self._has_left = Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        protocol = partial(
            self.config.http_protocol_class,  # type: ignore[call-arg]
            config=self.config,
            server_state=self.server_state,
            app_state={},
        )
        for listener in sockets or ():
            self._acceptors.append(
                Acceptor(
                    listener,
                    self._context,
                    self._limits.stall_timeout,
                    protocol,
                    self._has_room,
                    self._requests.connections(PORT),
                    self._requests.refused(PORT),
                )
            )
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._stop_accepting()
        await super().shutdown(sockets)

    def leave(self) -> None:
        """Accepts nothing more when it returns."""
        self._leaving = True
        self._has_left.wait(PATIENCE)

    async def on_tick(self, counter: int) -> bool:
        if self._leaving:
            self._stop_accepting()
            for connection in list(self.server_state.connections):
                connection.shutdown()  # at once, or after the answer that it waits for
            self._has_left.set()
        return await super().on_tick(counter)

    def _stop_accepting(self) -> None:
        for acceptor in self._acceptors:
            acceptor.close()

    def _has_room(self, handshakes: int) -> bool:
        """Some more than are served, so that those hear a reason, which is a status."""
        return len(self.server_state.connections) + handshakes < 2 * self._limits.connections


class _Connection(HttpToolsProtocol):
    """Looks every `stall_timeout` whether its client still does something, and bounds the head of a request."""

    _last: tuple[object, bool] | None = None
    _head: int | None = None
    """Bytes that came of a head which is not complete; None between heads."""

    def __init__(self, limits: Limits, open_: Gauge, refused: Counter, **options: Any) -> None:
        super().__init__(**options)
        self._limits = limits
        self._open = open_
        self._refused = refused

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._names = peer_names(transport)
        self._open.inc()
        self._watch = self.loop.call_later(self._limits.stall_timeout, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.cancel()
        self._open.dec()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head is not None:
            self._head += len(data)
            most = self._limits.head_bytes
            if self._head > most and not self.transport.is_closing():
                self.send_400_response(f"A request line with its headers has at most {most} bytes.")

    def send_400_response(self, msg: str) -> None:
        self._refused.inc()
        super().send_400_response(msg)

    def on_message_begin(self) -> None:
        self._head = 0
        super().on_message_begin()
        self.scope["state"][NAMES] = self._names

    def on_headers_complete(self) -> None:
        self._head = None
        super().on_headers_complete()

    def _look(self) -> None:
        cycle: RequestResponseCycle | None = self.cycle  # none before the first request, whatever its type says
        is_served = cycle is not None and not cycle.response_complete
        is_stuck = self.flow.write_paused if is_served else cycle is None or self._head is not None
        now = (cycle, is_stuck)
        if is_stuck and now == self._last:
            self.transport.abort()
            return
        self._last = now
        self._watch = self.loop.call_later(self._limits.stall_timeout, self._look)


def _configuration(application: Application, limits: Limits, requests: RequestMetrics) -> uvicorn.Config:
    connection = partial(_Connection, limits, requests.connections(PORT), requests.refused(PORT))
    return uvicorn.Config(
        application,
        http=connection,  # type: ignore[arg-type]  # makes one, which is all that is asked
        loop="uvloop",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=limits.idle_timeout,  # type: ignore[arg-type]  # timers take fractions of a second
        timeout_graceful_shutdown=limits.stop_timeout,  # type: ignore[arg-type]
    )


def _json(content: Mapping[str, Any], *, is_well: bool) -> Answer:
    status = HTTPStatus.OK if is_well else HTTPStatus.SERVICE_UNAVAILABLE
    return Answer(status, {"content-type": JSON}, json.dumps(content).encode())


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """`caller` reads from a request who asks, and refuses what is wrong with its head."""

    caller: Callable[[Request], Any]
    answer: Callable[[bytes, Any], Awaitable[tuple[bytes, Mapping[str, str]]]]


def _native(service: NativeService) -> _Endpoint:
    async def answer(message: bytes, caller: Caller) -> tuple[bytes, Mapping[str, str]]:
        try:
            return await service(message, caller), {}
        except DecodeError as error:
            raise woody.bad_request(str(error)) from error

    return _Endpoint(_caller, answer)


def _handler(to: _Endpoint, limits: Limits, refused: Counter) -> Handler:
    async def read(request: Request) -> tuple[Any, bytes]:
        try:
            return to.caller(request), await _body(request, limits)
        except (woody.Failure, ClientGone):
            refused.inc()
            raise

    async def handler(request: Request) -> Answer:
        try:
            caller, message = await read(request)
            body, headers = await to.answer(message, caller)
        except woody.Failure as failure:
            return Answer(failure.status, {**failure.headers, **_allow(failure)})
        except ClientGone:
            return Answer(HTTPStatus.BAD_REQUEST)
        except Exception:
            logger.exception("no answer to a request")
            return Answer(HTTPStatus.INTERNAL_SERVER_ERROR, woody.unexpected("internal error").headers)
        return Answer(HTTPStatus.OK, {"content-type": woody.CONTENT_TYPE, **headers}, body)

    return handler


def _call(request: Request) -> woody.Call:
    headers = request.headers
    _check_head(request)
    if headers.get("accept", woody.CONTENT_TYPE) != woody.CONTENT_TYPE:
        raise woody.Failure(406, woody.UNEXPECTED, f"wrong client accept: {headers['accept']}")
    return woody.read_call(headers)


def _caller(request: Request) -> Caller:
    _check_head(request)
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return Caller(request.state[NAMES], token.strip() if scheme.lower() == "bearer" else None)


def _check_head(request: Request) -> None:
    content_type = request.headers.get("content-type", "")
    if request.method != "POST":
        raise woody.Failure(405, woody.UNEXPECTED, f"wrong method: {request.method}")
    if content_type != woody.CONTENT_TYPE:
        raise woody.Failure(415, woody.UNEXPECTED, f"wrong content type: {content_type}")


def _allow(failure: woody.Failure) -> dict[str, str]:
    return {"allow": "POST"} if failure.status == HTTPStatus.METHOD_NOT_ALLOWED else {}


async def _body(request: Request, limits: Limits) -> bytes:
    try:
        return await request.body(limits.request_bytes, limits.stall_timeout)
    except TooLarge:
        raise woody.Failure(413, woody.UNEXPECTED, TOO_LARGE.format(limits.request_bytes)) from None
    except TimeoutError:
        raise woody.Failure(408, woody.UNEXPECTED, "the request did not come to its end") from None
