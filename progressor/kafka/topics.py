"""What the brokers say of topics: how many partitions, and how large a message may be."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Event as Flag
from typing import Any, Final, TypeVar

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

T = TypeVar("T")
POLL: Final = 0.1
"""Seconds after which a wait looks whether it should stop."""


class Unavailable(Exception):
    """Nothing can be sent for now; the text says why."""


class Stopped(Exception):
    """The publisher is to stop."""


@dataclass(frozen=True, slots=True)
class Topic:
    partitions: int
    largest: int | None
    """Bytes that a batch may have; None when we may not know."""


def look(settings: Mapping[str, Any], names: Sequence[str], patience: float, stop: Flag) -> Mapping[str, Topic]:
    """Raises Unavailable, after `patience` seconds at the latest, or Stopped.

    The client ends here: librdkafka aborts the process when a client that nobody ended is garbage, and the collector
    happens to run in a thread of librdkafka, as it may while an answer is handed over.
    """
    with AdminClient(dict(settings)) as admin:
        try:
            return _look(admin, names, patience, stop)
        except Unavailable:
            admin.poll(0)  # `error_cb` hears why
            raise


def _look(admin: AdminClient, names: Sequence[str], patience: float, stop: Flag) -> Mapping[str, Topic]:
    deadline = time.monotonic() + patience
    descriptions = admin.describe_topics(TopicCollection(list(names)), request_timeout=patience)
    resources = {name: ConfigResource(ResourceType.TOPIC, name) for name in names}
    configs = admin.describe_configs(list(resources.values()), request_timeout=patience)
    partitions = {name: _partitions(name, future, deadline, stop) for name, future in descriptions.items()}
    return {
        name: Topic(partitions[name], _limit(configs[resource], deadline, stop)) for name, resource in resources.items()
    }


def _partitions(name: str, future: Future[Any], deadline: float, stop: Flag) -> int:
    try:
        return len(_answer(future, deadline, stop).partitions)
    except KafkaException as refusal:
        error = refusal.args[0]
        if error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise Unavailable(f"the topic {name!r} does not exist: create it, Progressor makes none") from None
        raise Unavailable(f"the topic {name!r}: {error.str()}") from None


def _limit(future: Future[Any], deadline: float, stop: Flag) -> int | None:
    """To see a topic's settings is a right of its own, which is not needed."""
    try:
        return int(_answer(future, deadline, stop)["max.message.bytes"].value)
    except KafkaException:
        return None


def _answer(future: Future[T], deadline: float, stop: Flag) -> T:
    """Raises KafkaException when it is a refusal."""
    while True:
        try:
            return future.result(POLL)
        except TimeoutError:
            if stop.is_set():
                raise Stopped from None
            if time.monotonic() > deadline:
                raise Unavailable("no broker answers") from None
        except KafkaException as failure:
            if failure.args[0].code() < 0:  # librdkafka's own, not the broker's
                raise Unavailable("no broker answers") from failure
            raise
