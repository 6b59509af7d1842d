"""A broker inside a test: it keeps what it is sent, and fails as it is told to.

What a real one does is tested with a real one (tests/integration/kafka).

    broker = Broker()
    with broker.node(database, {"a/b": script}) as node:
        ...
        eventually(lambda: broker.told("p") == ["created", "event 1"])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event as Flag
from threading import Lock
from typing import Any

from progressor import Node
from progressor.config import KafkaClientConfig, NotifierConfig, load
from progressor.engine.ports import Message, Notice, Published
from tests import stage
from tests.conftest import Database
from tests.eventually import eventually

TOPICS = {"topic": "events", "lifecycle_topic": "lifecycle"}


@dataclass
class Broker:
    """`receive` says what becomes of a portion; by default all of it is acknowledged."""

    received: list[tuple[str, Message]] = field(default_factory=list)
    receive: Callable[[Sequence[Message], Flag], Published] | None = None
    publications: int = 0
    closed: int = 0
    _lock: Lock = field(default_factory=Lock)

    @contextmanager
    def node(
        self,
        database: Database,
        scripts: Mapping[str, stage.Script],
        *,
        notifier: Mapping[str, Any] = TOPICS,
        **more: Any,
    ) -> Iterator[Node]:
        """A node that publishes to this broker; `more` as in `stage.config`."""
        namespaces = {ns: {"notifier": {"client": "broker", **notifier}} for ns in scripts}
        settings = stage.config(database, scripts, namespaces=namespaces, **more)
        settings["kafka"] = {"clients": {"broker": {"endpoints": ["127.0.0.1:9"]}}}
        with Node(load(settings), make_publisher=self.publisher) as node:
            yield node

    def publisher(self, ns: str, client: KafkaClientConfig, notifier: NotifierConfig) -> Publisher:
        return Publisher(self, ns)

    # What happened

    def messages(self, process_id: str, ns: str = "a/b") -> list[Message]:
        with self._lock:
            return [m for name, m in self.received if (name, m.process_id) == (ns, process_id)]

    def told(self, process_id: str, ns: str = "a/b") -> list[str]:
        """Of a process: `created`, `event 1`, `failed: reason` ..., repetitions included."""
        return [_text(message) for message in self.messages(process_id, ns)]

    def awaits(self, process_id: str, *texts: str) -> None:
        """Waits until this is what was told of a process."""
        eventually(lambda: self.told(process_id) == list(texts))

    # What it does

    def take(self, ns: str, messages: Sequence[Message], stop: Flag) -> Published:
        published = (
            Published([m.message_id for m in messages]) if self.receive is None else self.receive(messages, stop)
        )
        with self._lock:
            self.publications += 1
            self.received += [(ns, m) for m in messages if m.message_id in set(published.sent)]
        return published

    def goes_away(self, why: str = "no broker answers") -> None:
        self.receive = lambda messages, stop: Published(unavailable=why)

    def comes_back(self) -> None:
        self.receive = None

    def hangs(self) -> Flag:
        """Answers nothing until the node stops. What it returns is set when somebody waits for it."""
        waited_for = Flag()

        def hang(messages: Sequence[Message], stop: Flag) -> Published:
            waited_for.set()
            assert stop.wait(stage.PATIENCE)
            return Published()

        self.receive = hang
        return waited_for

    def refuses(self, *payloads: bytes) -> None:
        def refuse(messages: Sequence[Message], stop: Flag) -> Published:
            refused: dict[str, int] = {}
            for message in messages:
                if message.payload in payloads:
                    refused.setdefault(message.process_id, message.message_id)
            sent = [m.message_id for m in messages if m.message_id < refused.get(m.process_id, m.message_id + 1)]
            return Published(sent, dict.fromkeys(refused.values(), "too large"))

        self.receive = refuse


@dataclass
class Publisher:
    """`ports.Publisher`."""

    broker: Broker
    ns: str

    def publish(self, messages: Sequence[Message], stop: Flag) -> Published:
        return self.broker.take(self.ns, messages, stop)

    def close(self) -> None:
        self.broker.closed += 1


def _text(message: Message) -> str:
    if message.notice is Notice.EVENT:
        return f"event {message.event_id}"
    return str(message.notice) if message.reason is None else f"{message.notice}: {message.reason}"
