"""What the transactions of steps and requests write into the outbox: all that is to be told, once, in order."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from progressor.engine import lifecycle
from progressor.engine.lifecycle import Failure
from progressor.engine.ports import BrokenTask, Completion, Hint, Lost, Refused, Streams
from progressor.errors import LeaseLost
from progressor.model import Event, Intent, Op, Process, Remove, SetTimer, TaskType, now
from progressor.storage.postgres import PostgresStorage
from tests.conftest import Database
from tests.integration.storage.nodes import (
    BUSINESS,
    DEFECT,
    NS,
    POLICY,
    TRANSIENT,
    Node,
    Tap,
    next_of,
    next_token,
    race,
    request,
    soon,
    started,
    step,
)

AT = datetime(2020, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
TWO = Intent([Event(b"1"), Event(b"2")])
GOES = Intent([Event(b"last")], action=Remove())


def told(tap: Tap, process_id: str = "p") -> list[str]:
    """What the outbox says of a process: `event 1`, `created`, `failed: reason` ..., and forgets it."""
    rows = tap.rows(
        "delete from {outbox} where process_id = %s returning message_id, notice, event_id, reason", process_id
    )
    return [
        f"event {event_id}" if notice == "event" else f"{notice}: {reason}" if reason else notice
        for _, notice, event_id, reason in sorted(rows)
    ]


def zombie(loud: Node, storage: PostgresStorage, tap: Tap, policy_attempts: int = 1) -> Completion:
    """What is to be committed for the one running task, whose node has died."""
    tap.execute("update {running} set owner = 0")
    (claimed,) = storage.take_over(NS, loud.epoch, 3600, 3600, [], [next_token()])
    fate = lifecycle.recover(claimed, replace(POLICY, max_attempts=policy_attempts), (), now(), next_token())
    assert isinstance(fate, Completion)
    return fate


# The table of what is told when (docs/adr/0008-outbox.md)


def test_an_init(loud: Node, tap: Tap) -> None:
    claimed = loud.start("init", "p")
    assert told(tap) == []
    loud.finish(claimed, TWO)
    assert told(tap) == ["created", "event 1", "event 2"]


@pytest.mark.parametrize("op", ["call", "notify"])
def test_a_step_of_a_running_process(loud: Node, tap: Tap, op: str) -> None:
    loud.process("p")
    told(tap)
    loud.finish(loud.start(op, "p"), TWO)
    assert told(tap) == ["event 1", "event 2"]
    loud.finish(loud.start(op, "p"))
    assert told(tap) == []


def test_a_timer_of_a_running_process(loud: Node, tap: Tap) -> None:
    loud.process("p")
    told(tap)
    loud.finish(loud.due_timer("p"), TWO)
    assert told(tap) == ["event 1", "event 2"]


def test_a_timer_that_sets_the_next_one_at_once(loud: Node, tap: Tap) -> None:
    looping = Intent([Event(b"e")], action=SetTimer(AT))
    fate = loud.finish(loud.start("init", "p"), looping)
    loud.finish(next_of(fate), looping)
    assert told(tap) == ["created", "event 1", "event 2"]


@pytest.mark.parametrize("op", ["init", "call"])
@pytest.mark.parametrize("failure", [BUSINESS, TRANSIENT, DEFECT], ids=lambda failure: failure.kind.name)
def test_a_step_that_fails_its_caller(loud: Node, tap: Tap, op: str, failure: Failure) -> None:
    if op == "call":
        loud.process("p")
        told(tap)
    loud.finish(loud.start(op, "p"), failure)
    assert told(tap) == [f"failed: {failure.reason}"]


@pytest.mark.parametrize("task_type", [TaskType.TIMEOUT, TaskType.REMOVE])
def test_a_timer_that_fails(loud: Node, tap: Tap, task_type: TaskType) -> None:
    loud.process("p")
    claimed = loud.due_timer("p", task_type)
    told(tap)
    loud.finish(claimed, TRANSIENT)
    assert told(tap) == []
    tap.due(claimed.task.task_id)
    loud.finish(loud.claim_one(Hint(claimed.task.task_id, "p", AT)), DEFECT)
    assert told(tap) == ["failed: bug"]


def test_a_notification_that_fails_for_good(loud: Node, tap: Tap) -> None:
    loud.process("p")
    told(tap)
    loud.finish(loud.start("notify", "p"), DEFECT)
    assert told(tap) == ["failed: bug"]


def test_a_repair(loud: Node, tap: Tap) -> None:
    loud.broken("p")
    told(tap)
    loud.finish(loud.start("repair", "p"), BUSINESS)
    assert told(tap) == []
    loud.finish(loud.start("repair", "p"), TWO)
    assert told(tap) == ["working", "event 1", "event 2"]


def test_a_repair_that_sets_the_broken_timer_again(loud: Node, tap: Tap) -> None:
    loud.broken("p", TaskType.TIMEOUT)
    told(tap)
    claimed = replace(loud.start("repair", "p"), broken=BrokenTask(TaskType.TIMEOUT, b"", b""))
    fate = loud.finish(claimed)
    assert told(tap) == ["working"]
    loud.finish(next_of(fate), Intent([Event(b"e")]))
    assert told(tap) == ["event 1"]


def test_a_simple_repair_with_nothing_to_run_again(loud: Node, tap: Tap) -> None:
    loud.broken("p")
    told(tap)
    loud.ask("simple_repair", "p")
    assert told(tap) == ["working"]


def test_a_simple_repair_that_runs_the_timer_again(loud: Node, tap: Tap) -> None:
    loud.broken("p", TaskType.TIMEOUT)
    told(tap)
    again = loud.start("simple_repair", "p")
    assert told(tap) == []
    loud.finish(again, Intent([Event(b"e")]))
    assert told(tap) == ["working", "event 1"]


def test_a_simple_repair_whose_timer_fails_again(loud: Node, tap: Tap) -> None:
    loud.broken("p", TaskType.TIMEOUT)
    told(tap)
    loud.finish(loud.start("simple_repair", "p"), DEFECT)
    assert told(tap) == ["failed: bug"]


@pytest.mark.parametrize("op", ["init", "call"])
def test_a_step_that_removes_its_process(loud: Node, tap: Tap, op: str) -> None:
    if op == "call":
        loud.process("p")
        told(tap)
    loud.finish(loud.start(op, "p"), GOES)
    assert told(tap) == ["event 1", "removed"]


def test_a_repair_that_removes_its_process(loud: Node, tap: Tap) -> None:
    loud.broken("p")
    told(tap)
    loud.finish(loud.start("repair", "p"), GOES)
    assert told(tap) == ["event 1", "removed"]


def test_a_remove_task(loud: Node, tap: Tap) -> None:
    loud.process("p")
    told(tap)
    loud.finish(loud.due_timer("p", TaskType.REMOVE), lifecycle.REMOVED)
    assert told(tap) == ["removed"]


def test_a_request_to_remove(loud: Node, tap: Tap) -> None:
    loud.process("p")
    told(tap)
    loud.ask("remove", "p")
    assert told(tap) == ["removed"]


def test_a_request_to_remove_behind_a_step(loud: Node, tap: Tap) -> None:
    claimed = loud.start("init", "p")
    loud.queue("remove", "p")
    loud.finish(claimed, TWO)
    assert told(tap) == ["created", "event 1", "event 2", "removed"]


def test_a_zombie(loud: Node, storage: PostgresStorage, tap: Tap) -> None:
    loud.process("p")
    loud.start("call", "p")
    told(tap)
    loud.complete(zombie(loud, storage, tap))
    assert told(tap) == ["failed: zombie detected"]


def test_a_step_whose_data_are_refused(loud: Node, tap: Tap) -> None:
    loud.process("p")
    told(tap)
    loud.complete(lifecycle.refuse(step(loud.start("call", "p"), TWO), "no room"))
    assert told(tap) == ["failed: no room"]


def test_an_import_tells_nothing(loud: Node, storage: PostgresStorage, tap: Tap) -> None:
    storage.put(NS, Process("p", history=[Event(b"e", {}, 1, AT)], last_event_id=1), None, b"")
    assert told(tap) == []
    loud.finish(loud.start("call", "p"), TWO)
    assert told(tap) == ["event 2", "event 3"]


# Rows


def test_a_message_has_all_of_its_event(loud: Node, tap: Tap) -> None:
    event = Event(b"\x00\xff", {"format_version": 1, "é": [None]}, timestamp=AT)
    loud.finish(loud.start("init", "p"), Intent([event]))
    (row,) = tap.rows("select event_id, timestamp, metadata, payload, reason from {outbox} where notice = 'event'")
    assert row == (1, AT, event.metadata, event.payload, None)


def test_messages_are_in_the_order_of_commits_and_of_events(loud: Node, tap: Tap) -> None:
    names = [f"p{n}" for n in range(20)]
    claimed = [started(a) for a in loud.commit([request("init", name) for name in names]).requests]
    loud.commit(completions=[step(c, Intent([Event(b"e")] * 30)) for c in claimed])
    more = [started(a) for a in loud.commit([request("call", name) for name in reversed(names)]).requests]
    loud.commit(completions=[step(c, Intent([Event(b"e")] * 3)) for c in more])
    for name in names:
        assert told(tap, name) == ["created", *(f"event {n}" for n in range(1, 34))]


# What is configured


@pytest.mark.parametrize(
    ("streams", "expected"),
    [
        (Streams(), []),
        (Streams(events=True), ["event 1", "event 2"]),
        (Streams(lifecycle=True), ["created", "failed: bug", "working", "removed"]),
    ],
)
def test_only_what_has_a_topic_is_told(migrated: Database, tap: Tap, streams: Streams, expected: list[str]) -> None:
    node = Node(migrated.conninfo, streams=streams)
    node.process("p", TWO)
    node.finish(node.start("call", "p"), DEFECT)
    node.ask("simple_repair", "p")
    node.ask("remove", "p")
    node.close()
    assert told(tap) == expected


# Dying before, after, and in between


def test_a_step_whose_answer_was_lost_is_told_once(loud: Node, tap: Tap) -> None:
    completion = step(loud.start("init", "p"), TWO)
    loud.complete(completion)
    loud.complete(completion, again=True)
    assert told(tap) == ["created", "event 1", "event 2"]


def test_a_removal_whose_answer_was_lost_is_told_once(loud: Node, tap: Tap) -> None:
    loud.process("p")
    completion = step(loud.start("call", "p"), GOES)
    told(tap)
    loud.complete(completion)
    loud.complete(completion, again=True)
    assert told(tap) == ["event 1", "removed"]


@pytest.mark.parametrize("op", [Op.REMOVE, Op.SIMPLE_REPAIR])
@pytest.mark.parametrize("key", [None, "key"])
def test_a_request_whose_answer_was_lost_is_told_once(loud: Node, tap: Tap, op: Op, key: str | None) -> None:
    loud.broken("p")
    told(tap)
    same = [request(op, "p", key=key)]
    loud.commit(same)
    loud.commit(same, again=True)
    assert told(tap) == ["removed" if op is Op.REMOVE else "working"]


def test_a_step_that_lost_its_fence_is_not_told(loud: Node, storage: PostgresStorage, tap: Tap) -> None:
    loud.process("p")
    late = step(loud.start("call", "p"), TWO)
    loud.complete(zombie(loud, storage, tap))
    told(tap)
    assert isinstance(loud.complete(late), Lost)
    assert told(tap) == []


def test_a_step_that_lost_its_fence_is_not_told_among_others(loud: Node, tap: Tap) -> None:
    claimed = [started(a) for a in loud.commit([request("init", name) for name in ("p", "q")]).requests]
    tap.execute("update {running} set run_token = 0 where process_id = 'p'")
    loud.commit(completions=[step(c, TWO) for c in claimed])
    assert told(tap, "p") == []
    assert told(tap, "q") == ["created", "event 1", "event 2"]


def test_a_node_that_was_declared_dead_tells_nothing(loud: Node, tap: Tap) -> None:
    completion = step(loud.start("init", "p"), TWO)
    loud.die()
    with pytest.raises(LeaseLost):
        loud.complete(completion)
    assert told(tap) == []


def test_a_removal_that_is_wanted_twice_is_told_once(loud: Node, tap: Tap) -> None:
    loud.process("p")
    told(tap)
    answers = loud.commit([request("remove", "p"), request("remove", "p")]).requests
    assert sum(isinstance(answer, Refused) for answer in answers) == 1
    assert told(tap) == ["removed"]


def test_a_process_that_is_made_again_is_told_in_order(migrated: Database, loud: Node, tap: Tap) -> None:
    """One node removes it while another one makes it: whoever comes first holds its row."""
    with closing(Node(migrated.conninfo, streams=Streams(events=True, lifecycle=True))) as other:
        loud.process("p")
        told(tap)
        for _ in range(10):
            removal: Callable[[], Any] = partial(loud.complete, step(loud.start("call", "p"), GOES))
            _, answer = race(removal, lambda: other.ask("init", "p"))
            if isinstance(answer, Refused):
                answer = other.ask("init", "p")
            other.finish(started(answer))
            assert told(tap) == ["event 1", "removed", "created"]


def test_a_timer_in_future_is_not_told(loud: Node, tap: Tap) -> None:
    loud.finish(loud.start("init", "p"), Intent(action=SetTimer(soon(), remove=True)))
    assert told(tap) == ["created"]
