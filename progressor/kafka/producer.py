"""Sends the messages of one namespace to Kafka, those of a process in order, whatever fails meanwhile.

How the order is kept. `publish` sends what it is given in order, and returns when the broker has acknowledged it, or
when it gives up; then it forgets the producer with all that is in its queues. A connection carries one request at a
time (`max.in.flight`), and a request is repeated until it is acknowledged: nothing of a partition is sent before what
goes before it is there. A request that was on its way when we gave up may still arrive, beside the repetition of the
same messages; all before it was there already. So who removes repeats by (process, event_id) sees the order.

That holds as long as librdkafka drops nothing and goes on: its messages do not expire (`message.timeout.ms`), and a
batch that the broker refuses for good ends the producer (`enable.gapless.guarantee`). A batch that is refused for what
is in it is taken apart: its messages are sent one by one, so that the one at fault is known.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import Event as Flag
from typing import Any, Final, TypeAlias

from confluent_kafka import KafkaError, KafkaException, Producer

from progressor.config import KafkaClientConfig, NotifierConfig
from progressor.engine.ports import Message, Notice, Published
from progressor.errors import ConfigError
from progressor.kafka import codec, topics
from progressor.kafka.partitioner import phash2
from progressor.kafka.topics import POLL, Stopped, Topic, Unavailable
from progressor.value import value

logger = logging.getLogger(__name__)
log_of_librdkafka = logging.getLogger(f"{__name__}.librdkafka")
log_of_librdkafka.addFilter(lambda record: not record.getMessage().startswith("FATAL "))

PATIENCE: Final = 10.0
"""Seconds without a word of the brokers after which they are taken to be away."""
REFRESH: Final = 30.0
"""Seconds after which partitions and limits are asked for again."""
BATCH_BYTES: Final = 1_000_000
"""The largest batch, and the largest message where the limit of the topic is not known: librdkafka's own default."""
MESSAGE_BYTES: Final = range(1000, 1_000_000_001)
"""What librdkafka takes for `message.max.bytes`."""
FRAME: Final = 100
"""Bytes that a batch of one message has beyond its key and value, at most (Kafka's record format, version 2)."""

DEFAULTS: Final[Mapping[str, Any]] = {"client.id": "progressor", "linger.ms": 1, "log_level": 0}
"""librdkafka would log each attempt to connect. What it calls fatal is done here on purpose, or told to the caller."""
PROMISED: Final[Mapping[str, Any]] = {
    "enable.idempotence": True,
    "enable.gapless.guarantee": True,
    "acks": "all",
    "max.in.flight": 1,
    "message.timeout.ms": 0,
}
_OF_THE_MESSAGE: Final = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE, KafkaError.INVALID_RECORD)
"""Refusals for what a message is. All others are for the state that the brokers are in."""
_OF_THE_PRODUCER: Final = (KafkaError._FATAL, KafkaError._GAPLESS_GUARANTEE, KafkaError._PURGE_QUEUE)  # noqa: SLF001
"""It has ended; a message knows no more of the reason when it was not in the batch at fault."""
Told: TypeAlias = Callable[[KafkaError | None, object], None]


def check(clients: Iterable[KafkaClientConfig]) -> None:
    """Raises ConfigError when librdkafka does not take the settings of a client. Connects to nobody."""
    problems = [f"kafka.clients.{client.name}.config: {problem}" for client in clients for problem in _problems(client)]
    if problems:
        raise ConfigError(problems)


def _problems(client: KafkaClientConfig) -> Iterator[str]:
    try:
        Producer({**DEFAULTS, **client.config, **PROMISED}).close()
    except (KafkaException, TypeError, ValueError) as error:
        found = error.args[0]
        yield found.str() if isinstance(found, KafkaError) else str(found)


@value
class _Record:
    message_id: int
    process_id: str
    topic: str
    partition: int
    key: bytes
    value: bytes


@dataclass(slots=True)
class _Round:
    """What became of the messages of one `publish`. `culprit`: one that failed, and why."""

    sent: set[int] = field(default_factory=set)
    refused: dict[int, str] = field(default_factory=dict)
    culprit: tuple[int, KafkaError] | None = None

    def told(self, message_ids: Sequence[int], error: KafkaError | None, _message: object) -> None:
        """The last of the messages was acknowledged, and so were the others; or it failed."""
        if error is None:
            self.sent.update(message_ids)
        else:
            self.failed(message_ids[-1], error)

    def failed(self, message_id: int, error: KafkaError) -> None:
        """Errors of librdkafka's own, which are negative, are consequences of the broker's."""
        if self.culprit is None or error.code() > 0 > self.culprit[1].code():
            self.culprit = message_id, error


