"""The shapes of messages that every actor knows.

A message is a frozen dataclass. One that wants an answer derives from `Call` and carries the type of its
answer, so that the type checker knows what `ref.call` returns:

    @dataclass(frozen=True, slots=True)
    class CaptureWorker(Call[Ref | None]):
        owner: Ref
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from progressor.otp.errors import is_crash

if TYPE_CHECKING:
    from progressor.otp.ref import Ref

R_co = TypeVar("R_co", covariant=True)


class Call(Generic[R_co]):
    """Base of messages that are answered with an `R_co`."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Refuse:
    """Returned by a handler: raise `error` at the caller, and live on.

    Raising in the handler would tell the caller the same, but kill the actor.
    """

    error: Exception


@dataclass(frozen=True, slots=True)
class Exit:
    """An actor that the receiver started is dead; its `terminate` has run. Not sent when `init` failed."""

    ref: Ref
    reason: Exception

    @property
    def crashed(self) -> bool:
        """Whether it died of anything but its own wish or a request to stop."""
        return is_crash(self.reason)
