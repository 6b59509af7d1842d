"""`claim`, `takeover` and `release`: how tasks come into the hands of a node, and out of them again."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest

from progressor.application import STALE_MARGIN
from progressor.engine.ports import Accepted, Claim, Claimed, Completed, Hint, Lost
from progressor.engine.zombie_collector import JITTER, pause
from progressor.errors import LeaseLost
from progressor.model import Answered, Intent, SetTimer, TaskType, now
from progressor.storage.postgres import PostgresStorage
from tests.integration.storage.conftest import MakeNode
from tests.integration.storage.nodes import (
    BUSINESS,
    DEFECT,
    NS,
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

STALE, GRACE = 100.0, 10.0

# claim


@pytest.fixture
def due(node: Node, tap: Tap) -> Hint:
    """A timer of the process p that is due."""
    node.process("p")
    hint = node.timer("p", soon())
    tap.due(hint.task_id)
    return hint


def test_a_due_timer_is_claimed(node: Node, tap: Tap, due: Hint) -> None:
    claimed = node.claim_one(due)
    assert (claimed.task.task_id, claimed.task.task_type, claimed.task.owner) == (due.task_id, "timeout", node.epoch)
    assert claimed.process.status == "running"
    assert tap.running("p") == due.task_id
    assert tap.schedule("p") == []


def test_a_timer_is_never_claimed_early(node: Node, tap: Tap) -> None:
    node.process("p")
    hint = node.timer("p", soon())
    before = tap.tables()
    assert node.claim(replace(hint, at=now())) == [hint]
    assert tap.tables() == before


def test_results_are_in_the_order_of_the_claims(node: Node, tap: Tap) -> None:
    hints = []
    for name in ("c", "a", "b"):
        node.process(name)
        hints.append(node.timer(name, soon()))
        tap.due(hints[-1].task_id)
    late = replace(hints[0], task_id=10**6)
    claims = [Claim(hint, next_token()) for hint in (hints[0], late, hints[1], hints[2])]
    found = node.commit(claims=claims).claims
    assert [c.task.process_id if isinstance(c, Claimed) else c for c in found] == ["c", None, "a", "b"]
    assert [c.task.token for c in found if isinstance(c, Claimed)] == [claims[n].token for n in (0, 2, 3)]


def test_a_task_that_is_claimed_twice_in_a_batch_is_had_once(node: Node, due: Hint) -> None:
    """A scan may find a task that is being claimed already."""
    (claimed,) = [found for found in node.claim(due, due) if found is not None]
    assert isinstance(claimed, Claimed)
    assert isinstance(node.complete(step(claimed)), Completed)


def test_a_blocked_timer_is_not_claimed(node: Node, tap: Tap, due: Hint) -> None:
    node.start("call", "p")
    before = tap.tables()
    assert node.claim(due) == [None]
    assert tap.tables() == before


def test_what_is_gone_is_not_claimed(node: Node, due: Hint) -> None:
    node.finish(node.claim_one(due))
    assert node.claim(due) == [None]
    node.ask("remove", "p")
    assert node.claim(due) == [None]


def test_a_process_that_another_batch_holds_is_passed_over(node: Node, tap: Tap, due: Hint) -> None:
    node.process("q")
    free = node.timer("q", soon())
    tap.due(free.task_id)
    with tap.locked("p"):
        missed, claimed = node.claim(due, free)
    assert missed is None
    assert isinstance(claimed, Claimed)
    node.claim_one(due)


def test_one_of_many_nodes_gets_a_task(node: Node, other: Node, tap: Tap) -> None:
    node.process("p")
    for _ in range(20):
        hint = node.timer("p", soon())
        tap.due(hint.task_id)
        found = race(partial(node.claim, hint), partial(other.claim, hint))
        winners = [c for (c,) in found if isinstance(c, Claimed)]
        assert len(winners) == 1
        (node if winners[0].task.owner == node.epoch else other).finish(winners[0])


def test_a_waiting_call_is_claimed_before_the_timer_of_its_process(
    node: Node, tap: Tap, storage: PostgresStorage, due: Hint
) -> None:
    claimed = node.start("call", "p")
    first, second = node.queue("call", "p"), node.queue("call", "p")
    storage.release(NS, node.epoch, [claimed.task])
    hints = storage.waiting_calls(NS, 10)
    assert [hint.task_id for hint in hints] == [claimed.task.task_id]
    wishes = [due, *(Hint(task, "p", now()) for task in (second, first, claimed.task.task_id))]
    *missed, found = node.claim(*wishes)
    assert missed == [None, None, None]
    assert isinstance(found, Claimed)
    assert found.task.task_id == claimed.task.task_id
    assert (due.task_id, "timeout", "blocked") in tap.schedule("p")


def test_a_claim_blocks_the_timer(node: Node, tap: Tap, storage: PostgresStorage) -> None:
    node.process("p")
    timer = node.timer("p", soon())
    claimed = node.start("call", "p")
    storage.release(NS, node.epoch, [claimed.task])
    tap.execute("update {schedule} set status = 'waiting'")
    (hint,) = storage.waiting_calls(NS, 10)
    again = node.claim_one(hint)
    assert tap.schedule("p") == [(timer.task_id, "timeout", "blocked")]
    assert [h.task_id for h in node.finish(again).hints] == [timer.task_id]


def test_a_notification_waits_for_the_repair_of_its_process(node: Node, storage: PostgresStorage) -> None:
    node.process("p")
    claimed = node.start("call", "p")
    notice = Hint(node.queue("notify", "p"), "p", now())
    node.finish(claimed, BUSINESS)
    assert storage.waiting_calls(NS, 10) == []
    assert node.claim(notice) == [None]


def test_only_the_first_call_of_each_idle_process_is_found(node: Node, storage: PostgresStorage) -> None:
    tasks = {}
    for name in "abc":
        node.process(name)
        tasks[name] = node.start("call", name).task
        node.queue("call", name)
    storage.release(NS, node.epoch, [tasks["c"], tasks["a"]])
    found = storage.waiting_calls(NS, 10)
    assert [(h.process_id, h.task_id) for h in found] == [("a", tasks["a"].task_id), ("c", tasks["c"].task_id)]
    assert len(storage.waiting_calls(NS, 1)) == 1


def test_a_claim_that_is_sent_again_finds_what_it_took(node: Node, tap: Tap, due: Hint) -> None:
    node.process("q")
    early = node.timer("q", soon())
    claims = [Claim(hint, next_token()) for hint in (due, early, replace(due, task_id=10**6, process_id="r"))]
    first = node.commit(claims=claims).claims
    before = tap.tables()
    assert node.commit(claims=claims, again=True).claims == first
    assert tap.tables() == before


def test_a_claim_that_was_not_stored_is_made_when_it_is_sent_again(node: Node, due: Hint) -> None:
    (claimed,) = node.claim(due, again=True)
    assert isinstance(claimed, Claimed)


def test_steps_requests_and_claims_of_one_process_share_a_batch(node: Node, due: Hint) -> None:
    call = request("call", "p")
    result = node.commit([call], claims=[Claim(due, next_token())])
    assert started(result.requests[0]).task.task_type == "call"
    assert result.claims == [None]


# upcoming


def test_timers_are_found_in_the_order_of_time_and_page_by_page(node: Node, storage: PostgresStorage) -> None:
    expected = []
    for n, delay in enumerate((300, 100, 200, 100)):
        node.process(f"p{n}")
        expected.append(node.timer(f"p{n}", now().replace(microsecond=n) + timedelta(seconds=delay)))
    expected.sort(key=lambda hint: (hint.at, hint.task_id))
    assert storage.upcoming(NS, 3600, None, 10) == expected
    assert storage.upcoming(NS, 3600, None, 3) == expected[:3]
    assert storage.upcoming(NS, 3600, expected[2], 3) == expected[3:]
    assert storage.upcoming(NS, 150, None, 10) == expected[:2]


# takeover


def take(storage: PostgresStorage, node: Node, known: tuple[int, ...] = (), limit: int = 10) -> list[Claimed]:
    return list(storage.take_over(NS, node.epoch, STALE, GRACE, known, [next_token() for _ in range(limit)]))


def test_what_a_dead_node_ran_is_taken_over(node: Node, other: Node, tap: Tap, storage: PostgresStorage) -> None:
    node.process("p")
    claimed = node.start("call", "p", b"args")
    assert take(storage, other) == []
    node.die()
    (zombie,) = take(storage, other)
    assert (zombie.task.task_id, zombie.task.args) == (claimed.task.task_id, b"args")
    assert (zombie.task.owner, zombie.task.attempts) == (other.epoch, 1)
    assert other.finish(zombie) == Completed()
    with pytest.raises(LeaseLost):
        node.complete(step(claimed))


def test_a_step_that_outlived_its_deadline_is_taken_over(
    node: Node, other: Node, tap: Tap, storage: PostgresStorage
) -> None:
    node.process("p")
    claimed = node.start("call", "p")
    tap.age("p", STALE - 50)
    assert take(storage, other) == []
    tap.age("p", STALE + 50)
    (zombie,) = take(storage, other)
    assert zombie.task.task_id == claimed.task.task_id


def test_ages_mean_nothing_to_a_node_whose_own_lease_has_expired(
    node: Node, other: Node, tap: Tap, storage: PostgresStorage
) -> None:
    """The database's clock was set forward: everything looks old at once, and nobody could renew anything yet."""
    for owner, name in ((node, "p"), (other, "q")):
        owner.process(name)
        owner.start("call", name)
        tap.age(name, 3600)
    tap.execute("update progressor_nodes set expires_at = expires_at - interval '2 hours'")
    assert take(storage, node) == []
    tap.execute("update progressor_nodes set expires_at = expires_at + interval '2 hours'")
    assert {zombie.task.process_id for zombie in take(storage, node)} == {"p", "q"}