class KafkaPublisher:
    """`engine.ports.Publisher`. Connects when there is something to send, and again after a failure."""

    def __init__(self, ns: str, client: KafkaClientConfig, notifier: NotifierConfig) -> None:
        self._ns = ns
        self._topics = {n: notifier.topic if n is Notice.EVENT else notifier.lifecycle_topic for n in Notice}
        self._names = sorted({name for name in self._topics.values() if name is not None})
        self._endpoints = ",".join(client.endpoints)
        self._settings = {
            **DEFAULTS,
            **client.config,
            "bootstrap.servers": self._endpoints,
            "error_cb": self._note,
            "logger": log_of_librdkafka,
        }
        self._producer: Producer | None = None
        self._known: Mapping[str, Topic] = {}
        self._known_until = 0.0
        self._one_by_one = False
        self._trouble = ""

    def publish(self, messages: Sequence[Message], stop: Flag) -> Published:
        round_ = _Round()
        self._trouble = ""
        unavailable = None
        try:
            self._publish(messages, round_, stop)
        except Stopped:
            self.close()
        except Unavailable as problem:
            self.close()
            unavailable = f"{problem}{self._trouble}"
        except Exception as error:
            self.close()
            logger.exception("%s: the messages that were not acknowledged will be sent again", self._ns)
            unavailable = f"{type(error).__name__}: {error}"
        return Published(tuple(round_.sent), round_.refused, unavailable)

    def close(self) -> None:
        """Forgets what has not been acknowledged, too."""
        self._abandon()
        self._known = {}

    def _publish(self, messages: Sequence[Message], round_: _Round, stop: Flag) -> None:
        records = self._prepared(messages, round_, stop)
        while records:
            self._deliver(records, round_, stop)
            records = [record for record in records if record.message_id not in round_.sent]
            if round_.culprit is not None:
                records = self._without_culprit(records, round_, *round_.culprit)
                round_.culprit = None
        self._send_one_by_one(False)

    # What is sent

    def _prepared(self, messages: Sequence[Message], round_: _Round, stop: Flag) -> list[_Record]:
        round_.sent.update(message.message_id for message in messages if self._topics[message.notice] is None)
        is_news = self._look(stop)
        records = list(self._records(messages, round_))
        if round_.refused and not is_news:  # the limit may have been raised, and a dead letter be sent again
            self._known_until = 0.0
            self._look(stop)
            round_.refused.clear()
            records = list(self._records(messages, round_))
        return records

    def _records(self, messages: Sequence[Message], round_: _Round) -> Iterator[_Record]:
        """In order; nothing of a process behind a message that is refused."""
        blocked = set()
        for message in messages:
            topic = self._topics[message.notice]
            if topic is None or message.process_id in blocked:
                continue
            try:
                yield self._record(topic, message)
            except codec.Unencodable as problem:
                round_.refused[message.message_id] = str(problem)
                blocked.add(message.process_id)

    def _record(self, topic: str, message: Message) -> _Record:
        key, value = codec.key(self._ns, message.process_id), codec.encode(self._ns, message)
        size, largest = len(key) + len(value), self._largest(self._known[topic]) - FRAME
        if size > largest:
            raise codec.Unencodable(f"has {size} bytes, at most {largest} may go to the topic {topic!r}")
        partition = phash2(key) % self._known[topic].partitions
        return _Record(message.message_id, message.process_id, topic, partition, key, value)

    def _largest(self, topic: Topic) -> int:
        limit = min(topic.largest or BATCH_BYTES, MESSAGE_BYTES[-1])
        return min(limit, int(self._settings.get("message.max.bytes", limit)))

    # How it is sent

    def _deliver(self, records: Sequence[_Record], round_: _Round, stop: Flag) -> None:
        """Until all are acknowledged; or until one fails, when the producer is no more. Raises Unavailable, Stopped."""
        producer, count = self._connected(), len(round_.sent) + len(records)
        reports = _one_by_one(records) if self._one_by_one else _by_partition(records)
        for record in records:
            report = reports.get(record.message_id)
            told = None if report is None else partial(round_.told, report)
            while round_.culprit is None and not _is_produced(producer, record, round_, told):
                self._await(producer, round_, _has_moved(producer), stop)
        self._await(producer, round_, lambda: len(round_.sent) == count, stop)
        if round_.culprit is not None:
            self._abandon()

    def _await(self, producer: Producer, round_: _Round, is_over: Callable[[], bool], stop: Flag) -> None:
        """Or until a message has failed. Raises Unavailable when nothing has moved for PATIENCE seconds, or Stopped."""
        left, deadline = len(producer), time.monotonic() + PATIENCE
        while round_.culprit is None and not is_over():
            _poll(producer, POLL)
            if len(producer) < left:
                left, deadline = len(producer), time.monotonic() + PATIENCE
            if stop.is_set():
                raise Stopped
            if time.monotonic() > deadline:
                raise Unavailable(f"no acknowledgement from {self._endpoints} for {PATIENCE:g} s")

    def _without_culprit(
        self, records: Sequence[_Record], round_: _Round, message_id: int, error: KafkaError
    ) -> list[_Record]:
        """What is still to be sent. Raises Unavailable when it is not for a message that the broker refused them."""
        if not self._one_by_one and error.code() in (*_OF_THE_MESSAGE, *_OF_THE_PRODUCER):
            self._send_one_by_one(True)
            return list(records)
        culprit = next(record for record in records if record.message_id == message_id)
        if error.code() not in _OF_THE_MESSAGE:
            raise Unavailable(f"the topic {culprit.topic!r}: {error.str()}")
        round_.refused[message_id] = error.str()
        self._known_until = 0.0  # the limits are others than we know
        return [record for record in records if record.process_id != culprit.process_id]

    def _send_one_by_one(self, one_by_one: bool) -> None:
        if self._one_by_one != one_by_one:
            self._abandon()
            self._one_by_one = one_by_one

    # Connections

    def _look(self, stop: Flag) -> bool:
        """Whether it was time to ask the brokers."""
        if self._known and time.monotonic() < self._known_until:
            return False
        known = topics.look(self._settings, self._names, PATIENCE, stop)
        if known != self._known:  # of new partitions a producer would hear after minutes
            self._abandon()
        self._known, self._known_until = known, time.monotonic() + REFRESH
        return True

    def _connected(self) -> Producer:
        if self._producer is None:
            limits = [self._largest(topic) for topic in self._known.values()]
            sizes = {
                "message.max.bytes": max(MESSAGE_BYTES[0], *limits),
                "batch.size": min(BATCH_BYTES, *limits),
                **({"batch.num.messages": 1} if self._one_by_one else {}),
            }
            self._producer = Producer({**self._settings, **sizes, **PROMISED})
        return self._producer

    def _abandon(self) -> None:
        """Ends the producer. What it has not sent is purged, what was acknowledged meanwhile is noted.

        It is ended here, not by the collector of garbage (`topics.look`).
        """
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge()
            while len(producer):
                _poll(producer, POLL)
            producer.close()

    def _note(self, error: KafkaError) -> None:
        self._trouble = f": {error.str()}"


