"""What the world holds of an actor.

Invariants:

- A `Ref` never keeps its actor's object alive.
- Every call ends: answered, refused, out of time, or with `ActorDead`. Pykka leaves the caller of a request
  waiting that reaches the inbox after the actor emptied it for the last time; here a caller who finds the
  actor dead after a put empties the inbox. One thread only takes an envelope out, so it is answered once.
- A stop overtakes the backlog: `stop_reason` is read before each message; the message put is only a wake-up.
"""

from __future__ import annotations

import math
import queue
import threading
from typing import Any, TypeVar

import pykka

from progressor.otp.errors import ActorDead, CallTimeout, Shutdown
from progressor.otp.messages import Call

R = TypeVar("R")


class Ref:
    """The address of an actor. Equal only to itself, hashable, safe in any thread."""

    __slots__ = ("__weakref__", "_actor", "_inbox", "_thread", "actor_class", "name", "stop_reason")

    def __init__(
        self, actor: pykka.ActorRef[Any], inbox: queue.SimpleQueue[Any], thread: threading.Thread, name: str
    ) -> None:
        """Made by `Actor` only."""
        self._actor = actor
        self._inbox = inbox
        self._thread = thread
        self.actor_class = actor.actor_class
        self.name = name
        self.stop_reason: Exception | None = None

    def __repr__(self) -> str:
        state = f"mailbox={self.mailbox_length} thread={self.thread}" if self.is_alive else "dead"
        return f"<{self.actor_class.__name__} {self.name!r} {state}>"

    @property
    def is_alive(self) -> bool:
        """Whether it still takes messages. `terminate` may run after this became False; see `join`."""
        return not self._actor.actor_stopped.is_set()

    @property
    def mailbox_length(self) -> int:
        """How many messages wait."""
        return self._inbox.qsize()

    @property
    def thread(self) -> int | None:
        """The thread's identifier, the key of `sys._current_frames()`."""
        return self._thread.ident

    def cast(self, message: object) -> bool:
        """Send without waiting. False when the actor is known to be dead; True promises nothing."""
        try:
            self._actor.tell(message)
        except pykka.ActorDeadError:
            return False
        return True

    def call(self, message: Call[R], timeout: float) -> R:
        """Send and wait for the answer, at most `timeout` seconds.

        Raises `CallTimeout`, `ActorDead`, or what the handler raised or refused with.
        """
        if threading.get_ident() == self.thread:
            raise RuntimeError(f"{self} calls itself: {message}")
        answer = self._actor.ask(message, block=False)
        if not self.is_alive:
            self.reject_backlog()
        try:
            reply: R = answer.get(timeout=timeout)
        except pykka.Timeout:
            raise CallTimeout(f"{self.name} did not answer {type(message).__name__} in {timeout} s") from None
        except pykka.ActorDeadError:
            raise ActorDead(f"{self.name} is dead") from None
        return reply

    def stop(self, timeout: float) -> bool:
        """Ask it to stop after the message in hand, wait; whether it is over within `timeout` seconds.

        Messages in the backlog are not handled; their callers get `ActorDead`.
        """
        self.request_stop()
        return self.join(timeout)

    def request_stop(self, reason: Exception | None = None) -> None:
        """Ask it to stop and do not wait. The first reason given is the one that counts."""
        if self.stop_reason is None:
            self.stop_reason = reason or Shutdown()
            self._actor.stop(block=False)

    def join(self, timeout: float) -> bool:
        """Wait until its thread has ended; whether it has within `timeout` seconds (`math.inf`: no limit)."""
        if threading.get_ident() == self.thread:
            return False
        self._thread.join(None if timeout == math.inf else timeout)
        return not self._thread.is_alive()

    def reject_backlog(self) -> None:
        """Empty the mailbox of a dead actor."""
        while True:
            try:
                reject(self._inbox.get_nowait())
            except queue.Empty:
                return


def reject(envelope: Any) -> None:
    """Answer a request that nobody will handle."""
    if envelope.reply_to is not None:
        envelope.reply_to.set_exception((pykka.ActorDeadError, pykka.ActorDeadError(), None))
