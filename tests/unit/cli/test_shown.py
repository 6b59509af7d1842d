"""What is printed: tables that nothing can break, and documents that come back as they were."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from progressor import Event, Health, Process
from progressor.cli import document
from progressor.cli.look import Look
from progressor.cli.table import cell, readable, table
from progressor.cli.top import view

INSTANTS = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
METADATA = st.dictionaries(st.text(), st.none() | st.integers() | st.text(), max_size=3)
EVENTS = st.builds(Event, st.binary(), METADATA, timestamp=INSTANTS)


def test_columns() -> None:
    rows = [("a", 1, None), ("long", 20, "x")]
    assert table(("NAME", "N", "NOTE"), rows) == "NAME   N  NOTE\na      1  -\nlong  20  x"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (b"text", "text"),
        (b"\xff", "base64:/w=="),
        (b"two\nlines", r"two\nlines"),
        ("\x1b[31m\u202e", r"\x1b[31m\u202e"),
        (datetime(2026, 1, 2, 3, 4, 5, 678901, UTC), "2026-01-02 03:04:05.678Z"),
        (1234.56, "1,234.6"),
        ("x" * 100, "x" * 79 + "…"),
    ],
)
def test_cells(value: object, shown: str) -> None:
    assert cell(value) == shown


@given(st.binary())
def test_bytes_are_shown_without_control_characters(data: bytes) -> None:
    assert all(c.isprintable() or c in document.WHITE for c in readable(data))


@given(st.binary())
def test_bytes_come_back(data: bytes) -> None:
    assert document.read_binary(json.loads(json.dumps(document.binary(data)))) == data


@given(
    st.builds(
        Process,
        st.just("p"),
        st.sampled_from(["running", "error"]),
        st.none() | st.text(),
        aux_state=st.none() | st.binary(),
        metadata=st.none() | METADATA,
        history=st.lists(EVENTS, max_size=3),
        created_at=INSTANTS,
        previous_status=st.sampled_from(["init", "running"]),
        status_changed_at=st.none() | INSTANTS,
    )
)
def test_a_process_comes_back(process: Process) -> None:
    assert document.read_process("p", json.loads(json.dumps(document.process(process)))) == process


def load(steps: int = 0, problems: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "problems": problems,
        "node": "n",
        "workers": 5,
        "load": {"ready": 1, "oldest_ready": 2.0, "idle_workers": 3, "expected": 4, "waiting_callers": 6},
        "totals": {"steps": steps, "retries": 0, "failures": 7, "zombies": 8, "fenced": 9},
        "nodes": [],
    }


def look(second: int, **details: Any) -> Look:
    return Look(datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC), Health.PASSING, details)


def figures(text: str) -> list[list[str]]:
    return [line.split() for line in text.partition("FENCED\n")[2].splitlines()]


def test_rates_are_those_since_the_last_look() -> None:
    first, second = look(0, ns=load(100)), look(4, ns=load(110))
    assert figures(view(first, None)) == [["ns", "n", "2", "5", "1", "2.0", "4", "6", "-", "-", "-", "7", "8", "9"]]
    assert figures(view(second, first))[0][8:11] == ["2.5", "0.0", "0.0"]
    assert figures(view(first, second))[0][8:11] == ["-", "-", "-"], "the node has begun anew"


def test_the_processes_of_a_node_have_a_row_each() -> None:
    details = {
        "process 0": {"status": "passing", "details": {"ns": load()}},
        "process 1": {"status": "critical", "details": {"ns": load(problems=("it stops",))}},
        "process 2": {"status": "no answer"},
    }
    shown = view(look(0, **details), None)
    assert [row[:2] for row in figures(shown)] == [["ns", "0"], ["ns", "1"]]
    assert "process 2: no answer\nns on 1: it stops\n" in shown
