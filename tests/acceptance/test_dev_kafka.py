"""`make dev-kafka`: a node that publishes, for people who try it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka.broker import Broker

from progressor import Client
from tests.acceptance.nodes import FREE_PORT, PATIENCE, ROOT
from tests.consumer import read
from tests.eventually import eventually


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "output"


@pytest.fixture
def process(kafka: Broker, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The broker of the tests says whether there is Kafka on this machine."""
    command = [sys.executable, "scripts/kafka", "--node", FREE_PORT, "--thrift", FREE_PORT]
    with output.open("w") as out, subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out) as process:
        yield process
        process.kill()


def test_a_node_with_a_kafka_of_its_own(process: subprocess.Popen[bytes], output: Path) -> None:
    eventually(lambda: "progressor-node: ready" in output.read_text(), PATIENCE)
    (endpoint,) = re.findall(r"^kafka: (\S+): events_topic, lifecycle_topic$", output.read_text(), re.MULTILINE)
    (url,) = re.findall(r"(thrift://\S+)", output.read_text())
    with Client(url) as client:
        client.init(ns="default/echo", id="p", args=b"hello")
    records = eventually(lambda: read(endpoint, "events_topic"), PATIENCE)
    assert records is not None
    assert [record.event.data.bin for record in records] == [b"hello"]
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 0
