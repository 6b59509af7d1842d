"""N engine processes under one parent, for more than one core.

Each child is a whole node with an epoch of its own; what one leaves undone another takes over. The parent runs no
steps: it migrates the database, opens the ports, starts a child again that dies, and passes signals on. All children
accept from the same sockets, so that a connection belongs to one of them, and those that wait to be accepted to
whoever lives. Parent and child ask each other over a pipe each: the parent speaks for all in metrics and
health, whichever child is asked. Children whose parent is gone stop by themselves.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from threading import Event, Lock, Thread
from time import monotonic
from typing import Any, TypeAlias, cast

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from progressor.application import Node
from progressor.config import Config
from progressor.errors import ProgressorError
from progressor.model import Health
from progressor.rpc.http import Pages
from progressor.rpc.listener import bound, listen
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

Question: TypeAlias = tuple[str, Any]
"""What is asked, and an argument."""
Answers: TypeAlias = Mapping[str, Callable[[Any], Any]]
SCRAPE, HEALTH, READY = "scrape", "health", "ready"


class Line:
    """Asks over a pipe, one question at a time: as long as an answer is owed, nothing else is asked. So a late answer
    is taken for no other question's, and questions to a frozen process do not fill the pipe, where `send` waits.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._is_owed = False

    def ask(self, question: Question, patience: float | None = None) -> Any:
        """None: no answer within `patience` seconds, the question could not be answered, or nobody is there."""
        deadline = None if patience is None else monotonic() + patience
        with suppress(EOFError, OSError):
            if self._is_owed:
                self._hear(deadline)
            if not self._is_owed:
                self._pipe.send(question)
                self._is_owed = True
                return self._hear(deadline)
        return None

    def close(self) -> None:
        self._pipe.close()

    def _hear(self, deadline: float | None) -> Any:
        if not self._pipe.poll(None if deadline is None else max(0.0, deadline - monotonic())):
            return None
        answer = self._pipe.recv()
        self._is_owed = False
        return answer


@dataclass(slots=True)
class _Child:
    number: int
    process: SpawnProcess
    line: Line
    """Over which it is asked."""
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
        self._listeners: dict[str, socket.socket] = {}

    def address(self, name: str) -> tuple[str, int] | None:
        """Of the port of this name: `http` or `thrift`."""
        listener = self._listeners.get(name)
        return None if listener is None else bound(listener)

    def start(self) -> None:
        """Migrates, opens the ports and starts the children. Raises StorageUnavailable, SchemaOutdated when it may not
        migrate, CacheUnavailable, and CannotListen."""
        if self._config.migration_enabled:
            self._node.migrate()
        else:
            _check_schemas(self._config)
        self._node.check_feeds()
        self._open_ports()
        self._children = [self._spawn(number) for number in range(self._size)]

    def watch(self, stop: Event, on_ready: Callable[[], object]) -> None:
        """Keeps the children alive until `stop` is set. Calls `on_ready` when all are ready for the first time."""
        ready = False
        while not stop.wait(WATCH_INTERVAL):
            if not ready and self._all_are_ready:
                ready = True
                on_ready()
            for place, child in enumerate(self._children):
                self._revive(place, child)

    def signal(self, number: signal.Signals) -> None:
        """Passes a signal on to all children."""
        for child in self._children:
            _send(child.process, number)

    def stop(self) -> None:
        """Drains and stops the children; kills those that take too long. Who connects meanwhile is refused."""
        self._close_ports()
        self.signal(signal.SIGTERM)
        deadline = monotonic() + self._config.drain_timeout + STOP_MARGIN
        for child in self._children:
            child.process.join(max(0.0, deadline - monotonic()))
        self.kill()

    def kill(self) -> None:
        """Ends the children at once."""
        self._close_ports()
        self.signal(signal.SIGKILL)
        for child in self._children:
            child.process.join()
            child.line.close()

    def scrape(self) -> bytes:
        """The metrics of all children, each with a label `process`."""
        texts = {str(number): text.decode() for number, text in self._ask(SCRAPE) if isinstance(text, bytes)}
        registry = CollectorRegistry()
        registry.register(_Merged(texts))
        return generate_latest(registry)

    def health(self, namespaces: Iterable[str] | None = None) -> tuple[Health, Mapping[str, Any]]:
        """Passing when every child is."""
        answers = dict(self._ask(HEALTH, namespaces))
        details = {
            f"process {number}": {"status": answer[0], "details": answer[1]} if answer else {"status": "no answer"}
            for number, answer in answers.items()
        }
        passing = all(answer and answer[0] is Health.PASSING for answer in answers.values())
        return (Health.PASSING if passing else Health.CRITICAL), details

    @property
    def is_ready(self) -> bool:
        """Whether a child takes requests: the others need not accept any."""
        return any(answer is True for _, answer in self._ask(READY))

    @property
    def _all_are_ready(self) -> bool:
        return all(answer is True for _, answer in self._ask(READY))

    def _open_ports(self) -> None:
        config = self._config.listen
        for name, address in {"http": config.http, "thrift": config.thrift}.items():
            if address is not None:
                self._listeners[name] = listen(address)

    def _close_ports(self) -> None:
        for listener in self._listeners.values():
            listener.close()

    def _spawn(self, number: int, deaths: int = 0) -> _Child:
        ours, theirs = self._context.Pipe()
        asked, asking = self._context.Pipe()
        config = replace(
            self._config,
            node_name=f"{self._config.node_name}#{number}",
            migration_enabled=False,
        )
        process = self._context.Process(
            target=_child_main,
            args=(config, self._listeners, theirs, asking, self._log_level),
            name=f"progressor-node {number}",
        )
        process.start()
        theirs.close()
        asking.close()
        Thread(target=answer_questions, args=(asked, _answers(self)), name=f"for {number}", daemon=True).start()
        logger.info("engine process %d: pid %s", number, process.pid)
        return _Child(number, process, Line(ours), monotonic(), deaths)

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
                child.line.close()
                self._children[place] = self._spawn(child.number, child.deaths)

    def _ask(self, question: str, argument: Any = None) -> Iterable[tuple[int, Any]]:
        """The children's answers; None from those who give none in time."""
        with self._asking:
            return [(child.number, child.line.ask((question, argument), ANSWER_PATIENCE)) for child in self._children]


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


