"""Every error that Progressor raises, in one tree.

    ProgressorError
     |__ ClientError               a request that was answered with "no"
     |    |__ NamespaceNotFound    |__ ProcessInError       |__ RequestTimeout
     |    |__ ProcessNotFound      |__ ProcessInInit        |__ InvalidRequest
     |    |__ ProcessAlreadyExists |__ ProcessRunning       |__ IdempotencyConflict
     |    |__ AccessDenied
     |__ StorageError
     |    |__ StorageUnavailable   the database is away, or the node stops: nothing was stored, retry
     |    |__ StorageRejected      the database refuses these very data: do not retry
     |    |__ LeaseLost            this node is no longer trusted to change anything
     |    |__ SchemaOutdated       at start: the database has to be migrated
     |    |__ CacheUnavailable     at start: the database cannot feed a cache
     |__ ProcessorError            raised by processors: a business error
     |    |__ TransientError       raised by processors: worth another try
     |__ ConfigError
     |__ CannotListen              at start: the port is taken
     |__ CannotConnect             there is no node at the other end: nothing was done
     |__ UnexpectedAnswer          what is at the other end does not answer as a node should
     |__ EmbeddedPostgresError     the private server of tests and `--dev`
          |__ PostgresNotFound

The first line of a class docstring is its default message; those of the client errors are the texts of
the original Progressor, which its clients compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class ProgressorError(Exception):
    """progressor error"""

    text: ClassVar[str] = "progressor error"

    def __init_subclass__(cls) -> None:
        if cls.__doc__:
            cls.text = cls.__doc__.splitlines()[0].rstrip(".")

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.text)


class ClientError(ProgressorError):
    """request refused"""


class NamespaceNotFound(ClientError):
    """namespace not found"""


class ProcessNotFound(ClientError):
    """process not found"""


class ProcessAlreadyExists(ClientError):
    """process already exists"""


class ProcessRunning(ClientError):
    """process is running"""


class ProcessInError(ClientError):
    """process is error"""


class ProcessInInit(ClientError):
    """process is init"""


class RequestTimeout(ClientError):
    """timeout

    The outcome is unknown: the task was accepted, or may have been, and goes on by itself.
    """

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or "timeout: the outcome is unknown, the task goes on")


class InvalidRequest(ClientError):
    """invalid request"""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem

    def __reduce__(self) -> tuple[type[InvalidRequest], tuple[str, str]]:
        return type(self), (self.field, self.problem)


class IdempotencyConflict(ClientError):
    """idempotency key was used with another process, operation or arguments"""


class AccessDenied(ClientError):
    """access denied"""


class StorageError(ProgressorError):
    """storage error"""


class StorageUnavailable(StorageError):
    """storage unavailable, try again

    Nothing was stored. When something may have been, the error is RequestTimeout.
    """


class StorageRejected(StorageError):
    """storage refuses the data"""


class LeaseLost(StorageError):
    """the lease of this node has expired"""


class SchemaOutdated(StorageError):
    """the schema of the database does not fit this version"""


class CacheUnavailable(StorageError):
    """the database cannot feed a cache"""


class ProcessorError(ProgressorError):
    """processor error

    `reason` is what the process keeps as its detail and what the caller is told.
    """

    def __init__(self, reason: str = "processor error") -> None:
        super().__init__(reason)
        self.reason = reason


class TransientError(ProcessorError):
    """transient error: the step may succeed when it is tried again"""


class ConfigError(ProgressorError):
    """wrong configuration

    `problems` holds one line for each mistake: its path, what was expected, what was found.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[type[ConfigError], tuple[Sequence[str]]]:
        return type(self), (self.problems,)


class CannotListen(ProgressorError):
    """cannot listen on this address"""


class CannotConnect(ProgressorError):
    """cannot connect

    Nothing was done: no node was reached, or none that this client trusts, or trusts it.
    """


class UnexpectedAnswer(ProgressorError):
    """unexpected answer"""


class EmbeddedPostgresError(ProgressorError):
    """the embedded PostgreSQL does not run"""


class PostgresNotFound(EmbeddedPostgresError):
    """no PostgreSQL server was found on this machine"""
