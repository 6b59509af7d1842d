"""One tree of errors, with the texts that clients of the original compare (docs/design.md, "Operations")."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from importlib import import_module
from pkgutil import walk_packages
from typing import Any

import pytest

import progressor
from progressor import errors
from progressor.errors import (
    AccessDenied,
    CacheUnavailable,
    CannotConnect,
    CannotListen,
    ClientError,
    ConfigError,
    EmbeddedPostgresError,
    IdempotencyConflict,
    InvalidRequest,
    LeaseLost,
    NamespaceNotFound,
    PostgresNotFound,
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

TREE: dict[type[ProgressorError], set[type[ProgressorError]]] = {
    ProgressorError: {
        ClientError,
        StorageError,
        ProcessorError,
        ConfigError,
        CannotListen,
        CannotConnect,
        UnexpectedAnswer,
        EmbeddedPostgresError,
    },
    ClientError: {
        NamespaceNotFound,
        ProcessNotFound,
        ProcessAlreadyExists,
        ProcessRunning,
        ProcessInError,
        ProcessInInit,
        RequestTimeout,
        InvalidRequest,
        IdempotencyConflict,
        AccessDenied,
    },
    StorageError: {StorageUnavailable, StorageRejected, LeaseLost, SchemaOutdated, CacheUnavailable},
    ProcessorError: {TransientError},
    EmbeddedPostgresError: {PostgresNotFound},
}
CLASSES = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, ProgressorError)]
TEXTS: dict[type[ClientError], str] = {
    NamespaceNotFound: "namespace not found",
    ProcessNotFound: "process not found",
    ProcessAlreadyExists: "process already exists",
    ProcessRunning: "process is running",
    ProcessInError: "process is error",
    ProcessInInit: "process is init",
}


def examples() -> Iterator[Any]:
    special = (InvalidRequest, ConfigError)
    for error in CLASSES:
        if error not in special:
            yield error()
            yield error("a text of its own")
    yield InvalidRequest("id", "expected 1 to 256 characters")
    yield ProcessorError("")
    yield ConfigError(["a: wrong", "b: missing"])


@pytest.mark.parametrize("error", CLASSES)
def test_the_tree(error: type[ProgressorError]) -> None:
    """Every one of the package is in it; tests and processors have their own."""
    for module in walk_packages(progressor.__path__, "progressor."):
        if not module.name.endswith(".__main__"):
            import_module(module.name)
    of_the_package = {e for e in error.__subclasses__() if e.__module__.startswith(f"{progressor.__name__}.")}
    assert of_the_package == TREE.get(error, set())


def test_the_tree_is_drawn() -> None:
    assert all(error.__name__ in (errors.__doc__ or "") for error in CLASSES)


def test_an_error_of_ours_is_no_error_of_the_standard_library() -> None:
    """Else the engine would take it for a connection error or timeout of a processor."""
    assert ProgressorError.__bases__ == (Exception,)
    assert all(len(error.__bases__) == 1 for error in CLASSES)


@pytest.mark.parametrize("error", TEXTS)
def test_the_texts_are_those_of_the_original(error: type[ClientError]) -> None:
    assert error.text == str(error()) == TEXTS[error]


def test_a_timeout_says_that_the_outcome_is_unknown_and_that_the_task_goes_on() -> None:
    assert RequestTimeout.text == "timeout"
    text = str(RequestTimeout())
    assert text.startswith("timeout")
    assert "outcome is unknown" in text
    assert "task goes on" in text


@pytest.mark.parametrize("error", [e for e in CLASSES if e not in (InvalidRequest, ConfigError)])
def test_every_error_says_something_by_default(error: type[ProgressorError]) -> None:
    assert str(error())
    assert not str(error()).endswith(".")


@pytest.mark.parametrize("error", [e for e in CLASSES if e not in (InvalidRequest, ConfigError)])
def test_a_message_replaces_the_default(error: type[ProgressorError]) -> None:
    assert str(error("something else")) == "something else"


def test_a_processor_error_has_its_reason() -> None:
    for error in (ProcessorError("why"), TransientError("why")):
        assert (error.reason, str(error)) == ("why", "why")
    assert ProcessorError().reason == "processor error"


def test_an_invalid_request_names_the_field() -> None:
    error = InvalidRequest("range.limit", "must not be negative, got -1")
    assert str(error) == "range.limit: must not be negative, got -1"
    assert (error.field, error.problem) == ("range.limit", "must not be negative, got -1")


def test_a_config_error_has_a_line_for_each_problem() -> None:
    error = ConfigError(["a: wrong", "b: missing"])
    assert str(error) == "a: wrong\nb: missing"
    assert error.problems == ("a: wrong", "b: missing")


@pytest.mark.parametrize("error", list(examples()), ids=lambda e: f"{type(e).__name__} {e}")
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_errors_can_be_pickled_and_copied(error: ProgressorError, protocol: int) -> None:
    for other in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error)):
        assert type(other) is type(error)
        assert str(other) == str(error)
        assert vars(other) == vars(error)
