"""Progressor: long-lived processes that must not be lost.

The names that users need; everything else may change. Writing a processor, embedding a node, calling it: README.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from progressor.errors import (
    AccessDenied,
    CacheUnavailable,
    CannotConnect,
    CannotListen,
    ClientError,
    ConfigError,
    IdempotencyConflict,
    InvalidRequest,
    NamespaceNotFound,
    ProcessAlreadyExists,
    ProcessInError,
    ProcessInInit,
    ProcessNotFound,
    ProcessorError,
    ProcessRunning,
    ProgressorError,
    RequestTimeout,
    SchemaOutdated,
    StorageError,
    StorageRejected,
    StorageUnavailable,
    TransientError,
    UnexpectedAnswer,
)
from progressor.model import (
    Answered,
    Direction,
    Event,
    Health,
    Intent,
    ModernizeRequest,
    Page,
    Process,
    ProcessStatus,
    Range,
    Remove,
    SetTimer,
    StepRequest,
    TaskStatus,
    TaskType,
    TraceUnit,
    UnsetTimer,
    now,
    seconds,
)

# The command line and the modules of processors import this package too, and should not wait for the whole node. What
# brings in more than a few modules is therefore imported when it is first asked for (PEP 562).
if TYPE_CHECKING:
    from progressor.api import Client as LocalClient
    from progressor.application import Node
    from progressor.client import Client
else:
    _LATER = {
        "Client": ("progressor.client", "Client"),
        "LocalClient": ("progressor.api", "Client"),
        "Node": ("progressor.application", "Node"),
    }

    def __getattr__(name: str) -> object:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, attribute = _LATER[name]
        found = globals()[name] = getattr(import_module(module), attribute)
        return found

    def __dir__() -> list[str]:
        return sorted(globals().keys() | _LATER.keys())


__all__ = [
    "AccessDenied",
    "Answered",
    "CacheUnavailable",
    "CannotConnect",
    "CannotListen",
    "Client",
    "ClientError",
    "ConfigError",
    "Direction",
    "Event",
    "Health",
    "IdempotencyConflict",
    "Intent",
    "InvalidRequest",
    "LocalClient",
    "ModernizeRequest",
    "NamespaceNotFound",
    "Node",
    "Page",
    "Process",
    "ProcessAlreadyExists",
    "ProcessInError",
    "ProcessInInit",
    "ProcessNotFound",
    "ProcessRunning",
    "ProcessStatus",
    "ProcessorError",
    "ProgressorError",
    "Range",
    "Remove",
    "RequestTimeout",
    "SchemaOutdated",
    "SetTimer",
    "StepRequest",
    "StorageError",
    "StorageRejected",
    "StorageUnavailable",
    "TaskStatus",
    "TaskType",
    "TraceUnit",
    "TransientError",
    "UnexpectedAnswer",
    "UnsetTimer",
    "now",
    "seconds",
]