def test_a_task_of_its_own_that_a_node_does_not_know_is_taken_after_the_grace(
    node: Node, tap: Tap, storage: PostgresStorage
) -> None:
    node.process("p")
    claimed = node.start("call", "p")
    tap.age("p", GRACE - 5)
    assert take(storage, node) == []
    tap.age("p", GRACE + 5)
    assert take(storage, node, known=(claimed.task.token,)) == []
    (zombie,) = take(storage, node)
    assert zombie.task.token != claimed.task.token
    assert node.complete(step(claimed)) == Lost(None)


def test_known_tasks_that_wait_for_a_worker_are_refreshed(
    node: Node, other: Node, tap: Tap, storage: PostgresStorage
) -> None:
    node.process("p")
    claimed = node.start("call", "p")
    tap.age("p", STALE * 2)
    assert take(storage, node, known=(claimed.task.token,)) == []
    assert take(storage, other) == []
    node.finish(claimed)


@pytest.mark.parametrize(("step_timeout", "scan_timeout"), [(5, 10), (0.1, 60), (60, 10)])
def test_a_task_that_waits_for_a_worker_is_refreshed_before_it_is_stale(
    node: Node, other: Node, tap: Tap, storage: PostgresStorage, step_timeout: float, scan_timeout: float
) -> None:
    """The worst case: a round came a moment too early for it, and the next one comes as late as it may."""
    stale = step_timeout + scan_timeout + STALE_MARGIN
    node.process("p")
    claimed = node.start("call", "p")
    tap.age("p", stale / 2 + (1 + JITTER) * pause(scan_timeout, stale))
    assert storage.take_over(NS, other.epoch, stale, GRACE, [], [next_token()]) == []
    storage.take_over(NS, node.epoch, stale, GRACE, [claimed.task.token], [])
    tap.execute("update {running} set running_time = running_time - %s * interval '1 s'", stale / 2)
    assert storage.take_over(NS, other.epoch, stale, GRACE, [], [next_token()]) == []


