"""What the HTTP port needs of ASGI: a handler for each path, requests and answers.

A framework's routing, requests and responses take as long as all else that a call of the Automaton is on its way
through this process; there are five paths here, and none has a variable part.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeAlias

logger = logging.getLogger(__name__)

PORTION = 64 * 1024
"""Bytes of an answer that are written at a time. TLS takes all that it is given, and does not tell what is unread."""

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]


class ClientGone(Exception):
    """The client has closed the connection before its request was whole."""


class TooLarge(Exception):
    """The request has more bytes than it may have."""


@dataclass(slots=True)
class Request:
    """`headers` have names in lower case; of a name that is there twice the first counts. `state`: see uvicorn."""

    method: str
    headers: Mapping[str, str]
    state: Mapping[str, Any]
    receive: Receive

    async def body(self, most: int, seconds: float) -> bytes:
        """All of it. Raises TooLarge, ClientGone, and TimeoutError when it does not come in time."""
        length = self.headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > most:
            raise TooLarge
        body = bytearray()
        async with asyncio.timeout(seconds):
            while True:
                message = await self.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                body += message["body"]
                if len(body) > most:
                    raise TooLarge
                if not message["more_body"]:
                    return bytes(body)


@dataclass(slots=True)
class Answer:
    status: int = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


Handler: TypeAlias = Callable[[Request], Awaitable[Answer]]


class Application:
    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        """`handlers` by their paths."""
        self._handlers = handlers

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        handler = self._handlers.get(scope["path"])
        answer = Answer(HTTPStatus.NOT_FOUND) if handler is None else await _handled(handler, scope, receive)
        headers = [(name.encode(), value.encode("latin-1")) for name, value in answer.headers.items()]
        headers.append((b"content-length", b"%d" % len(answer.body)))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        for at in range(0, max(1, len(answer.body)), PORTION):
            portion, end = answer.body[at : at + PORTION], at + PORTION
            await send({"type": "http.response.body", "body": portion, "more_body": end < len(answer.body)})


async def _handled(handler: Handler, scope: Message, receive: Receive) -> Answer:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}
    try:
        return await handler(Request(scope["method"], headers, scope["state"], receive))
    except asyncio.CancelledError:  # the server stops
        return Answer(HTTPStatus.SERVICE_UNAVAILABLE)
    except Exception:
        logger.exception("no answer to a request of %s", scope["path"])
        return Answer(HTTPStatus.INTERNAL_SERVER_ERROR)


def page(read: Callable[[], Answer]) -> Handler:
    """A handler of GET and HEAD; `read` may block."""

    async def handler(request: Request) -> Answer:
        if request.method not in ("GET", "HEAD"):
            return Answer(HTTPStatus.METHOD_NOT_ALLOWED, {"allow": "GET, HEAD"})
        return await asyncio.to_thread(read)

    return handler