def _by_partition(records: Sequence[_Record]) -> Mapping[int, Sequence[int]]:
    """Of the last message of each partition all of its messages: those before it are acknowledged when it is.

    A report costs more than all else that is done with a message, since it waits for the interpreter.
    """
    found: dict[tuple[str, int], list[int]] = {}
    for record in records:
        found.setdefault((record.topic, record.partition), []).append(record.message_id)
    return {message_ids[-1]: message_ids for message_ids in found.values()}


def _one_by_one(records: Sequence[_Record]) -> Mapping[int, Sequence[int]]:
    return {record.message_id: [record.message_id] for record in records}


def _has_moved(producer: Producer) -> Callable[[], bool]:
    """Whether fewer messages are in the queue than now."""
    left = len(producer)
    return lambda: len(producer) < left


def _is_produced(producer: Producer, record: _Record, round_: _Round, told: Told | None) -> bool:
    """False when there is no space (queue.buffering.max.messages, or kbytes)."""
    try:
        producer.produce(record.topic, record.value, record.key, record.partition, on_delivery=told)
    except BufferError:
        return False
    except KafkaException as failure:
        round_.failed(record.message_id, failure.args[0])
    return True


def _poll(producer: Producer, timeout: float) -> None:
    """A fatal error is an exception here, ahead of the reports of the messages that it is about."""
    try:
        producer.poll(timeout)
    except KafkaException as fatal:
        logger.debug("%s", fatal)
