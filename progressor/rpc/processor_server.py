"""A processor written in Python, served to nodes of any kind as machinegun's `Processor`.

    python -m progressor.rpc.processor_server package.module:Name --listen 127.0.0.1:8080

serves it at /v1/processor until SIGTERM or SIGINT. As a context manager: `serving`. What the protocol does not carry,
the processor neither sees nor can say (docs/thrift.md, "Remote processors").
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from progressor import rfc3339
from progressor.checks import is_host
from progressor.errors import CannotListen, ConfigError, ProcessorError, TransientError
from progressor.metrics import RequestMetrics
from progressor.model import Health, Intent, Remove, SetTimer, StepRequest, TaskType, UnsetTimer
from progressor.otp import start_root
from progressor.processor import Processor, resolve
from progressor.representation import format_version
from progressor.rpc import machine, values, woody
from progressor.rpc.gen.base.ttypes import Timer
from progressor.rpc.gen.msgpack.ttypes import Value
from progressor.rpc.gen.state_processing import Processor as Generated
from progressor.rpc.gen.state_processing import ttypes as mg
from progressor.rpc.http import HttpServer
from progressor.rpc.listener import url
from progressor.rpc.service import Service

PATH = "/v1/processor"
THREADS = 200
"""Steps at the same time: as many as a namespace has workers by default."""
NO_METADATA = "the protocol of remote processors carries no metadata of a process: leave Intent.metadata out"
LOG_FORMAT = "%(asctime)s %(levelname)s %(threadName)s %(name)s: %(message)s"
EXIT_FAILED, EXIT_USAGE = 1, 2


class ProcessorService(Service):
    """Steps run in threads: they may block."""

    def __init__(self, processor: Processor, metrics: RequestMetrics) -> None:
        self._processor = processor
        self._threads = ThreadPoolExecutor(THREADS, "step")
        super().__init__(
            Generated,
            {"ProcessSignal": self._signal, "ProcessCall": self._call, "ProcessRepair": self._repair},
            metrics,
        )

    def close(self) -> None:
        """Steps that hang are left alone."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _signal(self, given: Any, call: woody.Call) -> Any:
        signal_ = given.a.signal
        if signal_.init is not None:
            task, arg = TaskType.INIT, signal_.init.arg
        elif signal_.notification is not None:
            task, arg = TaskType.NOTIFY, signal_.notification.arg
        else:
            task, arg = TaskType.TIMEOUT, None
        return await self._step(task, arg, given.a.machine, call, _signal_result)

    async def _call(self, given: Any, call: woody.Call) -> Any:
        return await self._step(TaskType.CALL, given.a.arg, given.a.machine, call, _call_result)

    async def _repair(self, given: Any, call: woody.Call) -> Any:
        return await self._step(TaskType.REPAIR, given.a.arg, given.a.machine, call, _repair_result)

    async def _step(
        self, task: TaskType, arg: Any, seen: Any, call: woody.Call, result: Callable[[Intent], Any]
    ) -> Any:
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, self._run, task, arg, seen, call, result)
        except TransientError as error:
            raise woody.Failure(503, woody.UNAVAILABLE, error.reason) from error
        except ProcessorError as error:
            if task is TaskType.REPAIR:
                raise mg.RepairFailed(reason=Value(str=error.reason)) from error
            raise woody.unexpected(error.reason) from error

    def _run(self, task: TaskType, arg: Any, seen: Any, call: woody.Call, result: Callable[[Intent], Any]) -> Any:
        """In a thread of the steps: a history may be of any size, and so may what a step makes of it."""
        args = b"" if arg is None else values.store(arg)
        request = StepRequest(task, args, machine.process(seen), seen.ns, deadline=call.deadline)
        intent = self._processor(request, call.context())
        if intent.metadata is not None:
            raise woody.unexpected(NO_METADATA)
        return result(intent)


class _Pages:
    is_ready = True

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def scrape(self) -> bytes:
        return generate_latest(self._registry)

    def health(self, namespaces: Iterable[str] | None = None) -> tuple[Health, Mapping[str, Any]]:
        return Health.PASSING, {}


@contextmanager
def serving(client: str, options: Mapping[str, Any] | None = None, listen: str = "127.0.0.1:0") -> Iterator[str]:
    """The URL of the service while the block runs. Raises ConfigError and CannotListen."""
    registry = CollectorRegistry()
    requests = RequestMetrics(registry)
    service = ProcessorService(resolve(client, options or {}), requests)
    bound: list[tuple[str, int]] = []
    host, _, port = listen.rpartition(":")
    if not host or not is_host(host) or not port.isdecimal():
        raise ConfigError([f"listen: expected HOST:PORT, got {listen!r}"])
    server = start_root(
        lambda: HttpServer(
            (host.strip("[]"), int(port)),
            _Pages(registry),
            bound.append,
            requests,
            {PATH: service.answer},
        ),
        "http",
    )
    try:
        yield url(bound[0]) + PATH
    finally:
        server.stop(math.inf)
        service.close()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Serves a processor to nodes.")
    parser.add_argument("processor", help="package.module:Name, a name of those shipped, or an entry point")
    parser.add_argument(
        "--options", type=_object, default={}, metavar="JSON", help="an object, which the processor is given"
    )
    parser.add_argument(
        "--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="default: %(default)s, any free port"
    )
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr)
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        with serving(given.processor, given.options, given.listen) as where:
            print(where, flush=True)
            stop.wait()
    except (ConfigError, CannotListen) as error:
        print(f"processor_server: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED
    return 0


def _object(text: str) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text!r}")
    return found


def _signal_result(intent: Intent) -> Any:
    return mg.SignalResult(_change(intent), _action(intent))


def _call_result(intent: Intent) -> Any:
    return mg.CallResult(values.load(intent.response), _change(intent), _action(intent))


def _repair_result(intent: Intent) -> Any:
    return mg.RepairResult(values.load(intent.response), _change(intent), _action(intent))


def _change(intent: Intent) -> Any:
    return mg.MachineStateChange(
        aux_state=None if intent.aux_state is None else values.load_content(intent.aux_state),
        events=[mg.Content(format_version(e.metadata), values.load(e.payload)) for e in intent.events],
    )


def _action(intent: Intent) -> Any:
    match intent.action:
        case SetTimer(at, remove):
            timer = mg.TimerAction(set_timer=mg.SetTimerAction(timer=Timer(deadline=rfc3339.show(at))))
            return mg.ComplexAction(timer=timer, remove=mg.RemoveAction() if remove else None)
        case UnsetTimer():
            return mg.ComplexAction(timer=mg.TimerAction(unset_timer=mg.UnsetTimerAction()))
        case Remove():
            return mg.ComplexAction(remove=mg.RemoveAction())
    return mg.ComplexAction()


if __name__ == "__main__":
    sys.exit(main())
