"""The vocabulary: frozen values whose names are those of the database and of the configuration."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from datetime import UTC, timedelta
from typing import Any

import pytest

from progressor import model
from progressor.model import (
    Direction,
    Event,
    Health,
    Intent,
    Page,
    Process,
    ProcessStatus,
    Range,
    Remove,
    SetTimer,
    StepRequest,
    TaskStatus,
    TaskType,
    UnsetTimer,
    now,
    seconds,
)

VALUES: list[Any] = [
    Range(3, 10, Direction.BACKWARD),
    Event(b"payload", {"format_version": 1}, 1, now(), 2),
    Process("p", history=(Event(b"payload"),), created_at=now()),
    SetTimer(now(), remove=True),
    UnsetTimer(),
    Remove(),
    Intent([Event(b"payload")], b"aux", {"k": "v"}, b"response", SetTimer(now())),
    StepRequest(TaskType.CALL, b"args", Process("p")),
    Page((Process("p"),), "p"),
]
MADE_BY_THE_ENGINE = (Process, StepRequest, Page)
"""Frozen for the type checker only (progressor/value.py)."""
each_value = pytest.mark.parametrize("value", VALUES, ids=lambda v: type(v).__name__)


def test_the_names_are_those_of_the_database() -> None:
    assert [*ProcessStatus] == ["init", "running", "error"]
    assert {*TaskType} == {"init", "call", "notify", "repair", "timeout", "remove"}
    assert {*TaskStatus} == {"waiting", "running", "blocked", "finished", "error", "cancelled"}
    assert {*Direction} == {"forward", "backward"}
    assert {*Health} == {"passing", "critical"}
    assert str(TaskType.CALL) == f"{TaskType.CALL}" == "call"


@pytest.mark.parametrize("value", [v for v in VALUES if not isinstance(v, MADE_BY_THE_ENGINE)], ids=repr)
def test_what_users_make_cannot_be_changed(value: Any) -> None:
    for name in [field.name for field in dataclasses.fields(value)] or ["anything"]:
        with pytest.raises((dataclasses.FrozenInstanceError, TypeError, AttributeError)):
            setattr(value, name, None)


@each_value
def test_values_can_be_copied_and_pickled(value: Any) -> None:
    assert pickle.loads(pickle.dumps(value)) == value
    assert copy.deepcopy(value) == value
    assert dataclasses.replace(value) == value


def test_everything_is_read_by_default() -> None:
    assert Range() == Range(offset=None, limit=None, direction="forward")


def test_an_empty_intent_changes_nothing() -> None:
    intent = Intent()
    assert not intent.events
    assert [intent.aux_state, intent.metadata, intent.response, intent.action] == [None] * 4


def test_events_do_not_share_their_metadata() -> None:
    assert Event(b"").metadata == {}
    assert Event(b"").metadata is not Event(b"").metadata


def test_a_new_process_has_no_events() -> None:
    process = Process("p")
    assert (process.status, process.last_event_id, tuple(process.history)) == ("running", 0, ())


def test_now_is_in_utc() -> None:
    assert now().tzinfo is UTC
    assert now() <= now()


def test_seconds_may_be_fractions() -> None:
    assert seconds(1.5) == timedelta(milliseconds=1500)
    assert now() + seconds(60) > now()


def test_actions_are_told_apart_by_their_class() -> None:
    assert isinstance(Remove(), model.Action)
    assert len({Remove(), UnsetTimer(), Remove()}) == 2
