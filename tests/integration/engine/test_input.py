"""Bad input: each argument of each verb is checked, the field is named, and nothing is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from progressor import Event, InvalidRequest, NamespaceNotFound, Process, Range, Remove, SetTimer, now
from tests.stage import TABLES, Theatre, does


def anything(*values: Any) -> Sequence[Any]:
    return values


NAIVE = datetime(2020, 1, 1)  # noqa: DTZ001
BEYOND = datetime.max.replace(tzinfo=timezone(timedelta(hours=-12)))

TEXTS: list[Any] = ["", None, 5, b"bytes", "NUL \0", "surrogate \udc00"]
IDS = [*TEXTS, "x" * 257, "x" * 300]
BYTES: list[Any] = [None, "text", 5, bytearray(b"x"), [1]]
KEYS = [key for key in IDS if key is not None]
TIMEOUTS: list[Any] = [0, -1, "1", True, float("nan"), float("inf"), b"1"]
EVENT_IDS: list[Any] = [-1, "1", 1.5, True, 2**63]
RANGES: list[tuple[str, Any]] = [
    ("range", "forward"),
    ("range", {"limit": 1}),
    *[("range.offset", Range(offset=value)) for value in EVENT_IDS],
    *[("range.limit", Range(limit=value)) for value in EVENT_IDS],
    *[("range.direction", Range(direction=value)) for value in anything("sideways", "", None, 5, "Forward", [])],
]
JSON: list[Any] = [
    [1],
    "text",
    5,
    {"a": object()},
    {"a": float("nan")},
    {"a": "\0"},
    {"\0": 1},
    {"a": "\ud800"},
    {"a": "\udfff"},
    {(1, 2): 3},
    {"a": 10**5000},
]
INSTANTS: list[Any] = [NAIVE, "2020-01-01", 5, BEYOND]

COMMON: list[tuple[str, Mapping[str, Any]]] = [
    *[("ns", {"ns": value}) for value in TEXTS],
    *[("id", {"id": value}) for value in IDS],
]
REQUEST = [
    *COMMON,
    *[("context", {"context": value}) for value in BYTES],
    *[("idempotency_key", {"idempotency_key": value}) for value in KEYS],
    *[("timeout", {"timeout": value}) for value in TIMEOUTS],
]
WITH_ARGS = [
    *REQUEST,
    *[("args", {"args": value}) for value in BYTES],
    *[(field, {"range": value}) for field, value in RANGES],
]
GET = [
    *COMMON,
    *[("timeout", {"timeout": value}) for value in TIMEOUTS],
    *[("at_least_event_id", {"at_least_event_id": value}) for value in EVENT_IDS],
    *[(field, {"range": value}) for field, value in RANGES],
]
PROCESSES: list[tuple[str, Any]] = [
    ("process", None),
    ("process", {"process_id": "new"}),
    ("process.process_id", Process("another")),
    *[("process.status", Process("new", status=value)) for value in anything("init", "done", "", None, 5, [])],
    *[("process.previous_status", Process("new", previous_status=value)) for value in anything("done", "", 5)],
    *[
        ("process.detail", Process("new", status="error", detail=value))
        for value in anything(5, b"x", "NUL \0", "\ud800")
    ],
    *[("process.aux_state", Process("new", aux_state=value)) for value in anything("text", 5)],
    *[("process.metadata", Process("new", metadata=value)) for value in JSON],
    *[("process.created_at", Process("new", created_at=value)) for value in INSTANTS],
    *[("process.status_changed_at", Process("new", status_changed_at=value)) for value in INSTANTS],
    ("process.history", Process("new", history=5)),  # type: ignore[arg-type]
    ("process.history[0]", Process("new", history=[b"event"])),  # type: ignore[list-item]
    ("process.history[1].event_id", Process("new", history=[Event(b""), Event(b"", event_id=1)])),
    ("process.history[0].event_id", Process("new", history=[Event(b"", event_id=2)])),
    ("process.history[0].payload", Process("new", history=[Event("text")])),  # type: ignore[arg-type]
    *[("process.history[0].metadata", Process("new", history=[Event(b"", value)])) for value in JSON],
    *[("process.history[0].timestamp", Process("new", history=[Event(b"", timestamp=value)])) for value in INSTANTS],
]
PUT = [
    *COMMON,
    *[("context", {"context": value}) for value in BYTES],
    *[(field, {"process": value}) for field, value in PROCESSES],
    *[("action", {"action": value}) for value in (Remove(), "remove", 5, now())],
    *[("action.at", {"action": SetTimer(value)}) for value in INSTANTS],
    *[("action.remove", {"action": SetTimer(now(), value)}) for value in ("yes", None, 1)],  # type: ignore[arg-type]
]
LIST: list[tuple[str, Mapping[str, Any]]] = [
    *[("ns", {"ns": value}) for value in TEXTS],
    *[("status", {"status": value}) for value in anything("done", "", 5, [])],
    *[("metadata", {"metadata": value}) for value in JSON],
    *[("id_prefix", {"id_prefix": value}) for value in TEXTS if value is not None],
    *[("cursor", {"cursor": value}) for value in TEXTS if value is not None],
    *[("limit", {"limit": value}) for value in (0, -1, 10_001, "1", 1.5, True, None)],
    *[
        (field, {field: value})
        for field in ("created_from", "created_to", "status_changed_from", "status_changed_to")
        for value in INSTANTS
    ],
]
HEALTH: list[tuple[str, Mapping[str, Any]]] = [
    *[("namespaces", {"namespaces": value}) for value in (None, 5, "a/b", {"a/b"})],
    *[("ns", {"namespaces": [value]}) for value in TEXTS],
]
VERBS = {
    "init": WITH_ARGS,
    "call": WITH_ARGS,
    "repair": WITH_ARGS,
    "notify": WITH_ARGS,
    "simple_repair": REQUEST,
    "remove": REQUEST,
    "get": GET,
    "put": PUT,
    "trace": COMMON,
    "list": LIST,
    "health_check": HEALTH,
}
GOOD: dict[str, Mapping[str, Any]] = {
    "init": {"ns": "a/b", "id": "new"},
    "put": {"ns": "a/b", "id": "new", "process": Process("new")},
    "list": {"ns": "a/b"},
    "health_check": {"namespaces": ["a/b"]},
}
EXISTING: Mapping[str, Any] = {"ns": "a/b", "id": "p"}


def stored(theatre: Theatre) -> list[int]:
    with psycopg.connect(**theatre.database.conninfo) as connection:
        rows = [connection.execute(SQL("select count(*) from {}").format(Identifier(f"a/b_{t}"))) for t in TABLES]
        return [count for cursor in rows for (count,) in cursor]


@pytest.fixture(scope="module", autouse=True)
def _a_process(theatre: Theatre) -> None:
    theatre.play(does(b"1"), id="p").init()


@pytest.mark.parametrize("verb", VERBS)
def test_bad_input_is_refused_with_the_name_of_the_field_and_nothing_is_stored(theatre: Theatre, verb: str) -> None:
    before = stored(theatre)
    good = GOOD.get(verb, EXISTING)
    for field, bad in VERBS[verb]:
        with pytest.raises(InvalidRequest) as refused:
            getattr(theatre.node.client, verb)(**{**good, **bad})
        assert refused.value.field == field, bad
        assert str(refused.value).startswith(f"{field}: "), bad
        assert len(str(refused.value)) < 500, bad
    assert stored(theatre) == before
    assert theatre.node.client.get(**EXISTING).status == "running"


@pytest.mark.parametrize("verb", VERBS)
def test_a_future_brings_the_refusal_of_bad_input(theatre: Theatre, verb: str) -> None:
    """It is given first, whatever is wrong."""
    good = GOOD.get(verb, EXISTING)
    for field, bad in VERBS[verb]:
        future = getattr(theatre.node.client.future, verb)(**{**good, **bad})
        with pytest.raises(InvalidRequest) as refused:
            future.result()
        assert refused.value.field == field, bad


def test_a_future_brings_the_other_refusals_too(theatre: Theatre) -> None:
    client = theatre.node.client.future
    ghost: Mapping[str, Any] = {"ns": "no/where", "id": "p"}
    for verb in VERBS:
        nowhere: dict[str, Any] = {"namespaces": ["no/where"]} if verb == "health_check" else {"ns": "no/where"}
        assert_brings(NamespaceNotFound, getattr(client, verb)(**{**GOOD.get(verb, EXISTING), **nowhere}))
    assert_brings(NamespaceNotFound, client.timer(**ghost))
    assert_brings(NamespaceNotFound, client.modernize(**ghost))
    assert_brings(InvalidRequest, client.timer(ns="a/b", id=""))
    assert_brings(InvalidRequest, client.execute("explode", **EXISTING))


def assert_brings(error: type[Exception], future: Future[Any]) -> None:
    with pytest.raises(error):
        future.result()


def test_what_is_just_good_enough(theatre: Theatre) -> None:
    client = theatre.node.client
    play = theatre.play(does(), does(), id="🜂" * 256)
    play.init(timeout=10_000, idempotency_key="🜂" * 256)
    play.call(range=Range(0, 0))
    assert client.get(ns="a/b", id=play.id, range=Range(2**63 - 1, 2**63 - 1, "backward")).last_event_id == 0
    assert client.list(ns="a/b", limit=10_000, metadata={"literally": "\\u0000"}).items == []
