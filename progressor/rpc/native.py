"""The native service, `Progressor` of progressor.thrift: one message in, one message out, over whatever carries them.

What is wrong with a request, or with what became of it, is thrown as a declared exception. What is no call of this
service is answered with a TApplicationException, as Apache's libraries expect it.
"""

from __future__ import annotations

import logging
from asyncio import CancelledError, wrap_future
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from thrift.Thrift import TApplicationException

from progressor.api import FutureClient
from progressor.errors import AccessDenied, InvalidRequest, ProgressorError, RequestTimeout
from progressor.metrics import RequestMetrics
from progressor.model import Answered, Health, Op, Page, Process, TraceUnit
from progressor.rpc import codec, native_types
from progressor.rpc.access import Access, Caller
from progressor.rpc.aside import aside
from progressor.rpc.codec import DecodeError
from progressor.rpc.gen.native import Progressor as Generated
from progressor.rpc.service import NO_ANSWER, OK, member

logger = logging.getLogger(__name__)

SERVICE, AUTHENTICATE = "Progressor", "Authenticate"
LONGEST_NAME = 100
TOO_MUCH = "its answer has more than {} bytes, the most that Thrift can carry: ask for a smaller range"
OVERHEAD = 500
"""Bytes that an event, a task or a process counts for beside its payload."""


_WRITE: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(native_types.METHODS.values(), native_types.write_answer),
    "Get": native_types.write_process,
    "Trace": native_types.write_units,
    "List": native_types.write_page,
    "HealthCheck": native_types.write_health,
}
"""How what a method comes to is written."""


class Native:
    def __init__(self, client: FutureClient, access: Access, metrics: RequestMetrics) -> None:
        self._client = client
        self._access = access
        self._metrics = metrics
        self._methods: Mapping[str, Callable[[Any], Future[Any]]] = {
            **{name: partial(self._execute, op) for op, name in native_types.METHODS.items()},
            "Get": self._get,
            "Put": self._put,
            "Trace": self._trace,
            "List": self._list,
            "HealthCheck": self._health_check,
        }

    async def answer(self, message: bytes, caller: Caller) -> bytes:
        """The reply. Raises DecodeError for what is no call. Cancelled, because the server stops, it says so."""
        name, seqid, body = _call(message)
        known = name if self._knows(name) else ""
        began, outcome = self._metrics.began(SERVICE), NO_ANSWER
        try:
            reply, outcome = await self._reply(name, seqid, body, caller)
            return reply
        except TApplicationException as failure:
            return _failed(name, seqid, failure)
        finally:
            self._metrics.ended(SERVICE, known, outcome, began)

    def refusal(self, head: bytes, size: int, most: int, caller: Caller) -> bytes:
        """The reply to a message that has more bytes than it may have, of which nothing but the head was read.

        Raises DecodeError for what is no call.
        """
        name, seqid, _ = _call(head)
        problem = f"{size} bytes, but the node takes {most}: send less, or raise its listen.limits.request_bytes"
        try:
            self._check(name, caller)
            return _thrown(name, seqid, InvalidRequest("request", problem))[0]
        except AccessDenied as error:
            return _thrown(name, seqid, error)[0]
        except TApplicationException as failure:
            return _failed(name, seqid, failure)

    async def _reply(self, name: str, seqid: int, body: bytes, caller: Caller) -> tuple[bytes, str]:
        """With its outcome for the metrics. Raises TApplicationException."""
        try:
            value = await self._value(name, body, caller)
            return await aside(_weight(value), self._written, name, seqid, value), OK
        except ProgressorError as error:
            return _thrown(name, seqid, error)
        except CancelledError:
            return _thrown(name, seqid, RequestTimeout("timeout: the node stops, the outcome is unknown"))
        except TApplicationException:
            raise
        except DecodeError as error:
            raise TApplicationException(TApplicationException.PROTOCOL_ERROR, str(error)) from error
        except Exception as error:
            logger.exception("no answer to a call of %s", name)
            raise TApplicationException(TApplicationException.INTERNAL_ERROR, "internal error") from error

    async def _value(self, name: str, body: bytes, caller: Caller) -> Any:
        """What a call comes to. Raises DecodeError, TApplicationException and ProgressorError."""
        self._check(name, caller)
        if name == AUTHENTICATE:
            caller.secret = (await aside(len(body), _arguments, name, body)).secret
            self._access.check(caller)
            return None
        return await wrap_future(await aside(len(body), self._ask, name, body))

    def _knows(self, name: str) -> bool:
        return name in self._methods or name == AUTHENTICATE

    def _check(self, name: str, caller: Caller) -> None:
        """Raises TApplicationException for no method, AccessDenied for one that needs a caller who is let in."""
        if not self._knows(name):
            raise TApplicationException(TApplicationException.UNKNOWN_METHOD, f"unknown method {name[:LONGEST_NAME]!r}")
        if name != AUTHENTICATE:
            self._access.check(caller)

    def _ask(self, name: str, body: bytes) -> Future[Any]:
        return self._methods[name](_arguments(name, body))

    def _written(self, name: str, seqid: int, value: Any) -> bytes:
        result = getattr(Generated, f"{name}_result")()
        if value is not None:
            result.success = _WRITE[name](value)
        reply = codec.encode_message(name, codec.REPLY, seqid, result)
        if len(reply) > codec.LARGEST:
            raise InvalidRequest("request", TOO_MUCH.format(codec.LARGEST))
        return reply

    def _execute(self, op: Op, given: Any) -> Future[Answered]:
        request = given.request
        return self._client.execute(
            op,
            ns=request.ns,
            id=request.id,
            args=request.arguments or b"",
            context=request.context or b"",
            range=native_types.read_range(request.range),
            idempotency_key=request.idempotency_key,
            timeout=request.timeout,
        )

    def _get(self, given: Any) -> Future[Process]:
        request = given.request
        return self._client.get(
            ns=request.ns,
            id=request.id,
            range=native_types.read_range(request.range),
            cache=request.cache is not False,
            at_least_event_id=request.at_least_event_id,
            timeout=request.timeout,
        )

    def _put(self, given: Any) -> Future[None]:
        request = given.request
        return self._client.put(
            ns=request.ns,
            id=request.id,
            process=native_types.read_new_process(request.id, request.process),
            action=native_types.read_timer(request.timer),
            context=request.context or b"",
        )

    def _trace(self, given: Any) -> Future[Sequence[TraceUnit]]:
        return self._client.trace(ns=given.ns, id=given.id)

    def _list(self, given: Any) -> Future[Page]:
        return self._client.list(ns=given.request.ns, **native_types.read_selection(given.request))

    def _health_check(self, given: Any) -> Future[tuple[Health, Mapping[str, Any]]]:
        return self._client.health_check(given.namespaces)


