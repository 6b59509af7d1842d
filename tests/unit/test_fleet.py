"""What the processes of a fleet ask each other."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from threading import Thread
from typing import TypeAlias

import pytest

from progressor.fleet import HEALTH, READY, SCRAPE, Line, answer_questions

PATIENCE = 30
Ends: TypeAlias = tuple[Connection, Connection]


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = Pipe()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as threads:
        yield threads


def test_a_late_answer_is_not_taken_for_that_to_another_question(ends: Ends, threads: ThreadPoolExecutor) -> None:
    ours, theirs = ends
    line = Line(ours)
    assert line.ask((SCRAPE, None), 0) is None
    health = threads.submit(line.ask, (HEALTH, None), PATIENCE)
    for answer in (b"metrics", "well"):
        assert theirs.poll(PATIENCE)
        theirs.recv()
        theirs.send(answer)
    assert health.result(PATIENCE) == "well"


def test_questions_to_a_frozen_process_do_not_wait_for_room(ends: Ends, threads: ThreadPoolExecutor) -> None:
    line = Line(ends[0])
    asked = threads.submit(lambda: [line.ask((READY, None), 0) for _ in range(5000)])
    try:
        assert set(asked.result(PATIENCE)) == {None}
    finally:
        ends[1].close()  # ends a `send` that waits


def test_a_question_that_fails_is_no_end_of_the_answers(ends: Ends, caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = ends
    answers = {HEALTH: lambda names: names[0], READY: lambda _: True}
    answering = Thread(target=answer_questions, args=(theirs, answers))
    answering.start()
    line = Line(ours)
    assert line.ask((HEALTH, True)) is None
    assert line.ask((READY, None)) is True
    assert line.ask((HEALTH, ["a/b"])) == "a/b"
    assert "TypeError" in caplog.text
    ours.close()
    answering.join(PATIENCE)
    assert not answering.is_alive()


def test_nobody_there_is_no_answer(ends: Ends) -> None:
    ours, theirs = ends
    theirs.close()
    assert Line(ours).ask((READY, None)) is None
