"""Who plays which role now: actors are restarted, so others find them by name."""

from __future__ import annotations

from enum import StrEnum, auto

from progressor.otp import Ref


class Role(StrEnum):
    WRITER = auto()
    LEASE = auto()
    SCHEDULER = auto()
    WORKER_POOL = auto()
    SCANNER = auto()
    ZOMBIE_COLLECTOR = auto()
    NOTIFIER = auto()


class Directory:
    """Each actor enters itself when it starts. Thread-safe: one dictionary, replaced values."""

    def __init__(self) -> None:
        self._refs: dict[tuple[Role, str], Ref] = {}

    def enter(self, role: Role, owner: str, ref: Ref) -> None:
        """`owner` is the namespace or the database the actor belongs to."""
        self._refs[role, owner] = ref

    def find(self, role: Role, owner: str) -> Ref | None:
        """The present holder of the role, if it is alive."""
        ref = self._refs.get((role, owner))
        return ref if ref is not None and ref.is_alive else None

    def cast(self, role: Role, owner: str, message: object) -> bool:
        """False when nobody plays the role just now."""
        ref = self._refs.get((role, owner))
        return ref is not None and ref.cast(message)

    def nudge(self, role: Role, owner: str, message: object) -> None:
        """A cast to somebody who will look around, unless a message waits already that makes him do so."""
        ref = self._refs.get((role, owner))
        if ref is not None and not ref.mailbox_length:
            ref.cast(message)
