"""A broker until Ctrl-C, with topics; or with a node that publishes to it: `make kafka`, `make dev-kafka`."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kafka.broker import Broker, KafkaNotFound, jars
from progressor import Node
from progressor.node import DEV_HTTP, DEV_THRIFT, announce, dev_config
from progressor.serving import LOG_FORMAT, STOP_SIGNALS, serve
from progressor.storage.embedded import EmbeddedPostgres

TOPICS = {"topic": "events_topic", "lifecycle_topic": "lifecycle_topic"}
PARTITIONS = 3


def main() -> int:
    options = _options()
    try:
        if options.fetch:
            print(f"kafka: {jars()}")
            return 0
        return _run_node(options.node, options.thrift) if options.node else _run_broker(options.topics)
    except KafkaNotFound as problem:
        print(f"kafka: {problem}", file=sys.stderr)
        return 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/kafka", description=__doc__)
    parser.add_argument("topics", nargs="*", metavar="TOPIC:PARTITIONS", help="made at the start")
    parser.add_argument("--fetch", action="store_true", help="only see to it that Kafka is here")
    parser.add_argument("--node", nargs="?", const=DEV_HTTP, metavar="ADDRESS", help=f"of its HTTP port: {DEV_HTTP}")
    parser.add_argument("--thrift", default=DEV_THRIFT, metavar="ADDRESS", help=f"with --node: {DEV_THRIFT}")
    return parser.parse_args()


def _run_broker(topics: list[str]) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    with Broker() as broker:
        for topic in topics:
            name, _, partitions = topic.partition(":")
            broker.create(name, int(partitions or 1))
        print(f"kafka: {broker.endpoint}", flush=True)
        signal.sigwait(STOP_SIGNALS)
    return 0


def _run_node(http: str, thrift: str) -> int:
    """As `progressor-node --dev`, and every namespace has a notifier."""
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    with Broker() as broker, EmbeddedPostgres.start() as postgres:
        for topic in TOPICS.values():
            broker.create(topic, PARTITIONS)
        node = Node.from_config(_publishing(dev_config(postgres, http=http, thrift=thrift), broker.endpoint))
        print(f"kafka: {broker.endpoint}: {', '.join(TOPICS.values())}", flush=True)
        return serve(node, partial(announce, node))


def _publishing(config: Mapping[str, Any], endpoint: str) -> Mapping[str, Any]:
    progressor = config["progressor"]
    defaults = {**progressor["defaults"], "notifier": {"client": "dev", **TOPICS}}
    return {
        **config,
        "progressor": {**progressor, "defaults": defaults},
        "kafka": {"clients": {"dev": {"endpoints": [endpoint]}}},
    }


sys.exit(main())
