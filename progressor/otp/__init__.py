"""Actors, supervisors and timers after Erlang/OTP, on Pykka. Knows nothing of Progressor.

`actor.py` has the life of an actor, `ref.py` how to talk to one, `supervisor.py` the rules of restarting.
"""

from progressor.otp.actor import Actor, actors, start_root
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
    ActorDead,
    CallTimeout,
    ChildAlreadyPresent,
    ChildError,
    ChildNotFound,
    ChildRestarting,
    ChildRunning,
    ChildStartFailed,
    Normal,
    RestartIntensityReached,
    Shutdown,
)
from progressor.otp.messages import Call, Exit, Refuse
from progressor.otp.ref import Ref
from progressor.otp.supervisor import Supervisor
from progressor.otp.timer import Timer, TimerHandle

__all__ = [
    "Actor",
    "ActorDead",
    "Call",
    "CallTimeout",
    "ChildAlreadyPresent",
    "ChildCounts",
    "ChildError",
    "ChildInfo",
    "ChildNotFound",
    "ChildRestarting",
    "ChildRunning",
    "ChildSpec",
    "ChildStartFailed",
    "CountChildren",
    "DeleteChild",
    "Exit",
    "Normal",
    "Ref",
    "Refuse",
    "Restart",
    "RestartChild",
    "RestartIntensityReached",
    "Shutdown",
    "StartChild",
    "Strategy",
    "Supervisor",
    "TerminateChild",
    "Timer",
    "TimerHandle",
    "WhichChildren",
    "actors",
    "start_root",
]
