"""N engine processes under one parent, for more than one core.

Each child is a whole node with an epoch of its own; what one leaves undone another takes over. The parent runs no
steps: it migrates the database, starts a child again that dies, passes signals on, and speaks for all of them
in metrics and health. Children whose parent is gone stop by themselves.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from threading import Event, Lock, Thread
from time import monotonic
from typing import Any

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from progressor.application import Node
from progressor.config import Config, ListenConfig
from progressor.errors import ProgressorError
from progressor.model import Health
from progressor.serving import LOG_FORMAT, serve
from progressor.storage import migrate

logger = logging.getLogger(__name__)

RESTART_PAUSES = (0.1, 1.0, 5.0, 30.0)
"""Seconds before a child is started again; back to the first when it has lived for LONG_ENOUGH seconds."""
LONG_ENOUGH = 60.0
WATCH_INTERVAL = 0.1
ANSWER_PATIENCE = 2.0
STOP_MARGIN = 15.0
"""Seconds beyond the drain timeout before a child that does not end is killed."""

Question = str
SCRAPE, HEALTH, READY = "scrape", "health", "ready"


@dataclass(slots=True)
class _Child:
    number: int
    process: SpawnProcess
    pipe: Connection
    started: float
    deaths: int = 0
    restart_at: float | None = None


class Fleet:
    """The parent's side. Not for use from more than one thread, but for the questions."""

    def __init__(self, config: Config, size: int, log_level: int = logging.INFO) -> None:
        """Raises ConfigError as `Node` does."""
        self._node = Node(config)
        self._config = config
        self._log_level = log_level
        self._context = multiprocessing.get_context("spawn")
        self._asking = Lock()
        self._size = size
        self._children: list[_Child] = []

    def start(self) -> None:
        """Migrates, and starts the children. Raises StorageUnavailable, or SchemaOutdated when it may not migrate."""
        if self._config.migration_enabled:
            self._node.migrate()
        else:
            _check_schemas(self._config)
        self._children = [self._spawn(number) for number in range(self._size)]

    def watch(self, stop: Event, on_ready: Callable[[], object]) -> None:
        """Keeps the children alive until `stop` is set. Calls `on_ready` when all are ready for the first time."""
        ready = False
        while not stop.wait(WATCH_INTERVAL):
            if not ready and self.is_ready:
                ready = True
                on_ready()
            for place, child in enumerate(self._children):
                self._revive(place, child)

    def signal(self, number: signal.Signals) -> None:
        """Passes a signal on to all children."""
        for child in self._children:
            _send(child.process, number)

    def stop(self) -> None:
        """Drains and stops the children; kills those that take too long."""
        self.signal(signal.SIGTERM)
        deadline = monotonic() + self._config.drain_timeout + STOP_MARGIN
        for child in self._children:
            child.process.join(max(0.0, deadline - monotonic()))
        self.kill()

    def kill(self) -> None:
        """Ends the children at once."""
        self.signal(signal.SIGKILL)
        for child in self._children:
            child.process.join()
            child.pipe.close()

    def scrape(self) -> bytes:
        """The metrics of all children, each with a label `process`."""
        texts = {str(number): text.decode() for number, text in self._ask(SCRAPE) if isinstance(text, bytes)}
        registry = CollectorRegistry()
        registry.register(_Merged(texts))
        return generate_latest(registry)

    def health(self) -> tuple[Health, Mapping[str, Any]]:
        """Passing when every child is."""
        answers = dict(self._ask(HEALTH))
        details = {
            f"process {number}": {"status": answer[0], "details": answer[1]} if answer else {"status": "no answer"}
            for number, answer in answers.items()
        }
        passing = all(answer and answer[0] is Health.PASSING for answer in answers.values())
        return (Health.PASSING if passing else Health.CRITICAL), details

    @property
    def is_ready(self) -> bool:
        return all(answer is True for _, answer in self._ask(READY))

    def _spawn(self, number: int, deaths: int = 0) -> _Child:
        ours, theirs = self._context.Pipe()
        config = replace(
            self._config,
            node_name=f"{self._config.node_name}#{number}",
            migration_enabled=False,
            listen=ListenConfig(None, None),
        )
        process = self._context.Process(
            target=_child_main, args=(config, theirs, self._log_level), name=f"progressor-node {number}"
        )
        process.start()
        theirs.close()
        logger.info("engine process %d: pid %s", number, process.pid)
        return _Child(number, process, ours, monotonic(), deaths)

    def _revive(self, place: int, child: _Child) -> None:
        if child.process.is_alive():
            return
        if child.restart_at is None:
            deaths = 0 if monotonic() - child.started > LONG_ENOUGH else child.deaths
            pause = RESTART_PAUSES[min(deaths, len(RESTART_PAUSES) - 1)]
            logger.error(
                "engine process %d ended with %s, starting again in %s s", child.number, child.process.exitcode, pause
            )
            child.deaths, child.restart_at = deaths + 1, monotonic() + pause
        elif monotonic() >= child.restart_at:
            with self._asking:
                child.pipe.close()
                self._children[place] = self._spawn(child.number, child.deaths)

    def _ask(self, question: Question) -> Iterable[tuple[int, Any]]:
        """The children's answers; None from those who give none in time."""
        with self._asking:
            return [(child.number, _answer(child.pipe, question)) for child in self._children]


class _Merged:
    """A collector of what others have collected."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for process, text in self._texts.items():
            for family in text_string_to_metric_families(text):
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    merged.add_sample(sample.name, {**sample.labels, "process": process}, sample.value)
        yield from families.values()


def _check_schemas(config: Config) -> None:
    """What each child does; it would die of it again and again."""
    for name, database in config.databases.items():
        namespaces = [ns.name for ns in config.namespaces.values() if config.pools[ns.storage.pool].database == name]
        if namespaces:
            migrate.check(database.conninfo(), namespaces)


def _answer(pipe: Connection, question: Question) -> Any:
    try:
        while pipe.poll():
            pipe.recv()  # the late answer to an earlier question
        pipe.send(question)
        return pipe.recv() if pipe.poll(ANSWER_PATIENCE) else None
    except (OSError, EOFError):
        return None


def _send(process: SpawnProcess, number: signal.Signals) -> None:
    if process.pid is not None and process.is_alive():
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


# The child's side


def _child_main(config: Config, pipe: Connection, log_level: int) -> None:
    logging.basicConfig(level=log_level, format=f"[%(process)d] {LOG_FORMAT}", stream=sys.stderr)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's is for the parent
    try:
        node = Node(config)
        with suppress(KeyboardInterrupt):
            sys.exit(serve(node, lambda: _speak_for(node, pipe), stop_signals=(signal.SIGTERM,)))
    except ProgressorError as error:
        logger.error("%s", error)  # noqa: TRY400 - foreseen: no traceback
        sys.exit(1)


def _speak_for(node: Node, pipe: Connection) -> None:
    answers: Mapping[Question, Callable[[], Any]] = {
        SCRAPE: node.scrape,
        HEALTH: node.health,
        READY: lambda: node.is_ready,
    }
    Thread(target=_answer_questions, args=(pipe, answers), name="spokesman", daemon=True).start()


def _answer_questions(pipe: Connection, answers: Mapping[Question, Callable[[], Any]]) -> None:
    try:
        while True:
            pipe.send(answers[pipe.recv()]())
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)  # the parent is gone
