"""Business logic in another process, in any language: machinegun's `Processor` and `Modernizer`, called over woody.

processor = { client = "thrift", options = { url = "http://127.0.0.1:8080/v1/processor", timeout = 5 } }
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from progressor import rfc3339
from progressor.config import Dialect
from progressor.errors import ConfigError, ProcessorError
from progressor.model import (
    Action,
    Event,
    Intent,
    ModernizeRequest,
    Remove,
    SetTimer,
    StepRequest,
    TaskType,
    UnsetTimer,
    now,
)
from progressor.representation import with_version
from progressor.rpc import machine, values, woody
from progressor.rpc.gen.state_processing import Modernizer as GeneratedModernizer
from progressor.rpc.gen.state_processing import Processor as Generated
from progressor.rpc.gen.state_processing import ttypes as mg
from progressor.rpc.woody_client import WoodyClient

DEFAULT_TIMEOUT = 30.0
OPTIONS = ("url", "timeout", "dialect")


class RemoteProcessor:
    """Options: `url`, `timeout` (seconds), and `dialect` as that of the namespace. A call ends with the step too."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Raises ConfigError."""
        self._client, self._dialect = _read(options, Generated)

    def process(self, request: StepRequest, options: Mapping[str, Any], context: bytes) -> Intent:
        seen = machine.machine(request.namespace, request.process, None)
        cause = replace(woody.from_context(context), deadline=request.deadline)
        arg = values.load(request.args)
        match request.task_type:
            case TaskType.CALL:
                called = self._client.call("ProcessCall", mg.CallArgs(arg=arg, machine=seen), cause)
                return self._intent(called, called.response)
            case TaskType.REPAIR:
                return self._repair(mg.RepairArgs(arg=arg, machine=seen), cause)
            case TaskType.INIT:
                signal = mg.Signal(init=mg.InitSignal(arg=arg))
            case TaskType.NOTIFY:
                signal = mg.Signal(notification=mg.NotificationSignal(arg=arg))
            case _:
                signal = mg.Signal(timeout=mg.TimeoutSignal())
        return self._intent(self._client.call("ProcessSignal", mg.SignalArgs(signal=signal, machine=seen), cause), None)

    def _repair(self, args: Any, cause: woody.Call) -> Intent:
        try:
            repaired = self._client.call("ProcessRepair", args, cause)
        except mg.RepairFailed as failed:
            raise ProcessorError(_reason(failed.reason)) from failed
        return self._intent(repaired, repaired.response)

    def _intent(self, result: Any, response: Any) -> Intent:
        change = result.change
        return Intent(
            machine.events(change.events or (), self._dialect),
            aux_state=None if change.aux_state is None else values.store_content(change.aux_state, self._dialect),
            response=None if response is None or response.nl is not None else values.store(response, self._dialect),
            action=_action(result.action),
        )


class RemoteModernizer:
    """Calls machinegun's `Modernizer` over woody. Options as those of RemoteProcessor."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Raises ConfigError."""
        self._client, self._dialect = _read(options, GeneratedModernizer)

    def modernize(self, request: ModernizeRequest, options: Mapping[str, Any], context: bytes) -> Event:
        old = request.event
        asked = mg.MachineEvent(ns=request.namespace, id=request.process_id, event=machine.event(old))
        cause = replace(woody.from_context(context), deadline=request.deadline)
        newer = self._client.call("ModernizeEvent", asked, cause).event_payload
        metadata = with_version(old.metadata, newer.format_version)
        return replace(old, payload=values.store(newer.data, self._dialect), metadata=metadata)


def _read(options: Mapping[str, Any], module: ModuleType) -> tuple[WoodyClient, Dialect]:
    """A client of the service of `module`, and the dialect. Raises ConfigError."""
    url, timeout = options.get("url"), options.get("timeout", DEFAULT_TIMEOUT)
    dialect = options.get("dialect", Dialect.PLAIN)
    problems = [f"unknown option {key!r}, expected {', '.join(OPTIONS)}" for key in options if key not in OPTIONS]
    if not isinstance(url, str) or urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        problems.append(f"url: expected http://HOST:PORT/PATH or https://..., got {url!r}")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
        problems.append(f"timeout: expected seconds, got {timeout!r}")
    if dialect not in tuple(Dialect):
        problems.append(f"dialect: expected {' or '.join(Dialect)}, got {dialect!r}")
    if problems:
        raise ConfigError(problems)
    return WoodyClient(str(url), module, float(timeout)), Dialect(dialect)


def _action(action: Any) -> Action | None:
    """A missing timer keeps the one that there is; `remove` with a time removes then."""
    timer = action.timer
    if timer is not None and timer.set_timer is not None:
        when = timer.set_timer.timer
        at = now() + timedelta(seconds=when.timeout) if when.timeout is not None else _time(when.deadline)
        return SetTimer(at, remove=action.remove is not None)
    if action.remove is not None:
        return Remove()
    return UnsetTimer() if timer is not None else None


def _time(deadline: str) -> Any:
    try:
        return rfc3339.read(deadline)
    except ValueError as error:
        raise ProcessorError(f"result unexpected: bad timer: {error}") from None


def _reason(reason: Any) -> str:
    if reason.str is not None:
        return str(reason.str)
    return repr(reason) if reason.bin is None else bytes(reason.bin).decode(errors="backslashreplace")
