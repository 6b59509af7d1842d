"""A Thrift service behind woody: one message in, one message out."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Mapping
from types import ModuleType
from typing import Any

from thrift.Thrift import TException

from progressor.metrics import RequestMetrics
from progressor.rpc import codec, woody
from progressor.rpc.aside import aside, weight
from progressor.rpc.codec import DecodeError, NotStrict

OK, NO_ANSWER = "ok", "no answer"
"""Outcomes of a call, beside the names of exceptions and the classes of errors."""
Method = Callable[[Any, woody.Call], Awaitable[Any]]
"""The arguments' struct and where the call comes from; the result, None for `void`. Raises declared exceptions,
woody.Failure, and ValueError for what has no place in a result."""


class Service:
    def __init__(self, module: ModuleType, methods: Mapping[str, Method], metrics: RequestMetrics) -> None:
        """`module` is the generated one of the service."""
        self._module = module
        self._methods = methods
        self._metrics = metrics
        self._name = module.__name__.rpartition(".")[2]

    async def answer(self, message: bytes, call: woody.Call) -> tuple[bytes, Mapping[str, str]]:
        """The reply and its headers. Raises woody.Failure, and that too when it is cancelled while the method runs."""
        began, name, outcome = self._metrics.began(self._name), "", NO_ANSWER
        try:
            name, kind, seqid, arguments = await self._read(message)
            reply, headers = await self._reply(name, seqid, arguments, call)
            outcome = headers.get(woody.ERROR_REASON, OK)
        except woody.Failure as failure:
            outcome = failure.error_class or NO_ANSWER
            raise
        finally:
            self._metrics.ended(self._name, name, outcome, began)
        return (b"", {}) if kind == codec.ONEWAY else (reply, headers)

    async def _reply(self, name: str, seqid: int, arguments: Any, call: woody.Call) -> tuple[bytes, Mapping[str, str]]:
        result = getattr(self._module, f"{name}_result")()
        headers: Mapping[str, str] = {}
        try:
            try:
                success = await self._methods[name](arguments, call)
                if success is not None:
                    result.success = success
            except TException as thrown:
                setattr(result, _declared(result, thrown), thrown)
                headers = {woody.ERROR_CLASS: woody.BUSINESS, woody.ERROR_REASON: type(thrown).__name__}
            return await aside(weight(result), codec.encode_message, name, codec.REPLY, seqid, result), headers
        except CancelledError:
            raise woody.Failure(504, woody.UNKNOWN, "the server stops, the outcome is unknown") from None
        except ValueError as error:
            raise woody.unexpected(str(error)) from error

    async def _read(self, message: bytes) -> tuple[str, int, int, Any]:
        if not message:
            raise woody.bad_request("body empty")
        if len(message) < 4:
            raise woody.Failure(500, None, "garbage")
        try:
            name, kind, seqid, body = codec.message_head(message)
            if kind not in (codec.CALL, codec.ONEWAY):
                raise woody.Failure(500, None, "no call")
            if ":" in name:
                raise woody.bad_request("thrift: multiplexing (not supported)")
            if name not in self._methods:
                raise woody.bad_request(f"thrift: unknown function: {name}")
            arguments = await aside(len(body), codec.decode, getattr(self._module, f"{name}_args"), body)
        except NotStrict as error:
            raise woody.bad_request(f"thrift: {error}") from error
        except DecodeError as error:
            raise woody.bad_request(f"thrift decode error: {error}") from error
        if any(argument is None for argument in vars(arguments).values()):
            raise woody.bad_request("thrift decode error: a required argument is missing")
        return name, kind, seqid, arguments


def member(result: Any, thrown: TException) -> str | None:
    """The field of a result for what is thrown; None: the method does not declare it."""
    for spec in result.thrift_spec:
        if spec is not None and spec[0] > 0 and spec[3][0] is type(thrown):
            return str(spec[2])
    return None


def _declared(result: Any, thrown: TException) -> str:
    """A method that does not declare it cannot say it."""
    field = member(result, thrown)
    if field is None:
        raise woody.unexpected(type(thrown).__name__)
    return field
