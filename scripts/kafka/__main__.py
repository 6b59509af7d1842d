"""`python scripts/kafka [TOPIC:PARTITIONS ...]`: a broker with these topics, until Ctrl-C."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kafka.broker import Broker, KafkaNotFound


def main(topics: list[str]) -> int:
    stop = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    try:
        with Broker() as broker:
            for topic in topics:
                name, _, partitions = topic.partition(":")
                broker.create(name, int(partitions or 1))
            print(f"kafka: {broker.endpoint}", flush=True)
            signal.sigwait(stop)
    except KafkaNotFound as problem:
        print(f"kafka: {problem}", file=sys.stderr)
        return 1
    return 0


sys.exit(main(sys.argv[1:]))
