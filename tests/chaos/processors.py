"""A processor that a test can stop in the middle of a step, and whose every success leaves one event.

Args of a step are an order, a JSON object:

    say       text for the event; the response of a call is `say:event id`
    timer     seconds to a timeout; `remove`: seconds to a removal
    loop      seconds from each timeout to the next, while there are fewer than `until` events
    fail      the reason of a business error

Before it does anything, a step adds a line to the file `began NODE PROCESS TYPE` in the directory of option
`directory`; then it waits as long as there is a file `hold NODE PROCESS TYPE`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from threading import Event as Signal
from typing import Any

from progressor import Event, Intent, ProcessorError, SetTimer, StepRequest, TaskType, now, seconds

LOOK = 0.01


def ledger(request: StepRequest, options: Mapping[str, Any], context: bytes) -> Intent:
    _pass_gate(request, Path(options["directory"]), options["node"])
    order: dict[str, Any] = json.loads(request.args or b"{}")
    if "fail" in order:
        raise ProcessorError(order["fail"])
    process = request.process
    number = process.last_event_id + 1
    assert [event.event_id for event in process.history] == list(range(1, number)), "the history has gaps"
    state = dict(process.metadata or {}) | {key: order[key] for key in ("loop", "until") if key in order}
    said = {"task": request.task_id, "type": request.task_type, "say": order.get("say", "")}
    return Intent(
        events=[Event(json.dumps(said).encode())],
        metadata=state,
        aux_state=str(number).encode(),
        response=f"{order.get('say', '')}:{number}".encode() if request.task_type is TaskType.CALL else None,
        action=_action(request.task_type, order, state, number),
    )


def _action(task_type: TaskType, order: Mapping[str, Any], state: Mapping[str, Any], number: int) -> SetTimer | None:
    if "remove" in order:
        return SetTimer(now() + seconds(order["remove"]), remove=True)
    if "timer" in order:
        return SetTimer(now() + seconds(order["timer"]))
    if "loop" in state and task_type in (TaskType.INIT, TaskType.TIMEOUT) and number < state["until"]:
        return SetTimer(now() + seconds(state["loop"]))
    return None


def _pass_gate(request: StepRequest, directory: Path, node: str) -> None:
    name = f"{node} {request.process.process_id} {request.task_type}"
    hold = directory / f"hold {name}"
    with (directory / f"began {name}").open("a") as began:
        began.write(f"{request.task_id} {request.attempt}\n")
    while hold.exists():
        Signal().wait(LOOK)
