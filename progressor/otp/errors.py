"""Why calls fail, why actors end, and what a supervisor refuses.

    ActorDead                   the callee is dead, or died before it answered
    CallTimeout (TimeoutError)  no answer in time; the request may still run
    Normal                      exit reason: the actor had nothing left to do
    Shutdown                    exit reason: it was asked to stop
     └─ RestartIntensityReached a supervisor gave up; OTP's `shutdown`
    ChildError                  a supervisor refuses: ChildNotFound, ChildRunning, …

Exit reasons are exceptions so that a reason has one type: anything but `Normal` and `Shutdown` is a crash.
"""


class ActorDead(Exception):
    """The actor is dead, or died before it answered."""


class CallTimeout(TimeoutError):
    """No answer in time. The request stays in the mailbox and may still be handled."""


class Normal(Exception):
    """Exit reason of an actor that stopped itself."""


class Shutdown(Exception):
    """Exit reason of an actor that was asked to stop."""


class RestartIntensityReached(Shutdown):
    """Exit reason of a supervisor whose children died too often (OTP: `shutdown`)."""


def is_crash(reason: Exception) -> bool:
    """Whether an exit reason is anything but the actor's own wish or a request to stop."""
    return not isinstance(reason, Normal | Shutdown)


class ChildError(Exception):
    """A supervisor cannot do what it was asked to do with a child."""

    def __init__(self, child_id: str, detail: str) -> None:
        super().__init__(f"child {child_id!r} {detail}")
        self.child_id = child_id


class ChildStartFailed(ChildError):
    """The child's constructor or `init` raised; that exception is the cause."""

    def __init__(self, child_id: str, error: Exception) -> None:
        super().__init__(child_id, f"failed to start: {str(error) or type(error).__name__}")


class ChildNotFound(ChildError):
    """The supervisor has no child with this id."""

    def __init__(self, child_id: str) -> None:
        super().__init__(child_id, "is unknown")


class ChildAlreadyPresent(ChildError):
    """A child with this id exists, but does not run: restart or delete it."""

    def __init__(self, child_id: str) -> None:
        super().__init__(child_id, "is already present")


class ChildRunning(ChildError):
    """The child runs."""

    def __init__(self, child_id: str) -> None:
        super().__init__(child_id, "is running")


class ChildRestarting(ChildError):
    """The child died and the supervisor is about to start it again."""

    def __init__(self, child_id: str) -> None:
        super().__init__(child_id, "is restarting")
