"""A broker that asks who comes, and lets him do what he may."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)
from kafka.broker import Broker

from progressor.config import KafkaClientConfig, NotifierConfig, OnDeadLetter
from progressor.engine.ports import Message, Notice, Published
from progressor.kafka import producer
from progressor.kafka.producer import KafkaPublisher
from tests.consumer import read

USER, PASSWORD = "publisher", "s3cret"
AT = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture(scope="module")
def broker(kafka: Broker) -> Iterator[Broker]:
    """Beside the one of all tests, which says whether there can be one."""
    with Broker({USER: PASSWORD}) as broker:
        yield broker


@pytest.fixture
def topic(broker: Broker) -> str:
    name = f"events-{secrets.token_hex(4)}"
    broker.create(name, 1, max_message_bytes="2000")
    return name


def allow(broker: Broker, topic: str, *operations: AclOperation) -> None:
    allowed = [
        AclBinding(
            ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, f"User:{USER}", "*", operation,
            AclPermissionType.ALLOW,
        )
        for operation in operations
    ]  # fmt: skip
    with broker.admin() as admin:
        for made in admin.create_acls(allowed).values():
            made.result()


def publish(broker: Broker, topic: str, *sizes: int, password: str = PASSWORD) -> Published:
    """Events of these sizes, each of another process."""
    login = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanisms": "PLAIN",
        "sasl.username": USER,
        "sasl.password": password,
    }
    client = KafkaClientConfig("k", (broker.login_endpoint,), login)
    publisher = KafkaPublisher("a/b", client, NotifierConfig("k", topic, None, OnDeadLetter.WAIT, 30.0))
    messages = [Message(n, f"p{n}", Notice.EVENT, AT, 1, {}, bytes(size)) for n, size in enumerate(sizes)]
    try:
        return publisher.publish(messages, threading.Event())
    finally:
        publisher.close()


def test_who_may_write_and_describe_publishes_and_finds_out_what_is_too_large(broker: Broker, topic: str) -> None:
    allow(broker, topic, AclOperation.WRITE, AclOperation.DESCRIBE)
    published = publish(broker, topic, 100, 3000, 100, 1500)
    assert set(published.sent) == {0, 2, 3}
    assert published.refused == {1: "Broker: Message size too large"}
    assert len(read(broker.endpoint, topic)) == 3


def test_who_may_see_the_limit_does_not_try(broker: Broker, topic: str) -> None:
    allow(broker, topic, AclOperation.WRITE, AclOperation.DESCRIBE, AclOperation.DESCRIBE_CONFIGS)
    published = publish(broker, topic, 100, 3000, 100, 1500)
    assert set(published.sent) == {0, 2, 3}
    assert published.refused == {1: f"has 3079 bytes, at most 1900 may go to the topic '{topic}'"}


def test_who_may_do_nothing_is_told_so(broker: Broker, topic: str) -> None:
    published = publish(broker, topic, 100)
    assert published.sent == ()
    assert published.unavailable == f"the topic {topic!r}: Broker: Topic authorization failed"


def test_who_may_not_write_is_told_so(broker: Broker, topic: str) -> None:
    allow(broker, topic, AclOperation.DESCRIBE)
    published = publish(broker, topic, 100)
    assert published.sent == ()
    assert published.unavailable == f"the topic {topic!r}: Broker: Topic authorization failed"


def test_a_wrong_password_is_told_and_not_shown(broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producer, "PATIENCE", 2.0)
    unavailable = str(publish(broker, topic, 100, password="wr0ng").unavailable)
    assert "uthentication" in unavailable
    assert "wr0ng" not in unavailable
