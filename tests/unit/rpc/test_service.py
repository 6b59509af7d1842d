"""What takes long for much data is done beside the event loop, which serves the others meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Iterator
from threading import Thread, current_thread
from typing import Any, TypeVar

import pytest
from prometheus_client import CollectorRegistry

from progressor.metrics import RequestMetrics
from progressor.model import Event, Intent, StepRequest
from progressor.rpc import codec, woody
from progressor.rpc.gen.msgpack.ttypes import Value
from progressor.rpc.gen.state_processing import Automaton
from progressor.rpc.gen.state_processing import Processor as Generated
from progressor.rpc.gen.state_processing import ttypes as mg
from progressor.rpc.processor_server import ProcessorService
from progressor.rpc.service import Service

T = TypeVar("T")
CALL = woody.Call("trace", "span", "undefined")
MANY = 20_000


def machine(events: int) -> mg.Machine:
    return mg.Machine(
        ns="ns",
        id="id",
        history=[mg.Event(n + 1, "2020-01-01T00:00:00Z", data=Value(bin=b"")) for n in range(events)],
        history_range=mg.HistoryRange(),
        status=mg.MachineStatus(working=mg.MachineStatusWorking()),
    )


def others_are_served(work: Coroutine[Any, Any, T]) -> tuple[T, int]:
    """What it comes to, and how many turns the loop had for others meanwhile."""

    async def run() -> tuple[T, int]:
        task, turns = asyncio.create_task(work), 0
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
        return await task, turns

    return asyncio.run(run())


def metrics() -> RequestMetrics:
    return RequestMetrics(CollectorRegistry())


@pytest.mark.parametrize(("events", "is_aside"), [(1, False), (MANY, True)])
def test_a_large_answer_is_written_aside(events: int, is_aside: bool) -> None:
    whole = machine(events)

    async def get_machine(given: Any, call: woody.Call) -> Any:
        return whole

    service = Service(Automaton, {"GetMachine": get_machine}, metrics())
    given = Automaton.GetMachine_args(mg.MachineDescriptor("ns", mg.Reference(id="id"), mg.HistoryRange()))
    message = codec.encode_message("GetMachine", codec.CALL, 1, given)
    (reply, _), turns = others_are_served(service.answer(message, CALL))
    assert codec.decode(Automaton.GetMachine_result, codec.message_head(reply)[3]).success == whole
    assert (turns > 10) is is_aside


class Witness(list[T]):
    """Knows by whom it is read."""

    def __init__(self, members: Iterable[T]) -> None:
        super().__init__(members)
        self.readers: set[Thread] = set()

    def __iter__(self) -> Iterator[T]:
        self.readers.add(current_thread())
        return super().__iter__()


def test_the_history_and_the_result_of_a_step_are_translated_in_its_thread() -> None:
    seen, events = machine(3), Witness([Event(b"1"), Event(b"2")])
    seen.history = Witness(seen.history)
    step: set[Thread] = set()

    def processor(request: StepRequest, context: bytes) -> Intent:
        step.add(current_thread())
        return Intent(events)

    service = ProcessorService(processor, metrics())
    try:
        result = asyncio.run(service._call(Generated.ProcessCall_args(mg.CallArgs(Value(bin=b""), seen)), CALL))
    finally:
        service.close()
    assert len(result.change.events) == 2
    assert seen.history.readers == events.readers == step
    assert current_thread() not in step
