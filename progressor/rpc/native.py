"""The native service, `Progressor` of progressor.thrift: one message in, one message out, over whatever carries them.

What is wrong with a request, or with what became of it, is thrown as a declared exception. What is no call of this
service is answered with a TApplicationException, as Apache's libraries expect it.
"""

from __future__ import annotations

import logging
from asyncio import CancelledError, wrap_future
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from thrift.Thrift import TApplicationException

from progressor.api import FutureClient
from progressor.errors import ProgressorError, RequestTimeout
from progressor.metrics import RequestMetrics
from progressor.model import Op
from progressor.rpc import codec, native_types
from progressor.rpc.access import Access, Caller
from progressor.rpc.aside import aside
from progressor.rpc.codec import DecodeError
from progressor.rpc.gen.native import Progressor as Generated
from progressor.rpc.service import NO_ANSWER, OK, member

logger = logging.getLogger(__name__)

SERVICE, AUTHENTICATE = "Progressor", "Authenticate"
LONGEST_NAME = 100


class Native:
    def __init__(self, client: FutureClient, access: Access, metrics: RequestMetrics) -> None:
        self._client = client
        self._access = access
        self._metrics = metrics
        self._methods: dict[str, Callable[[Any], Awaitable[Any]]] = {
            **{name: partial(self._execute, op) for op, name in native_types.METHODS.items()},
            AUTHENTICATE: self._authenticate,
            "Get": self._get,
            "Put": self._put,
            "Trace": self._trace,
            "List": self._list,
            "HealthCheck": self._health_check,
        }

    async def answer(self, message: bytes, caller: Caller) -> bytes:
        """The reply. Raises DecodeError for what is no call. Cancelled, because the server stops, it says so."""
        name, kind, seqid, body = codec.message_head(message)
        if kind != codec.CALL:
            raise DecodeError("no call")
        began, outcome = self._metrics.began(SERVICE), NO_ANSWER
        try:
            reply, outcome = await self._reply(name, seqid, body, caller)
            return reply
        except TApplicationException as failure:
            return codec.encode_message(name[:LONGEST_NAME], codec.EXCEPTION, seqid, failure)
        finally:
            self._metrics.ended(SERVICE, name if name in self._methods else "", outcome, began)

    async def _reply(self, name: str, seqid: int, body: bytes, caller: Caller) -> tuple[bytes, str]:
        """With its outcome for the metrics. Raises TApplicationException."""
        if name not in self._methods:
            raise TApplicationException(TApplicationException.UNKNOWN_METHOD, f"unknown method {name[:LONGEST_NAME]!r}")
        try:
            result, outcome = await self._result(name, body, caller)
            return codec.encode_message(name, codec.REPLY, seqid, result), outcome
        except TApplicationException:
            raise
        except DecodeError as error:
            raise TApplicationException(TApplicationException.PROTOCOL_ERROR, str(error)) from error
        except Exception as error:
            logger.exception("no answer to a call of %s", name)
            raise TApplicationException(TApplicationException.INTERNAL_ERROR, "internal error") from error

    async def _result(self, name: str, body: bytes, caller: Caller) -> tuple[Any, str]:
        result = getattr(Generated, f"{name}_result")()
        try:
            success = await self._run(name, body, caller)
        except ProgressorError as error:
            return result, _throw(result, error)
        except CancelledError:
            return result, _throw(result, RequestTimeout("timeout: the node stops, the outcome is unknown"))
        if success is not None:
            result.success = success
        return result, OK

    async def _run(self, name: str, body: bytes, caller: Caller) -> Any:
        if name == AUTHENTICATE:
            caller.secret = (await _arguments(name, body)).secret
        self._access.check(caller)
        return await self._methods[name](await _arguments(name, body))

    async def _authenticate(self, given: Any) -> None:
        """It has been looked at when this is called, as before any other method."""

    async def _execute(self, op: Op, given: Any) -> Any:
        request = given.request
        answered = self._client.execute(
            op,
            ns=request.ns,
            id=request.id,
            args=request.arguments or b"",
            context=request.context or b"",
            range=native_types.read_range(request.range),
            idempotency_key=request.idempotency_key,
            timeout=request.timeout,
        )
        return native_types.write_answer(await wrap_future(answered))

    async def _get(self, given: Any) -> Any:
        request = given.request
        process = self._client.get(
            ns=request.ns,
            id=request.id,
            range=native_types.read_range(request.range),
            cache=request.cache is not False,
            at_least_event_id=request.at_least_event_id,
            timeout=request.timeout,
        )
        return native_types.write_process(await wrap_future(process))

    async def _put(self, given: Any) -> None:
        request = given.request
        done = self._client.put(
            ns=request.ns,
            id=request.id,
            process=native_types.read_new_process(request.id, request.process),
            action=native_types.read_timer(request.timer),
            context=request.context or b"",
        )
        await wrap_future(done)

    async def _trace(self, given: Any) -> Any:
        units = await wrap_future(self._client.trace(ns=given.ns, id=given.id))
        return [native_types.write_unit(unit) for unit in units]

    async def _list(self, given: Any) -> Any:
        selection = native_types.read_selection(given.request)
        return native_types.write_page(await wrap_future(self._client.list(ns=given.request.ns, **selection)))

    async def _health_check(self, given: Any) -> Any:
        return native_types.write_health(*await wrap_future(self._client.health_check(given.namespaces)))


async def _arguments(name: str, body: bytes) -> Any:
    """Raises DecodeError."""
    given: Any = await aside(len(body), codec.decode, getattr(Generated, f"{name}_args"), body)
    if any(argument is None for argument in vars(given).values()):
        raise DecodeError("an argument is missing")
    return given


def _throw(result: Any, error: ProgressorError) -> str:
    """Puts an error into a result, and names it. Raises TApplicationException when the method does not declare it."""
    thrown = native_types.write_error(error)
    field = None if thrown is None else member(result, thrown)
    if field is None:
        raise TApplicationException(TApplicationException.INTERNAL_ERROR, str(error)) from error
    setattr(result, field, thrown)
    return type(thrown).__name__
