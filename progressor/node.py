"""progressor-node: reads the configuration, runs a node until it is told to stop.

SIGTERM and SIGINT drain and stop, a second one stops at once; SIGUSR1 prints every actor, the length of its mailbox
and the stack of its thread. Exit status: 0 stopped as asked, 1 failed, 2 wrong usage or configuration.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any, TextIO

from progressor import config as configuration
from progressor.application import Node
from progressor.errors import ConfigError, ProgressorError
from progressor.otp import actors
from progressor.storage.embedded import EmbeddedPostgres

EXIT_FAILED, EXIT_USAGE = 1, 2
LOG_FORMAT = "%(asctime)s %(levelname)s %(threadName)s %(name)s: %(message)s"
DEV_NAMESPACES = ("echo", "counter", "payment")
DEV_HTTP = "127.0.0.1:8022"

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    logging.basicConfig(level=options.log_level.upper(), format=LOG_FORMAT, stream=sys.stderr)
    try:
        with _configuration(options) as config:
            return _run(options, config)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return EXIT_USAGE
    except ProgressorError as error:
        print(f"progressor-node: {error}", file=sys.stderr)
        return EXIT_FAILED


def dev_config(postgres: EmbeddedPostgres, http: str | None = DEV_HTTP) -> Mapping[str, Any]:
    """A configuration for an embedded PostgreSQL: the shipped processors, no Kafka."""
    pools = {"default_pool": 10, "default_scan_pool": 2, "default_front_pool": 10}
    return {
        "progressor": {
            "defaults": {"worker_pool_size": 20, "task_scan_timeout": 2, "call_scan_timeout": 1},
            "namespaces": {f"default/{name}": {"processor": {"client": name}} for name in DEV_NAMESPACES},
        },
        "databases": {
            "progressor_db": {
                "host": postgres.host,
                "port": postgres.port,
                "database": postgres.dbname,
                "username": postgres.user,
                "password": postgres.password,
            }
        },
        "pools": {name: {"database": "progressor_db", "size": size} for name, size in pools.items()},
        "listen": {} if http is None else {"http": http},
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="progressor-node", description="Runs a node of Progressor.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", metavar="FILE", type=Path, help="the configuration, usually sys.toml")
    source.add_argument("--dev", action="store_true", help="no configuration: embedded PostgreSQL, sample processors")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check-config", action="store_true", help="list every mistake, start nothing")
    action.add_argument("--migrate-only", action="store_true", help="bring the database up to date, then exit")
    parser.add_argument("--data", metavar="DIR", type=Path, help="with --dev: keep the database here")
    parser.add_argument("--http", metavar="ADDRESS", default=DEV_HTTP, help=f"with --dev: default {DEV_HTTP}")
    levels = ("debug", "info", "warning", "error")
    parser.add_argument("--log-level", choices=levels, default="info", help="default: info")
    return parser.parse_args(arguments)


@contextmanager
def _configuration(options: argparse.Namespace) -> Iterator[configuration.Config]:
    if not options.dev:
        yield configuration.load(options.config)
        return
    with EmbeddedPostgres.start(options.data) as postgres:
        logger.info("embedded PostgreSQL %d: %s", postgres.version, postgres.home)
        yield configuration.load(dev_config(postgres, options.http))


def _run(options: argparse.Namespace, config: configuration.Config) -> int:
    node = Node(config)
    if options.check_config:
        print("the configuration is fine")
        return 0
    if options.migrate_only:
        node.migrate()
        print("the database is up to date")
        return 0
    return _serve(node)


def _serve(node: Node) -> int:
    stop = Event()

    def on_stop(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if stop.is_set():
            print("progressor-node: stopped at once", file=sys.stderr)
            os._exit(EXIT_FAILED)  # nothing may hold it up; what ran is taken over by other nodes
        stop.set()

    with _signals({signal.SIGTERM: on_stop, signal.SIGINT: on_stop, signal.SIGUSR1: _on_dump}):
        node.start()
        if node.http_address is not None:
            logger.info("http://%s:%d/metrics, /health, /ready", *node.http_address)
        print("progressor-node: ready", flush=True)
        while not stop.is_set() and not node.wait_failed(0.2):
            pass
        failed = not stop.is_set()
        logger.info("stopping")
        node.stop()
    return EXIT_FAILED if failed else 0


@contextmanager
def _signals(handlers: Mapping[signal.Signals, Any]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _on_dump(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
    dump_actors(sys.stderr)


def dump_actors(out: TextIO) -> None:
    """Every actor: name, class, messages that wait, and where its thread is."""
    frames = sys._current_frames()  # noqa: SLF001 - the documented way to other threads' stacks
    for ref in sorted(actors(), key=lambda ref: ref.name):
        print(f"\n{ref.name} ({ref.actor_class.__name__}), mailbox {ref.mailbox_length}", file=out)
        frame = frames.get(ref.thread) if ref.thread is not None else None
        if frame is not None:
            print("".join(traceback.format_stack(frame)), end="", file=out)
    out.flush()


if __name__ == "__main__":
    sys.exit(main())
