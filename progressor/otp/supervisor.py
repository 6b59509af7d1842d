"""A supervisor starts its children in order, restarts them by rule, and stops them in reverse order.

The rules are those of OTP's supervisor.erl. Two differ because a thread cannot be killed: a child that does
not stop in time is abandoned (logged, forgotten, its late `Exit` ignored), and brutal_kill is `shutdown=0`,
which does not wait.

Invariants:

- Every restart is an attempt that counts against the intensity, also one that fails to start a child. A
  failed attempt is tried again through the mailbox, so that a request to stop can come between.
- An `Exit` of a ref that is not a child's present ref means nothing.
- A supervisor that is over, for whatever reason, has stopped its children.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import monotonic

from progressor.otp.actor import Actor
from progressor.otp.child import (
    ChildCounts,
    ChildInfo,
    ChildSpec,
    CountChildren,
    DeleteChild,
    Restart,
    RestartChild,
    StartChild,
    Strategy,
    TerminateChild,
    WhichChildren,
)
from progressor.otp.errors import (
    ChildAlreadyPresent,
    ChildError,
    ChildNotFound,
    ChildRestarting,
    ChildRunning,
    ChildStartFailed,
    RestartIntensityReached,
)
from progressor.otp.messages import Exit, Refuse
from progressor.otp.ref import Ref

logger = logging.getLogger(__name__)

WORKER_SHUTDOWN = 5.0


@dataclass(slots=True, eq=False)
class _Child:
    spec: ChildSpec
    ref: Ref | None = None
    restarting: bool = False
    is_supervisor: bool = False

    @property
    def shutdown(self) -> float:
        if self.spec.shutdown is not None:
            return self.spec.shutdown
        return math.inf if self.is_supervisor else WORKER_SHUTDOWN


@dataclass(frozen=True, slots=True)
class _TryAgain:
    child: _Child


class Supervisor(Actor):
    """More than `intensity` restarts in `period` seconds, and it stops its children and dies."""

    def __init__(
        self,
        children: Iterable[ChildSpec] = (),
        *,
        strategy: Strategy = Strategy.ONE_FOR_ONE,
        intensity: int = 1,
        period: float = 5.0,
        name: str = "",
    ) -> None:
        super().__init__(name)
        self.strategy = strategy
        self.intensity = intensity
        self.period = period
        self._specs = tuple(children)
        self._children: list[_Child] = []
        self._restarts: deque[float] = deque()

    def specs(self) -> Sequence[ChildSpec]:
        """The children to start with. A subclass may make them here, with factories that use `self.child`."""
        return self._specs

    def child(self, child_id: str) -> Ref:
        """The ref of a running child, for the factories of children started after it."""
        child = self._find(child_id)
        if child.ref is None:
            raise ChildNotFound(child_id)
        return child.ref

    def init(self) -> None:
        """Start all children or none; raises `ChildStartFailed`."""
        for spec in self.specs():
            self._check_new(spec.id)
            self._children.append(_Child(spec))
        try:
            for child in self._children:
                self._start(child)
        except BaseException:
            self._stop_all(self._children)
            raise

    def handle(self, message: object) -> object:
        """Serve exits and the calls of `child.py`."""
        try:
            return self._dispatch(message)
        except ChildError as error:
            return Refuse(error)

    def terminate(self, reason: Exception) -> None:
        """Stop the children, the last started first."""
        self._stop_all(self._children)

    def _dispatch(self, message: object) -> object:
        match message:
            case Exit():
                self._child_exited(message)
            case _TryAgain(child):
                self._try_again(child)
            case WhichChildren():
                return [ChildInfo(child.spec, child.ref, child.restarting) for child in self._children]
            case CountChildren():
                return self._count()
            case StartChild(spec):
                return self._start_child(spec)
            case TerminateChild(child_id):
                self._stop_child(self._find(child_id))
            case RestartChild(child_id):
                return self._start(self._find_idle(child_id))
            case DeleteChild(child_id):
                self._children.remove(self._find_idle(child_id))
            case _:
                return super().handle(message)
        return None

    # Restarts

    def _child_exited(self, exit_: Exit) -> None:
        child = next((child for child in self._children if child.ref is exit_.ref), None)
        if child is None:
            return
        child.ref = None
        restart = child.spec.restart
        if restart is Restart.PERMANENT or (restart is Restart.TRANSIENT and exit_.crashed):
            logger.warning("%s: child %s ended (%r), restarting", self.ref.name, child.spec.id, exit_.reason)
            self._restart(child)
        elif restart is Restart.TEMPORARY:
            self._children.remove(child)

    def _try_again(self, child: _Child) -> None:
        if child.restarting:  # else it was terminated, restarted or deleted meanwhile
            self._restart(child)

    def _restart(self, failed: _Child) -> None:
        failed.restarting = False
        if not self._may_restart():
            self._give_up(failed)
            return
        group = self._restarted_with(failed)
        self._stop_all(group)
        for child in group:
            if child in self._children:  # temporary ones were not kept
                try:
                    self._start(child)
                except ChildStartFailed:
                    logger.exception("%s: child %s did not restart", self.ref.name, child.spec.id)
                    child.restarting = True
                    self.ref.cast(_TryAgain(child))
                    return

    def _restarted_with(self, failed: _Child) -> list[_Child]:
        match self.strategy:
            case Strategy.ONE_FOR_ONE:
                return [failed]
            case Strategy.ONE_FOR_ALL:
                return self._children.copy()
            case Strategy.REST_FOR_ONE:
                return self._children[self._children.index(failed) :]

    def _may_restart(self) -> bool:
        now = monotonic()
        self._restarts.append(now)
        while self._restarts[0] < now - self.period:
            self._restarts.popleft()
        return len(self._restarts) <= self.intensity

    def _give_up(self, failed: _Child) -> None:
        reason = RestartIntensityReached(
            f"{self.ref.name}: over {self.intensity} restarts in {self.period} s, last of {failed.spec.id!r}"
        )
        logger.error("%s", reason, extra={"actor": self.ref.name})
        self.exit(reason)

    # Children

    def _start(self, child: _Child) -> Ref:
        try:
            ref = self.start_link(child.spec.factory, child.spec.id)
        except Exception as exc:
            raise ChildStartFailed(child.spec.id, exc) from exc
        child.ref, child.restarting = ref, False
        child.is_supervisor = issubclass(ref.actor_class, Supervisor)
        return ref

    def _stop_all(self, children: Sequence[_Child]) -> None:
        for child in children[::-1]:  # a copy: temporary ones leave the list
            self._stop_child(child)

    def _stop_child(self, child: _Child) -> None:
        ref, child.ref, child.restarting = child.ref, None, False
        if ref is not None and not ref.stop(child.shutdown):
            logger.warning("%s: child %r did not stop in %s s, abandoned", self.ref.name, ref, child.shutdown)
        if child.spec.restart is Restart.TEMPORARY:
            self._children.remove(child)

    def _start_child(self, spec: ChildSpec) -> Ref:
        self._check_new(spec.id)
        child = _Child(spec)
        ref = self._start(child)
        self._children.append(child)
        return ref

    def _find(self, child_id: str) -> _Child:
        for child in self._children:
            if child.spec.id == child_id:
                return child
        raise ChildNotFound(child_id)

    def _find_idle(self, child_id: str) -> _Child:
        child = self._find(child_id)
        if child.ref is not None:
            raise ChildRunning(child_id)
        if child.restarting:
            raise ChildRestarting(child_id)
        return child

    def _check_new(self, child_id: str) -> None:
        for child in self._children:
            if child.spec.id == child_id:
                raise ChildAlreadyPresent(child_id) if child.ref is None else ChildRunning(child_id)

    def _count(self) -> ChildCounts:
        supervisors = sum(child.is_supervisor for child in self._children)
        return ChildCounts(
            specs=len(self._children),
            active=sum(child.ref is not None for child in self._children),
            supervisors=supervisors,
            workers=len(self._children) - supervisors,
        )