def _arguments(name: str, body: bytes) -> Any:
    """Raises DecodeError."""
    given: Any = codec.decode(getattr(Generated, f"{name}_args"), body)
    if any(argument is None for argument in vars(given).values()):
        raise DecodeError("an argument is missing")
    return given


def _call(message: bytes) -> tuple[str, int, bytes]:
    """Name and sequence number of a call, and the bytes of its arguments. Raises DecodeError."""
    name, kind, seqid, body = codec.message_head(message)
    if kind != codec.CALL:
        raise DecodeError("no call")
    return name, seqid, body


def _failed(name: str, seqid: int, failure: TApplicationException) -> bytes:
    return codec.encode_message(name[:LONGEST_NAME], codec.EXCEPTION, seqid, failure)


def _thrown(name: str, seqid: int, error: ProgressorError) -> tuple[bytes, str]:
    """The reply that throws an error, and its name. Raises TApplicationException when the method declares none."""
    result = getattr(Generated, f"{name}_result")()
    thrown = native_types.write_error(error)
    field = None if thrown is None else member(result, thrown)
    if field is None:
        raise TApplicationException(TApplicationException.INTERNAL_ERROR, str(error)) from error
    setattr(result, field, thrown)
    return codec.encode_message(name, codec.REPLY, seqid, result), type(thrown).__name__


def _weight(value: Any) -> int:
    """About how many bytes a value will be. States and details count little: they are written in one go."""
    match value:
        case Process():
            return OVERHEAD + sum(len(event.payload) + OVERHEAD for event in value.history)
        case Page():
            return OVERHEAD * len(value.items)
        case list():
            return sum(OVERHEAD * (1 + len(unit.events)) for unit in value)
    return 0
