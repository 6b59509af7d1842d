"""progressor-node: reads the configuration, runs a node until it is told to stop.

SIGTERM and SIGINT drain and stop, a second one stops at once; SIGUSR1 prints every actor, the length of its mailbox
and the stack of its thread. Exit status: 0 stopped as asked, 1 failed, 2 wrong usage or configuration.
"""

from __future__ import annotations

import argparse
import logging
import resource
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any

from progressor import config as configuration
from progressor.application import Node
from progressor.errors import ConfigError, ProgressorError
from progressor.fleet import Fleet
from progressor.serving import (
    EXIT_FAILED,
    LOG_FORMAT,
    STOP_SIGNALS,
    announce_ports,
    announce_ready,
    on_stop,
    serve,
    signals,
)
from progressor.storage.embedded import EmbeddedPostgres

EXIT_USAGE = 2
DEV_NAMESPACES = ("echo", "counter", "payment")
DEV_HTTP, DEV_THRIFT = "127.0.0.1:8022", "127.0.0.1:8023"
MOST_PROCESSES = 64

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    logging.basicConfig(level=options.log_level.upper(), format=LOG_FORMAT, stream=sys.stderr)
    _raise_open_files()
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


def _raise_open_files() -> None:
    """Each connection of a client is an open file, and the soft limit is often 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def dev_config(postgres: EmbeddedPostgres, **listen: str) -> Mapping[str, Any]:
    """A configuration for an embedded PostgreSQL: the shipped processors, no Kafka, these ports."""
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
        "listen": listen,
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="progressor-node", description="Runs a node of Progressor.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", metavar="FILE", type=Path, help="the configuration, usually sys.toml")
    source.add_argument("--dev", action="store_true", help="no configuration: embedded PostgreSQL, sample processors")
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--check-config", action="store_true", help="list every mistake; makes the processors, starts nothing"
    )
    action.add_argument("--migrate-only", action="store_true", help="bring the database up to date, then exit")
    parser.add_argument("--data", metavar="DIR", type=Path, help="with --dev: keep the database here")
    parser.add_argument("--http", metavar="ADDRESS", help=f"with --dev: default {DEV_HTTP}")
    parser.add_argument("--thrift", metavar="ADDRESS", help=f"with --dev: default {DEV_THRIFT}")
    parser.add_argument("--processes", metavar="N", type=_count, default=1, help="engine processes, default: 1")
    levels = ("debug", "info", "warning", "error")
    parser.add_argument("--log-level", choices=levels, default="info", help="default: info")
    options = parser.parse_args(arguments)
    if not options.dev and (options.data, options.http, options.thrift) != (None, None, None):
        parser.error("--data, --http and --thrift go with --dev")
    return options


def _count(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if not 1 <= number <= MOST_PROCESSES:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to {MOST_PROCESSES}, got {text!r}")
    return number


@contextmanager
def _configuration(options: argparse.Namespace) -> Iterator[configuration.Config]:
    if not options.dev:
        yield configuration.load(options.config)
        return
    with signals(dict.fromkeys(STOP_SIGNALS, _give_up)), _embedded(options.data) as postgres:
        logger.info("embedded PostgreSQL %d: %s", postgres.version, postgres.home)
        listen = {"http": options.http or DEV_HTTP, "thrift": options.thrift or DEV_THRIFT}
        yield configuration.load(dev_config(postgres, **listen))


def _embedded(data: Path | None) -> EmbeddedPostgres:
    """Started as a whole, whatever is signalled meanwhile: an initdb broken off leaves files behind."""
    stop = Event()
    with signals({number: on_stop(stop, lambda: None) for number in STOP_SIGNALS}):
        postgres = EmbeddedPostgres.start(data)
    if stop.is_set():
        postgres.close()
        sys.exit(EXIT_FAILED)
    return postgres


def _give_up(_signum: int, _frame: FrameType | None) -> None:
    """Signalled before the node runs, or after."""
    sys.exit(EXIT_FAILED)


def _run(options: argparse.Namespace, config: configuration.Config) -> int:
    node = Node(config)
    if options.check_config:
        print("the configuration is fine")
        return 0
    if options.migrate_only:
        node.migrate()
        print("the database is up to date")
        return 0
    if options.processes > 1:
        return _serve_fleet(Fleet(config, options.processes, logging.getLogger().level), config)
    return serve(node, partial(announce, node))


def announce(node: Node) -> None:
    announce_ports(node.http_address, node.thrift_address, tls=node.has_tls)
    announce_ready()


def _serve_fleet(fleet: Fleet, config: configuration.Config) -> int:
    stop = Event()

    def on_dump(_signum: int, _frame: FrameType | None) -> None:
        fleet.signal(signal.SIGUSR1)

    handlers = {number: on_stop(stop, fleet.kill) for number in STOP_SIGNALS}
    with signals({**handlers, signal.SIGUSR1: on_dump}):
        fleet.start()
        try:
            announce_ports(fleet.address("http"), fleet.address("thrift"), tls=config.listen.tls is not None)
            fleet.watch(stop, announce_ready)
        finally:
            logger.info("stopping")
            fleet.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
