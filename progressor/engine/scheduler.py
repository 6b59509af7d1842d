"""What this node has in its hands, in one namespace: tasks to run, tasks to come, callers who wait.

Invariants:

- Every running row that this node owns is in `_held`, from the commit that made it until the one that ends it, or in
  `_handed_back` once a stop has begun; the zombie collector frees what is missing there.
- The ready queue is fair: what becomes ready goes behind what is ready already, a process that goes on at once too.
- Expected tasks are hints. They are claimed when they are due; who is there first, gets them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from time import monotonic

from progressor.engine.callers import OUTCOME_UNKNOWN, Callers, answer, wake
from progressor.engine.directory import Directory, Role
from progressor.engine.history import Histories
from progressor.engine.lease import Lease
from progressor.engine.messages import (
    Accept,
    AwaitInit,
    ClaimTasks,
    Committed,
    Complete,
    Drain,
    Expect,
    HandBack,
    KnownTokens,
    LeaseReplaced,
    Load,
    LoadFigures,
    OpenTasks,
    Results,
    ScanCalls,
    ScanTimers,
    TakenOver,
    WakeUp,
)
from progressor.engine.ports import Accepted, Claim, Claimed, Completed, Hint, Lost, Refused, Task
from progressor.engine.ready import ReadyQueue
from progressor.engine.tokens import Tokens
from progressor.errors import ProcessNotFound, RequestTimeout
from progressor.metrics import NamespaceMetrics
from progressor.model import Answered, Op, TaskType
from progressor.otp import Actor, Timer, TimerHandle

logger = logging.getLogger(__name__)

MAX_EXPECTED = 50_000
"""How many tasks to come are kept in memory; the scanner finds the others in time."""
CLAIM_BATCH = 500
EARLY_PAUSE = timedelta(seconds=0.05)


class Scheduler(Actor):
    """Gives ready tasks to idle workers, claims due ones, answers callers."""

    def __init__(
        self,
        *,
        ns: str,
        database: str,
        worker_count: int,
        horizon: float,
        lease: Lease,
        directory: Directory,
        histories: Histories,
        ready: ReadyQueue,
        tokens: Tokens,
        timer: Timer,
        metrics: NamespaceMetrics,
    ) -> None:
        super().__init__()
        self._ns = ns
        self._database = database
        self._room = max(4 * worker_count, 200)
        self._horizon = timedelta(seconds=horizon)
        self._lease = lease
        self._directory = directory
        self._histories = histories
        self._tokens = tokens
        self._timer = timer
        self._metrics = metrics
        self._ready = ready
        self._held: dict[int, Task] = {}
        self._callers = Callers()
        self._inits: dict[str, list[Future[None]]] = {}
        self._expected: dict[int, Hint] = {}
        self._by_time: list[tuple[datetime, int]] = []
        self._claiming: dict[int, int] = {}
        """Tokens of the claims whose answer is to come, by task."""
        self._alarm: tuple[datetime, TimerHandle] | None = None
        self._wants_more = False
        self._draining = False
        self._handed_back: set[int] = set()
        """Tokens. Until the scanner gets round to it they are still this node's in the database."""

    def init(self) -> None:
        self._ready.take_all()  # what an earlier scheduler had becomes zombies
        self._directory.enter(Role.SCHEDULER, self._ns, self.ref)

    def terminate(self, reason: Exception) -> None:
        if self._alarm is not None:
            self._alarm[1].cancel()
        self._callers.fail_all(RequestTimeout(OUTCOME_UNKNOWN))

    def handle(self, message: object) -> object:  # noqa: C901 - one line for each message
        match message:
            case Committed():
                self._committed(message)
            case Expect(hints):
                return self._expect(hints)
            case WakeUp():
                self._alarm = None
                self._claim_due()
                self._dispatch()
            case TakenOver():
                self._taken_over(message)
            case Results():
                self._learn(message)
            case AwaitInit(process_id, future):
                self._inits.setdefault(process_id, []).append(future)
            case LeaseReplaced():
                self._forget_all()
            case KnownTokens():
                return (*self._held, *self._handed_back)
            case OpenTasks():
                return self._open_tasks()
            case Load():
                return self._load()
            case Drain():
                self._drain()
            case _:
                return super().handle(message)
        return None

    # What was committed

    def _committed(self, committed: Committed) -> None:
        for accept, result in committed.accepted:
            self._accepted(accept, result)
        for complete, fate in committed.completed:
            self._completed(complete, fate)
        for claim, found in committed.claimed:
            self._claimed(claim, found)
        for ended in committed.ended:
            self._callers.answer(ended.task_id, ended.answer)
        self._claim_due()
        self._dispatch()

    def _accepted(self, accept: Accept, result: Refused | Answered | Accepted) -> None:
        op, future = accept.request.op, accept.future
        self._metrics.prepared(op, monotonic() - accept.sent)
        if not isinstance(result, Accepted):
            answer(future, result)
            return
        if op in (Op.NOTIFY, Op.SIMPLE_REPAIR):
            answer(future, Answered(None, result.task_id))
        else:
            self._callers.add(result.task_id, op, future)
        if result.started is not None:
            self._hold(result.started)
        elif op is Op.SIMPLE_REPAIR:  # notifications may have waited for it
            self._directory.cast(Role.SCANNER, self._ns, ScanCalls())

    def _completed(self, complete: Complete, fate: Completed | Lost) -> None:
        completion = complete.completion
        task = completion.task
        self._held.pop(task.token, None)
        if isinstance(fate, Lost):
            self._histories.forget(task.process_id)
            self._metrics.fenced()
            logger.warning("task %d of %s: the result came too late", task.task_id, task.process_id)
        else:
            seconds = monotonic() - complete.sent
            self._metrics.completed(task.task_type, completion.outcome, seconds, removed=fate.removed)
            self._continue(complete, fate)
        result = fate.answer if isinstance(fate, Lost) else completion.answer
        if result is not None:
            self._callers.answer(task.task_id, result)
        if task.task_type is TaskType.INIT:
            for future in self._inits.pop(task.process_id, ()):
                wake(future)

    def _continue(self, complete: Complete, fate: Completed) -> None:
        completion = complete.completion
        history = completion.history
        if history is None or fate.removed:
            self._histories.forget(completion.task.process_id)
        else:
            history.extend(completion.events)
            self._histories.put(completion.task.process_id, history)
        if fate.next is not None:
            self._hold(fate.next)
        for hint in fate.hints:
            if hint.at <= datetime.now(UTC) + self._horizon:
                self._remember(hint)

    def _claimed(self, claim: Claim, found: Claimed | Hint | None) -> None:
        if self._claiming.get(claim.hint.task_id) == claim.token:
            del self._claiming[claim.hint.task_id]
        match found:
            case Claimed():
                self._hold(found)
            case Hint():  # by the database's clock, which decides
                self._remember(replace(found, at=max(found.at, datetime.now(UTC) + EARLY_PAUSE)))

    def _taken_over(self, message: TakenOver) -> None:
        for claimed in message.again:
            self._hold(claimed)
        for completion in message.ended:
            self._held[completion.task.token] = completion.task
            self._directory.cast(Role.WRITER, self._database, Complete(self._ns, completion))
        self._dispatch()

    # The queue

    def _hold(self, claimed: Claimed) -> None:
        if claimed.task.owner != self._lease.epoch:
            return  # committed just before this node was declared dead
        self._held[claimed.task.token] = claimed.task
        self._ready.put(claimed)

    def _dispatch(self) -> None:
        if self._draining:
            self._hand_back()
            return
        self._ready.wake()

    def _load(self) -> LoadFigures:
        return LoadFigures(
            ready=len(self._ready),
            oldest_ready=self._ready.oldest_age,
            idle_workers=self._ready.idle_workers,
            held=len(self._held) + len(self._claiming),
            expected=len(self._expected),
            waiting_callers=len(self._callers),
        )

    def _forget_all(self) -> None:
        """Callers stay: whoever ends their tasks now, the database will tell. So does what began under the new epoch
        before this was heard of."""
        epoch = self._lease.epoch
        self._claiming.clear()  # a writer that died has forgotten them
        self._histories.clear()
        self._held = {token: task for token, task in self._held.items() if task.owner == epoch}
        for claimed in self._ready.take_all():
            if claimed.task.owner == epoch:
                self._ready.put(claimed)
        self._dispatch()

    def _drain(self) -> None:
        self._draining = True
        self._hand_back()

    def _hand_back(self) -> None:
        tasks = [claimed.task for claimed in self._ready.take_all()]
        if tasks:
            for task in tasks:
                self._held.pop(task.token, None)
                self._handed_back.add(task.token)
            self._directory.cast(Role.SCANNER, self._ns, HandBack(tasks))

    # Tasks to come

    def _expect(self, hints: Iterable[Hint]) -> bool:
        for hint in hints:
            self._remember(hint)
        self._claim_due()
        return not self._wants_more

    def _remember(self, hint: Hint) -> None:
        if hint.task_id in self._claiming:  # a scan found it that began before the claim
            return
        if len(self._expected) >= MAX_EXPECTED:
            self._wants_more = True
            return
        known = self._expected.get(hint.task_id)
        if known is None or known.at != hint.at:
            self._expected[hint.task_id] = hint
            heappush(self._by_time, (hint.at, hint.task_id))

    def _claim_due(self) -> None:
        """Claims what is due, as far as there is room, and sets the alarm for the rest."""
        if self._draining:
            return
        now = datetime.now(UTC)
        claims: list[Claim] = []
        while self._by_time and self._by_time[0][0] <= now and self._has_room(len(claims)):
            at, task_id = heappop(self._by_time)
            hint = self._expected.get(task_id)
            if hint is not None and hint.at == at:
                del self._expected[task_id]
                claims.append(Claim(hint, self._tokens.next()))
        for start in range(0, len(claims), CLAIM_BATCH):
            batch = claims[start : start + CLAIM_BATCH]
            if self._directory.cast(Role.WRITER, self._database, ClaimTasks(self._ns, batch)):
                self._claiming.update((claim.hint.task_id, claim.token) for claim in batch)
        if self._wants_more and len(self._expected) < MAX_EXPECTED // 2:
            self._wants_more = False
            self._directory.cast(Role.SCANNER, self._ns, ScanTimers())
        self._set_alarm(now)

    def _has_room(self, more: int) -> bool:
        return len(self._ready) + len(self._claiming) + more < self._room

    def _set_alarm(self, now: datetime) -> None:
        if not self._by_time:
            return
        at = self._by_time[0][0]
        if at <= now:
            return  # no room: the next commit looks again
        if self._alarm is not None:
            if self._alarm[0] <= at:
                return
            self._alarm[1].cancel()
        self._alarm = (at, self._timer.send_after((at - now).total_seconds(), self.ref, WakeUp()))

    # Callers whose tasks are elsewhere

    def _open_tasks(self) -> Sequence[int]:
        for process_id in [p for p, futures in self._inits.items() if all(f.done() for f in futures)]:
            del self._inits[process_id]
        here = {task.task_id for task in self._held.values()}
        return [task_id for task_id in self._callers.open_tasks() if task_id not in here]

    def _learn(self, message: Results) -> None:
        for task_id in message.asked:
            result = message.results.get(task_id, Refused(ProcessNotFound()))
            if result is not None:
                self._callers.answer(task_id, result)
