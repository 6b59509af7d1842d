"""The Automaton of the machinegun protocol, as services of the ecosystem call it (docs/thrift.md).

Errors: what a method declares is thrown; the rest says by its woody class whether it is worth another try. A step that
failed, whatever its reason, has left a failed machine: MachineFailed.
"""

from __future__ import annotations

import logging
from asyncio import wrap_future
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from thrift.Thrift import TException

from progressor.api import FutureClient
from progressor.errors import (
    NamespaceNotFound,
    ProcessAlreadyExists,
    ProcessInError,
    ProcessInInit,
    ProcessNotFound,
    ProcessorError,
    ProcessRunning,
    ProgressorError,
    RequestTimeout,
    StorageUnavailable,
)
from progressor.rpc import codec, values, woody
from progressor.rpc.codec import DecodeError, NotStrict
from progressor.rpc.gen.state_processing import Automaton as Service
from progressor.rpc.gen.state_processing import ttypes as mg
from progressor.rpc.machine import machine, to_range
from progressor.rpc.values import Dialect

logger = logging.getLogger(__name__)

_THROWN: Mapping[type[ProgressorError], type[TException]] = {
    NamespaceNotFound: mg.NamespaceNotFound,
    ProcessNotFound: mg.MachineNotFound,
    ProcessInInit: mg.MachineNotFound,
    ProcessAlreadyExists: mg.MachineAlreadyExists,
    ProcessRunning: mg.MachineAlreadyWorking,
    ProcessInError: mg.MachineFailed,
    ProcessorError: mg.MachineFailed,
}


class Automaton:
    """One message in, one message out."""

    def __init__(self, client: FutureClient, dialects: Mapping[str, str]) -> None:
        """`dialects` by namespace."""
        self._client = client
        self._dialects = {ns: Dialect(dialect) for ns, dialect in dialects.items()}
        self._methods: Mapping[str, Callable[[Any, dict[str, Any]], Awaitable[Any]]] = {
            "Start": self._start,
            "Call": self._call,
            "Repair": self._repair,
            "SimpleRepair": self._simple_repair,
            "GetMachine": self._get_machine,
            "Remove": self._remove,
            "Notify": self._notify,
            "Modernize": self._modernize,
        }

    async def answer(self, message: bytes, call: woody.Call) -> tuple[bytes, Mapping[str, str]]:
        """The reply and its headers. Raises woody.Failure."""
        name, kind, seqid, arguments = self._read(message)
        options = {} if call.seconds_left is None else {"timeout": max(0.001, call.seconds_left)}
        result = getattr(Service, f"{name}_result")()
        headers: Mapping[str, str] = {}
        try:
            success = await self._methods[name](arguments, {**options, "context": call.context()})
            if success is not None:
                result.success = success
        except ProgressorError as error:
            thrown = _thrown(error)
            member = _member(result, thrown)
            setattr(result, member, thrown)
            headers = {woody.ERROR_CLASS: woody.BUSINESS, woody.ERROR_REASON: type(thrown).__name__}
        except ValueError as error:
            raise woody.unexpected(str(error)) from error
        if kind == codec.ONEWAY:
            return b"", {}
        return codec.encode_message(name, codec.REPLY, seqid, result), headers

    def _read(self, message: bytes) -> tuple[str, int, int, Any]:
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
            return name, kind, seqid, codec.decode(getattr(Service, f"{name}_args"), body)
        except NotStrict as error:
            raise woody.bad_request(f"thrift: {error}") from error
        except DecodeError as error:
            raise woody.bad_request(f"thrift decode error: {error}") from error

    async def _start(self, given: Any, options: dict[str, Any]) -> None:
        args = self._args(given.ns, given.a)
        await wrap_future(self._client.init(ns=given.ns, id=_text(given.id), args=args, **options))

    async def _call(self, given: Any, options: dict[str, Any]) -> Any:
        where, args = self._where(given.desc), self._args(given.desc.ns, given.a)
        return values.load(await wrap_future(self._client.call(**where, args=args, **options)))

    async def _repair(self, given: Any, options: dict[str, Any]) -> Any:
        where, args = self._where(given.desc), self._args(given.desc.ns, given.a)
        return values.load(await wrap_future(self._client.repair(**where, args=args, **options)))

    async def _simple_repair(self, given: Any, options: dict[str, Any]) -> None:
        await wrap_future(self._client.simple_repair(ns=given.ns, id=_text(given.ref.id), **options))

    async def _get_machine(self, given: Any, options: dict[str, Any]) -> Any:
        del options["context"]
        where = self._where(given.desc)
        process = await wrap_future(self._client.get(**where, **options))
        timer = await wrap_future(self._client.timer(ns=where["ns"], id=where["id"]))
        return machine(where["ns"], process, timer, given.desc.range)

    async def _remove(self, given: Any, options: dict[str, Any]) -> None:
        await wrap_future(self._client.remove(ns=given.ns, id=_text(given.id), **options))

    async def _notify(self, given: Any, options: dict[str, Any]) -> Any:
        where, args = self._where(given.desc), self._args(given.desc.ns, given.a)
        task_id: int = await wrap_future(self._client.notify(**where, args=args, **options))
        return mg.NotifyResponse(id=str(task_id))

    async def _modernize(self, given: Any, options: dict[str, Any]) -> None:
        """No namespace has a modernizer."""
        raise NamespaceNotFound

    def _where(self, descriptor: Any) -> dict[str, Any]:
        return {"ns": descriptor.ns, "id": _text(descriptor.ref.id), "range": to_range(descriptor.range)}

    def _args(self, ns: Any, value: Any) -> bytes:
        if ns is None or value is None:
            raise woody.bad_request("thrift decode error: a required argument is missing")
        return values.store(value, self._dialects.get(ns, Dialect.PLAIN))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise woody.bad_request("thrift decode error: a required argument is missing")
    return value


def _thrown(error: ProgressorError) -> TException:
    for raised, thrown in _THROWN.items():
        if isinstance(error, raised):
            return thrown()
    match error:
        case RequestTimeout():
            raise woody.Failure(504, woody.UNKNOWN, str(error)) from error
        case StorageUnavailable():
            raise woody.Failure(503, woody.UNAVAILABLE, str(error)) from error
    raise woody.unexpected(str(error)) from error


def _member(result: Any, thrown: TException) -> str:
    """The field of a result for what is thrown; a method that does not declare it cannot say it."""
    for spec in result.thrift_spec:
        if spec is not None and spec[0] > 0 and spec[3][0] is type(thrown):
            return str(spec[2])
    raise woody.unexpected(type(thrown).__name__)