def _send(process: SpawnProcess, number: signal.Signals) -> None:
    if process.pid is not None and process.is_alive():
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _answers(pages: Pages) -> Answers:
    return {SCRAPE: lambda _: pages.scrape(), HEALTH: pages.health, READY: lambda _: pages.is_ready}


def answer_questions(pipe: Connection, answers: Answers) -> None:
    """Until the other side is gone. A question that cannot be answered gets None, and the next one is heard."""
    with pipe, suppress(EOFError, OSError):
        while True:
            question, argument = pipe.recv()
            pipe.send(_answer(question, argument, answers))


def _answer(question: str, argument: Any, answers: Answers) -> Any:
    try:
        return answers[question](argument)
    except Exception:
        logger.exception("the question %r was not answered", question)
        return None


# The child's side


class _Parent:
    """What the parent says of all children. When it is gone this process ends soon, whatever is said."""

    def __init__(self, pipe: Connection) -> None:
        self._line = Line(pipe)
        self._asking = Lock()

    def scrape(self) -> bytes:
        return cast("bytes", self._ask((SCRAPE, None), b""))

    def health(self, namespaces: Iterable[str] | None = None) -> tuple[Health, Mapping[str, Any]]:
        return cast("tuple[Health, Mapping[str, Any]]", self._ask((HEALTH, namespaces), (Health.CRITICAL, {})))

    @property
    def is_ready(self) -> bool:
        return cast("bool", self._ask((READY, None), False))

    def _ask(self, question: Question, otherwise: object) -> object:
        with self._asking:
            answer = self._line.ask(question)
        return otherwise if answer is None else answer


def _child_main(
    config: Config,
    listeners: Mapping[str, socket.socket],
    asked: Connection,
    asking: Connection,
    log_level: int,
) -> None:
    logging.basicConfig(level=log_level, format=f"[%(process)d] {LOG_FORMAT}", stream=sys.stderr)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's is for the parent
    try:
        node = Node(config, listeners, _Parent(asking))
        with suppress(KeyboardInterrupt):
            sys.exit(serve(node, lambda: _speak_for(node, asked), stop_signals=(signal.SIGTERM,)))
    except ProgressorError as error:
        logger.error("%s", error)  # noqa: TRY400 - foreseen: no traceback
        sys.exit(1)


def _speak_for(node: Node, pipe: Connection) -> None:
    def speak() -> None:
        answer_questions(pipe, _answers(node))
        os.kill(os.getpid(), signal.SIGTERM)  # the parent is gone

    Thread(target=speak, name="spokesman", daemon=True).start()