def test_a_refresh_does_not_wait_for_the_rows_of_a_batch(node: Node, tap: Tap, storage: PostgresStorage) -> None:
    """A batch of the same node may hold them and wait for others that the refresh holds."""
    node.process("p")
    claimed = node.start("call", "p")
    tap.age("p", STALE * 2)
    with tap.connection.transaction():
        tap.execute("select from {running} for update")
        assert take(storage, node, known=(claimed.task.token,)) == []


def test_at_most_as_many_as_there_are_tokens_are_taken(node: Node, other: Node, storage: PostgresStorage) -> None:
    for n in range(5):
        node.start("init", f"p{n}")
    node.die()
    assert take(storage, other, limit=0) == []
    found = [len(take(storage, other, limit=2)) for _ in range(4)]
    assert found == [2, 2, 1, 0]


def test_a_process_in_a_batch_is_not_taken_over(node: Node, other: Node, tap: Tap, storage: PostgresStorage) -> None:
    node.start("init", "p")
    node.die()
    with tap.locked("p"):
        assert take(storage, other) == []
    assert len(take(storage, other)) == 1


def test_many_nodes_take_each_zombie_once(
    node: Node, other: Node, make_node: MakeNode, storage: PostgresStorage
) -> None:
    node.commit([request("init", f"p{n}") for n in range(50)])
    node.die()
    third = make_node()
    found = [
        c
        for taken in race(lambda: take(storage, other, limit=50), lambda: take(storage, third, limit=50))
        for c in taken
    ]
    found += take(storage, other, limit=50)
    assert sorted(c.task.process_id for c in found) == sorted(f"p{n}" for n in range(50))


