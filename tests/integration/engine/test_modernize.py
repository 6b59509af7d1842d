"""Modernizing while other things happen to the process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Event as Flag
from threading import Semaphore
from typing import Any

import psycopg
import pytest

from progressor import Event, ModernizeRequest, Node, Process, RequestTimeout, now
from progressor.application import MODERNIZERS
from tests import stage
from tests.conftest import Database
from tests.eventually import eventually

NS = "modern/ns"
_modernizers: list[Callable[[ModernizeRequest], None]] = []


def modernize(request: ModernizeRequest, options: Mapping[str, Any], context: bytes) -> Event:
    """Calls what the test wants to happen, then answers version 2."""
    _modernizers[-1](request)
    return Event(b"new", {"format_version": 2})


@contextmanager
def node(database: Database, meanwhile: Callable[[ModernizeRequest], None], **more: Any) -> Iterator[Node]:
    _modernizers.append(meanwhile)
    modernizer = {"client": f"{__name__}:modernize", "format_version": 2}
    script = stage.steps(stage.does(b"later"))
    with stage.node(database, {NS: script}, namespaces={NS: {"modernizer": modernizer, **more}}) as node:
        yield node


def put(node: Node, *payloads: bytes) -> None:
    node.client.put(ns=NS, id="p", process=Process("p", history=[Event(p, {"format_version": 1}) for p in payloads]))


def payloads(node: Node) -> list[bytes]:
    return [event.payload for event in node.client.get(ns=NS, id="p").history]


def test_a_process_that_is_made_anew_meanwhile_is_left_alone(database: Database) -> None:
    def replaced(_: ModernizeRequest) -> None:
        running.client.remove(ns=NS, id="p")
        put(running, b"another life")

    with node(database, replaced) as running:
        put(running, b"old")
        running.client.future.modernize(ns=NS, id="p").result(30)
        assert payloads(running) == [b"another life"]


def test_what_is_newer_already_is_not_overwritten(database: Database) -> None:
    def overtaken(_: ModernizeRequest) -> None:
        with psycopg.connect(**database.conninfo) as connection:
            connection.execute(f"update \"{NS}_events\" set payload = 'newest', metadata = '{{\"format_version\": 3}}'")

    with node(database, overtaken) as running:
        put(running, b"old")
        running.client.future.modernize(ns=NS, id="p").result(30)
        assert payloads(running) == [b"newest"]


def test_steps_go_on_meanwhile(database: Database) -> None:
    def called(_: ModernizeRequest) -> None:
        running.client.call(ns=NS, id="p")

    with node(database, called) as running:
        put(running, b"old")
        running.client.future.modernize(ns=NS, id="p").result(30)
        assert payloads(running) == [b"new", b"later"]


def test_a_cached_namespace_shows_the_newer_representation(database: Database) -> None:
    with node(database, lambda _: None, storage={"cache": "progressor_db"}) as running:
        put(running, b"old")
        assert payloads(running) == [b"old"]
        running.client.future.modernize(ns=NS, id="p").result(30)
        eventually(lambda: payloads(running) == [b"new"])


def test_it_ends_at_its_deadline_and_goes_on_when_asked_again(database: Database) -> None:
    def slow(request: ModernizeRequest) -> None:
        assert request.deadline is not None
        if request.event.event_id == 1:
            Flag().wait((request.deadline - now()).total_seconds())

    with node(database, slow) as running:
        put(running, b"one", b"two")
        with pytest.raises(RequestTimeout, match="goes on"):
            running.client.future.modernize(ns=NS, id="p", timeout=0.2).result(30)
        assert payloads(running) == [b"new", b"two"]
        running.client.future.modernize(ns=NS, id="p").result(30)
        assert payloads(running) == [b"new", b"new"]


def test_what_waits_for_a_thread_waits_no_longer_than_it_said(database: Database) -> None:
    begun, go_on, asked = Semaphore(0), Flag(), list[str]()

    def held(request: ModernizeRequest) -> None:
        asked.append(request.process_id)
        begun.release()
        go_on.wait(30)

    with node(database, held) as running:
        for n in range(MODERNIZERS + 1):
            running.client.put(ns=NS, id=f"p{n}", process=Process(f"p{n}", history=[Event(b"old")]))
        first = [running.client.future.modernize(ns=NS, id=f"p{n}") for n in range(MODERNIZERS)]
        for _ in first:
            assert begun.acquire(timeout=30)
        before = now()
        last = running.client.future.modernize(ns=NS, id=f"p{MODERNIZERS}", timeout=0.1)
        eventually(lambda: (now() - before).total_seconds() > 0.1)
        go_on.set()
        with pytest.raises(RequestTimeout):
            last.result(30)
        for each in first:
            each.result(30)
        assert f"p{MODERNIZERS}" not in asked
