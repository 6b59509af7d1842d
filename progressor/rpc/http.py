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
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from http import HTTPStatus
from threading import Event, Thread
from typing import Any, NoReturn, Protocol

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
LONG_HEAD = "A request line with its headers has at most {} bytes."
SEPARATORS = len(": \r\n")
PIPELINED = 100
"""Requests that may be on a connection at a time. One is served, the others wait."""
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


class _Part(Enum):
    """Of a request, of which the next byte is one."""

    HEAD = auto()
    BODY = auto()
    """With the headers behind it, of one in chunks."""
    NONE = auto()
    """The next byte is the first one of a request."""


class _Connection(HttpToolsProtocol):
    """Looks every `stall_timeout` whether its client does in time what it has to, and bounds the head of a request.

    uvicorn's own timer ends a connection that is idle, but the first byte stops it, whatever it is a byte of. Here no
    byte puts a deadline off, only the beginning of a request, its end, and the end of an answer.
    """

    def __init__(
        self, limits: Limits, open_: Gauge, refused: Counter, arrived: Callable[[], None], **options: Any
    ) -> None:
        super().__init__(**options)
        self._limits = limits
        self._open = open_
        self._refused = refused
        self._arrived = arrived
        self._unanswered: deque[RequestResponseCycle] = deque()
        """Requests whose heads are there, the one that is served first."""
        self._part = _Part.NONE
        self._head = 0
        """Bytes of the request that are none of its body."""
        self._line = 0
        """Bytes that came since the parser told anything: they are of one line, which it keeps."""
        self._problem: str | None = None
        self._unread = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._arrived()
        super().connection_made(transport)
        self.limit_concurrency = 0 if len(self.connections) > self._limits.connections else None
        self._names = peer_names(transport)
        self._open.inc()
        self._expect(self._limits.stall_timeout)
        self._watch = self.loop.call_later(self._limits.stall_timeout, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.cancel()
        self._open.dec()
        for cycle in self._unanswered:  # uvicorn tells the last one only, and the first one would go on writing
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._line += len(data)
        super().data_received(data)
        if self._line > self._limits.head_bytes and not self.transport.is_closing():
            self.send_400_response(LONG_HEAD.format(self._limits.head_bytes))

    def send_400_response(self, msg: str) -> None:
        self._refused.inc()
        super().send_400_response(self._problem or msg)

    def on_message_begin(self) -> None:
        self._part, self._head, self._line = _Part.HEAD, 0, 0
        self._expect(self._limits.stall_timeout)
        super().on_message_begin()
        self.scope["state"][NAMES] = self._names

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + SEPARATORS)
        if self._part is _Part.HEAD:  # nobody asks for those behind a body
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self._unanswered) >= PIPELINED:
            self._refuse(f"At most {PIPELINED} requests wait on a connection.")
        self._part = _Part.BODY
        super().on_headers_complete()
        self._unanswered.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        self._line = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._part, self._line = _Part.NONE, 0
        super().on_message_complete()
        self._expect_next()

    def on_response_complete(self) -> None:
        self._unanswered.popleft()
        super().on_response_complete()
        self._unread = 0  # what is unread at the next look may be this answer
        self._expect_next()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = 0

    def _count(self, size: int) -> None:
        self._line = 0
        self._head += size
        if self._head > self._limits.head_bytes:
            self._refuse(LONG_HEAD.format(self._limits.head_bytes))

    def _refuse(self, problem: str) -> NoReturn:
        """Lets the parser fail."""
        self._problem = problem
        raise TooLarge

    def _expect_next(self) -> None:
        """Another request, or first the rest of one that has its answer."""
        limits = self._limits
        self._expect(limits.idle_timeout if self._part is _Part.NONE else limits.stall_timeout)

    def _expect(self, seconds: float) -> None:
        self._deadline = self.loop.time() + seconds

    def _look(self) -> None:
        if not self._is_late():
            self._watch = self.loop.call_later(self._limits.stall_timeout, self._look)
            return
        if self._part is _Part.HEAD:
            self._refused.inc()
        self.transport.abort()

    def _is_late(self) -> bool:
        """While an answer is being read its reader has to go on. While a request is served there is time."""
        before, self._unread = self._unread, self.transport.get_write_buffer_size()
        if self._unread:
            self._expect_next()
            return 0 < before <= self._unread
        return not self._unanswered and self.loop.time() >= self._deadline


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
        except asyncio.CancelledError:  # a service that has begun to do something answers by itself
            stopped = woody.Failure(503, woody.UNAVAILABLE, "the server stops")
            return Answer(stopped.status, stopped.headers)
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