def test_a_node_without_a_lease_takes_nothing(node: Node, other: Node, tap: Tap, storage: PostgresStorage) -> None:
    node.start("init", "p")
    node.die()
    other.die()
    before = tap.tables()
    with pytest.raises(LeaseLost):
        take(storage, other)
    assert tap.tables() == before


def test_a_zombie_that_fails_answers_those_who_wait(
    node: Node, other: Node, tap: Tap, storage: PostgresStorage
) -> None:
    node.start("init", "p")
    call = node.queue("call", "p")
    node.die()
    (zombie,) = take(storage, other)
    result = other.commit(completions=[step(zombie, DEFECT)])
    assert [e.task_id for e in result.ended] == [call]
    assert tap.status("p") == "error"


# release


@pytest.mark.parametrize("op", ["init", "call", "notify", "repair"])
def test_a_released_request_is_found_and_claimed_by_another_node(
    node: Node, other: Node, tap: Tap, storage: PostgresStorage, op: str
) -> None:
    if op == "repair":
        node.broken("p")
    elif op != "init":
        node.process("p")
    claimed = node.start(op, "p", b"args", "k")
    storage.release(NS, node.epoch, [claimed.task])
    assert tap.task_status(claimed.task.task_id) == "waiting"
    assert tap.running("p") is None
    assert node.ask(op, "p", b"args", "k") == Accepted(claimed.task.task_id)
    (hint,) = storage.waiting_calls(NS, 10)
    again = other.claim_one(hint)
    assert replace(again.task, owner=0, token=0) == replace(claimed.task, owner=0, token=0)
    other.finish(again, Intent(response=b"done"))
    if op != "notify":
        assert node.ask(op, "p", b"args", "k") == Answered(b"done", claimed.task.task_id)


@pytest.mark.parametrize("task_type", [TaskType.TIMEOUT, TaskType.REMOVE])
def test_a_released_timer_is_claimed_again(
    node: Node, other: Node, storage: PostgresStorage, task_type: TaskType
) -> None:
    node.process("p")
    claimed = node.due_timer("p", task_type)
    storage.release(NS, node.epoch, [claimed.task])
    (hint,) = storage.upcoming(NS, 0, None, 10)
    assert other.claim_one(hint).task.task_type == task_type


def test_only_the_owner_releases_a_task(node: Node, other: Node, tap: Tap, storage: PostgresStorage) -> None:
    node.process("p")
    claimed = node.start("call", "p")
    before = tap.tables()
    storage.release(NS, other.epoch, [claimed.task])
    storage.release(NS, node.epoch, [replace(claimed.task, token=next_token())])
    storage.release(NS, node.epoch, [])
    assert tap.tables() == before


def test_a_released_task_cannot_be_completed(node: Node, tap: Tap, storage: PostgresStorage) -> None:
    node.process("p")
    claimed = node.start("call", "p")
    storage.release(NS, node.epoch, [claimed.task])
    before = tap.tables()
    assert node.complete(step(claimed)) == Lost(None)
    assert tap.tables() == before


def test_a_released_call_still_goes_before_later_ones(node: Node, storage: PostgresStorage) -> None:
    node.process("p")
    claimed = node.start("call", "p")
    later = node.queue("call", "p")
    storage.release(NS, node.epoch, [claimed.task])
    newest = node.queue("call", "p")
    (hint,) = storage.waiting_calls(NS, 10)
    again = node.claim_one(hint)
    assert again.task.task_id == claimed.task.task_id
    second = next_of(node.complete(step(again)))
    assert (second.task.task_id, next_of(node.complete(step(second))).task.task_id) == (later, newest)


def test_a_released_timer_lets_a_call_go_first(node: Node, tap: Tap, storage: PostgresStorage) -> None:
    node.process("p")
    claimed = node.due_timer("p")
    call = node.queue("call", "p")
    storage.release(NS, node.epoch, [claimed.task])
    (hint,) = storage.waiting_calls(NS, 10)
    assert hint.task_id == call
    after = next_of(node.complete(step(node.claim_one(hint), Intent())))
    assert after.task.task_id == claimed.task.task_id


def test_a_timer_set_for_a_removal_removes(node: Node, tap: Tap) -> None:
    node.process("p", Intent(action=SetTimer(soon(), remove=True)))
    ((task, task_type, _),) = tap.schedule("p")
    assert task_type == "remove"
    tap.due(task)
    assert node.claim_one(Hint(task, "p", now())).task.task_type is TaskType.REMOVE
