"""The Automaton of the machinegun protocol, as services of the ecosystem call it (docs/thrift.md).

Errors: what a method declares is thrown; the rest says by its woody class whether it is worth another try. A step that
failed, whatever its reason, has left a failed machine: MachineFailed.
"""

from __future__ import annotations

from asyncio import wrap_future
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from typing import Any

from thrift.Thrift import TException

from progressor import terms
from progressor.api import FutureClient
from progressor.config import Dialect
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
    TransientError,
)
from progressor.metrics import RequestMetrics
from progressor.rpc import values, woody
from progressor.rpc.aside import aside, weight
from progressor.rpc.gen.state_processing import Automaton as Generated
from progressor.rpc.gen.state_processing import ttypes as mg
from progressor.rpc.machine import machine, to_range
from progressor.rpc.service import Method, Service

EVENT_OVERHEAD = 500
"""Bytes that an event without a payload counts for."""
_THROWN: Mapping[type[ProgressorError], type[TException]] = {
    NamespaceNotFound: mg.NamespaceNotFound,
    ProcessNotFound: mg.MachineNotFound,
    ProcessInInit: mg.MachineNotFound,
    ProcessAlreadyExists: mg.MachineAlreadyExists,
    ProcessRunning: mg.MachineAlreadyWorking,
    ProcessInError: mg.MachineFailed,
    ProcessorError: mg.MachineFailed,
}


class Automaton(Service):
    def __init__(self, client: FutureClient, dialects: Mapping[str, Dialect], metrics: RequestMetrics) -> None:
        """`dialects` by namespace."""
        self._client = client
        self._dialects = dialects
        verbs = {
            "Start": self._start,
            "Call": self._call,
            "Repair": self._repair,
            "SimpleRepair": self._simple_repair,
            "GetMachine": self._get_machine,
            "Remove": self._remove,
            "Notify": self._notify,
            "Modernize": self._modernize,
        }
        super().__init__(Generated, {name: _method(verb) for name, verb in verbs.items()}, metrics)

    async def _start(self, given: Any, call: woody.Call) -> None:
        args = await self._args(given.ns, given.a)
        await wrap_future(self._client.init(ns=given.ns, id=given.id, args=args, **_options(call)))

    async def _call(self, given: Any, call: woody.Call) -> Any:
        args = await self._args(given.desc.ns, given.a)
        return await _value(self._client.call(**_where(given.desc), args=args, **_options(call)))

    async def _repair(self, given: Any, call: woody.Call) -> Any:
        args = await self._args(given.desc.ns, given.a)
        return await _value(self._client.repair(**_where(given.desc), args=args, **_options(call)))

    async def _simple_repair(self, given: Any, call: woody.Call) -> None:
        await wrap_future(self._client.simple_repair(ns=given.ns, id=given.ref.id, **_options(call)))

    async def _get_machine(self, given: Any, call: woody.Call) -> Any:
        where = _where(given.desc)
        process = await wrap_future(self._client.get(**where, timeout=_timeout(call)))
        timer = await wrap_future(self._client.timer(ns=where["ns"], id=where["id"]))
        size = sum(terms.size(event.payload) + EVENT_OVERHEAD for event in process.history)
        size += terms.size(process.aux_state or b"")
        return await aside(size, machine, where["ns"], process, timer)

    async def _remove(self, given: Any, call: woody.Call) -> None:
        await wrap_future(self._client.remove(ns=given.ns, id=given.id, **_options(call)))

    async def _notify(self, given: Any, call: woody.Call) -> Any:
        args = await self._args(given.desc.ns, given.a)
        told = self._client.notify(**_where(given.desc), args=args, **_options(call))
        task_id: int = await wrap_future(told)
        return mg.NotifyResponse(id=str(task_id))

    async def _modernize(self, given: Any, call: woody.Call) -> None:
        where, context = _where(given.desc), call.context()
        try:
            await wrap_future(self._client.modernize(**where, context=context, timeout=_timeout(call)))
        except TransientError as error:
            raise woody.Failure(503, woody.UNAVAILABLE, error.reason) from error
        except ProcessorError as error:
            raise woody.unexpected(error.reason) from error

    async def _args(self, ns: str, value: Any) -> bytes:
        return await aside(weight(value), values.store, value, self._dialects.get(ns, Dialect.PLAIN))


async def _value(response: Future[bytes | None]) -> Any:
    stored = await wrap_future(response)
    return await aside(terms.size(stored or b""), values.load, stored)


def _where(descriptor: Any) -> dict[str, Any]:
    return {"ns": descriptor.ns, "id": descriptor.ref.id, "range": to_range(descriptor.range)}


def _options(call: woody.Call) -> dict[str, Any]:
    return {"context": call.context(), "timeout": _timeout(call)}


def _timeout(call: woody.Call) -> float | None:
    return None if call.seconds_left is None else max(0.001, call.seconds_left)


def _method(verb: Callable[[Any, woody.Call], Awaitable[Any]]) -> Method:
    async def method(given: Any, call: woody.Call) -> Any:
        try:
            return await verb(given, call)
        except ProgressorError as error:
            raise _as_thrift(error) from error

    return method


def _as_thrift(error: ProgressorError) -> Exception:
    for raised, thrown in _THROWN.items():
        if isinstance(error, raised):
            exception: Exception = thrown()
            return exception
    match error:
        case RequestTimeout():
            return woody.Failure(504, woody.UNKNOWN, str(error))
        case StorageUnavailable():
            return woody.Failure(503, woody.UNAVAILABLE, str(error))
    return woody.unexpected(str(error))
