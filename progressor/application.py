"""The composition root: the one module that knows all parts and puts them together.

Root (one_for_one)
|- database NAME (rest_for_one)       writer, lease keeper, listener
|- cache NAME (one_for_one)           replication, keeper (if a namespace is cached)
|- namespace NAME (one_for_all)       scheduler, worker pool, scanner, zombie collector
|- notifier NAME                      publishes the outbox of a namespace
|- http                               metrics, health, the Automaton, the native service
|- thrift                             the native service
"""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from threading import Event
from time import monotonic
from types import TracebackType
from typing import Any, Self, TypeAlias

from prometheus_client import generate_latest

from progressor import config as configuration
from progressor import modernizer, processor
from progressor.api import Client, Engine, Namespace
from progressor.cache import prerequisites, publication
from progressor.cache.cache import Cache, Memory
from progressor.cache.collector import CacheCollector
from progressor.cache.feed import Feed
from progressor.cache.keeper import CacheKeeper
from progressor.cache.replication import Replication
from progressor.config import Config, KafkaClientConfig, NamespaceConfig, NotifierConfig, OnDeadLetter
from progressor.engine.directory import Directory, Role
from progressor.engine.history import Histories
from progressor.engine.lease import Lease, LeaseKeeper
from progressor.engine.messages import Announced, Drain, Load, LoadFigures, Settle
from progressor.engine.notifier import Notifier, Standing
from progressor.engine.ports import Peer, Publisher, Streams
from progressor.engine.ready import ReadyQueue
from progressor.engine.scanner import Scanner
from progressor.engine.scheduler import Scheduler
from progressor.engine.tokens import Tokens
from progressor.engine.worker import Workshop
from progressor.engine.worker_pool import WorkerPool
from progressor.engine.writer import Writer
from progressor.engine.zombie_collector import ZombieCollector
from progressor.errors import ConfigError, ProgressorError
from progressor.kafka import producer
from progressor.metrics import Metrics
from progressor.model import Health
from progressor.modernizer import Modernizer
from progressor.otp import (
    Actor,
    ActorDead,
    CallTimeout,
    ChildSpec,
    ChildStartFailed,
    Exit,
    Ref,
    Strategy,
    Supervisor,
    Timer,
    WhichChildren,
    start_root,
)
from progressor.processor import Processor
from progressor.rpc.access import Access
from progressor.rpc.automaton import Automaton
from progressor.rpc.http import HttpServer, Pages
from progressor.rpc.listener import StopAccepting, tls_context
from progressor.rpc.native import Native
from progressor.rpc.tcp import TcpServer
from progressor.storage import migrate
from progressor.storage.committer import Committer
from progressor.storage.leases import PostgresLeases
from progressor.storage.listener import Listener
from progressor.storage.outbox import PostgresOutbox
from progressor.storage.pool import Pool
from progressor.storage.postgres import Pools, PostgresStorage

logger = logging.getLogger(__name__)

STALE_MARGIN = 5.0
"""Seconds beyond step and scan timeouts after which the original takes a running task for a zombie."""
HISTORY_BYTES = 64 * 1024 * 1024
HEALTH_PATIENCE = 1.0
DRAIN_POLL = 0.02
MODERNIZERS = 4
"""Requests to modernize that run at the same time; each takes long, and waits for the modernizer most of it."""
RESTARTS, RESTART_PERIOD = 10, 60.0
MakePublisher: TypeAlias = Callable[[str, KafkaClientConfig, NotifierConfig], Publisher]
"""Of the namespace of this name."""


@dataclass(frozen=True, slots=True)
class _Database:
    """The parts of a database that outlive the restarts of its actors."""

    name: str
    conninfo: Mapping[str, Any]
    namespaces: tuple[str, ...]
    lease: Lease
    pools: Mapping[str, Any]


class Node:
    """A node of the cluster. `with Node.from_config(...) as node:` runs it; `node.client` has the verbs.

    It starts once: after a stop, or a start that failed, there has to be another one.
    """

    def __init__(
        self,
        config: Config,
        listeners: Mapping[str, socket.socket] | None = None,
        pages: Pages | None = None,
        make_publisher: MakePublisher = producer.KafkaPublisher,
    ) -> None:
        """Makes the processors and modernizers, and starts nothing.

        Raises ConfigError with all that is found: settings that librdkafka refuses, no such processor or modernizer, or
        one whose constructor raises, a certificate that does not fit its key.

        For one of several processes that serve the same ports: `listeners` are the sockets that they share, by their
        keys in `[listen]`, and `pages` speak for all of them.
        """
        self._config = config
        self._listeners = listeners or {}
        self._pages = pages or self
        problems: list[str] = []
        with _collecting(problems):
            producer.check(config.kafka.values())
        self._processors, self._modernizers = _plugins(config.namespaces.values(), problems)
        if config.listen.tls is not None:
            with _collecting(problems):
                tls_context(config.listen.tls)
        if problems:
            raise ConfigError(problems)
        self.metrics = Metrics()
        self._directory = Directory()
        self._tokens = Tokens()
        self._databases = {db.name: db for db in _databases(config)}
        self._storages = {name: self._storage(ns) for name, ns in config.namespaces.items()}
        self._make_publisher = make_publisher
        self._notifiers = {ns.name: ns.notifier for ns in config.namespaces.values() if ns.notifier is not None}
        self._standings = {name: Standing() for name in self._notifiers}
        self._stopping = Event()
        self._memory = Memory(config.cache_max_bytes)
        self._feeds = self._fed_by()
        self.metrics.registry.register(CacheCollector(self._feeds, self._memory))
        self._is_started = False
        self._root: Ref | None = None
        self._draining = False
        self._failed = Event()
        self.http_address: tuple[str, int] | None = None
        self.thrift_address: tuple[str, int] | None = None

    @classmethod
    def from_config(cls, source: str | os.PathLike[str] | Mapping[str, Any] | Config) -> Self:
        """From a file, a dictionary of the same form, or what `config.load` made of one."""
        return cls(source if isinstance(source, Config) else configuration.load(source))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def migrate(self) -> None:
        for db in self._databases.values():
            migrate.migrate(db.conninfo, db.namespaces)
        for ns in self._config.namespaces.values():
            if ns.storage.cache is not None:
                publication.publish(self._database_of(ns.name).conninfo, [ns.name])

    def check_feeds(self) -> None:
        """Raises CacheUnavailable when a database cannot feed the caches, StorageUnavailable."""
        for name, feed in self._feeds.items():
            prerequisites.prepare(self._config.databases[name].conninfo(), list(feed.caches))

    def start(self) -> None:
        """Raises StorageUnavailable, StorageRejected when a migration does not apply, SchemaOutdated when it may not
        migrate, CacheUnavailable and CannotListen; RuntimeError when it was started before."""
        if self._is_started:
            raise RuntimeError("a node starts once: make another one")
        self._is_started = True
        if self._config.migration_enabled:
            self.migrate()
        for db in self._databases.values():
            migrate.check(db.conninfo, db.namespaces)
        self.check_feeds()
        for db in self._databases.values():
            for pool in db.pools.values():
                pool.open()
        self._timer = Timer()
        readers = sum(self._config.pools[ns.storage.front_pool].size for ns in self._config.namespaces.values())
        self._readers = ThreadPoolExecutor(readers, "reader")
        self._modernizing = ThreadPoolExecutor(MODERNIZERS, "modernizer")
        self.client = Client(self._engine())
        try:
            self._root = start_root(self._tree, "progressor", self._root_exited)
        except BaseException as error:
            self._close()
            foreseen = _foreseen(error)
            if foreseen is None:
                raise
            raise foreseen from foreseen.__cause__
        logger.info("node %s runs %s", self._config.node_name, ", ".join(self._config.namespaces))

    def stop(self, *, drain: bool = True) -> None:
        """Takes no new work, lets what runs end for at most `drain_timeout` seconds, hands the rest back."""
        if self._root is None:
            return
        if drain:
            self._drain()
        self._stopping.set()
        self._close_pools()  # else an actor that waits for a connection would hold up the stop
        self._root.stop(math.inf)
        self._root = None
        self._close()

    def wait_failed(self, timeout: float | None = None) -> bool:
        """Whether the tree has given up; waits for it."""
        return self._failed.wait(timeout)

    def health(self, namespaces: Iterable[str] | None = None) -> tuple[Health, Mapping[str, Any]]:
        """Whether these namespaces, or all, work; details that JSON can carry."""
        names = self._config.namespaces if namespaces is None else namespaces
        details = {name: self._namespace_health(name) for name in names}
        passing = all(not found["problems"] for found in details.values())
        return (Health.PASSING if passing else Health.CRITICAL), details

    @property
    def has_tls(self) -> bool:
        """Whether the two ports speak TLS only."""
        return self._config.listen.tls is not None

    @property
    def is_ready(self) -> bool:
        """Whether it should be sent requests."""
        return (
            self._root is not None and not self._draining and all(db.lease.is_valid for db in self._databases.values())
        )

    def scrape(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        for ns in self._config.namespaces:
            figures = self._ask(Role.SCHEDULER, ns, Load())
            if isinstance(figures, LoadFigures):
                self.metrics.namespace(ns).load(
                    ready=figures.ready,
                    oldest_ready=figures.oldest_ready,
                    expected=figures.expected,
                    waiting_callers=figures.waiting_callers,
                )
        for ns, standing in self._standings.items():
            self.metrics.namespace(ns).outbox(leads=standing.leads, **asdict(standing.backlog))
        for db in self._databases.values():
            self.metrics.database(db.name, db.lease.age, db.pools)
        return generate_latest(self.metrics.registry)

    # The tree

    def _tree(self) -> Supervisor:
        children = [
            *(ChildSpec(f"database {name}", self._of_database(db)) for name, db in self._databases.items()),
            *(ChildSpec(f"cache {name}", self._of_feed(name, feed)) for name, feed in self._feeds.items()),
            *(ChildSpec(f"namespace {ns.name}", self._of_namespace(ns)) for ns in self._config.namespaces.values()),
            *(ChildSpec(f"notifier {name}", self._notifier(name, found)) for name, found in self._notifiers.items()),
        ]
        if self._config.listen.http is not None:
            children.append(ChildSpec("http", self._http(self._config.listen.http)))
        if self._config.listen.thrift is not None:
            children.append(ChildSpec("thrift", self._thrift(self._config.listen.thrift)))
        return Supervisor(children, intensity=RESTARTS, period=RESTART_PERIOD)

    def _of_database(self, db: _Database) -> Callable[[], Supervisor]:
        config, directory, lease = self._config, self._directory, db.lease
        patience = config.lease_timeout / 2
        streams = {
            name: Streams(notifier.topic is not None, notifier.lifecycle_topic is not None)
            for name, notifier in self._notifiers.items()
        }

        def keeper() -> Actor:
            leases = PostgresLeases(db.conninfo, patience)
            return LeaseKeeper(
                database=db.name,
                node_name=config.node_name,
                namespaces=db.namespaces,
                lease=lease,
                store=leases,
                interval=config.heartbeat_interval,
                directory=directory,
                timer=self._timer,
            )

        def writer() -> Actor:
            return Writer(db.name, lambda: Committer(db.conninfo, streams), lease, directory, self.metrics)

        def listener() -> Actor:
            return Listener(db.conninfo, lambda: lease.epoch, self._announce)

        # A writer that dies takes results with it. The lease stands behind it, so that its death ends the epoch too:
        # what the node had in its hands is taken over, and nothing waits for what will not come.
        children = [ChildSpec("writer", writer), ChildSpec("lease", keeper), ChildSpec("listener", listener)]
        return lambda: Supervisor(children, strategy=Strategy.REST_FOR_ONE, intensity=RESTARTS, period=RESTART_PERIOD)

    def _of_feed(self, name: str, feed: Feed) -> Callable[[], Supervisor]:
        conninfo, timer = self._config.databases[name].conninfo(), self._timer
        pause, idle = self._config.cache_reconnect_timeout / 1000, self._config.cache_cleanup_timeout / 1000
        children = [
            ChildSpec("replication", lambda: Replication(conninfo, feed, pause, timer)),
            ChildSpec("keeper", lambda: CacheKeeper(conninfo, feed, idle, timer)),
        ]
        return lambda: Supervisor(children, intensity=RESTARTS, period=RESTART_PERIOD)

    def _of_namespace(self, ns: NamespaceConfig) -> Callable[[], Supervisor]:
        db = self._database_of(ns.name)
        storage = self._storages[ns.name]
        directory, tokens, timer = self._directory, self._tokens, self._timer
        metrics = self.metrics.namespace(ns.name)
        histories, ready = Histories(HISTORY_BYTES), ReadyQueue(lambda: db.lease.is_valid)
        shop = Workshop(
            ns=ns.name,
            database=db.name,
            processor=self._processors[ns.name],
            policy=ns.retry_policy,
            step_timeout=ns.process_step_timeout,
            storage=storage,
            lease=db.lease,
            stop=self._stopping,
            directory=directory,
            histories=histories,
            ready=ready,
            tokens=tokens,
            metrics=metrics,
        )
        stale = ns.process_step_timeout + ns.task_scan_timeout + STALE_MARGIN

        def scheduler() -> Actor:
            return Scheduler(
                ns=ns.name,
                database=db.name,
                worker_count=ns.worker_pool_size,
                horizon=2 * ns.task_scan_timeout,
                lease=db.lease,
                directory=directory,
                histories=histories,
                ready=ready,
                tokens=tokens,
                timer=timer,
                metrics=metrics,
            )

        def pool() -> Actor:
            return WorkerPool(shop, ns.worker_pool_size, timer)

        def scanner() -> Actor:
            return Scanner(
                ns=ns.name,
                storage=storage,
                task_interval=ns.task_scan_timeout,
                call_interval=ns.call_scan_timeout,
                lease=db.lease,
                stop=self._stopping,
                directory=directory,
                timer=timer,
                metrics=metrics,
            )

        def collector() -> Actor:
            return ZombieCollector(
                ns=ns.name,
                storage=storage,
                policy=ns.retry_policy,
                interrupted=ns.retry_interrupted,
                stale=stale,
                scan_timeout=ns.task_scan_timeout,
                lease=db.lease,
                stop=self._stopping,
                directory=directory,
                tokens=tokens,
                timer=timer,
                metrics=metrics,
            )

        children = [
            ChildSpec("scheduler", scheduler),
            ChildSpec("worker_pool", pool),
            ChildSpec("scanner", scanner),
            ChildSpec("zombie_collector", collector),
        ]
        return lambda: Supervisor(children, strategy=Strategy.ONE_FOR_ALL, intensity=RESTARTS, period=RESTART_PERIOD)

    def _notifier(self, name: str, notifier: NotifierConfig) -> Callable[[], Actor]:
        db = self._database_of(name)

        def actor() -> Actor:
            return Notifier(
                name,
                PostgresOutbox(db.conninfo, name, holds_back=notifier.on_dead_letter is OnDeadLetter.WAIT),
                self._make_publisher(name, self._config.kafka[notifier.client], notifier),
                db.lease,
                self._standings[name],
                self._stopping,
                self._directory,
                self._timer,
                self.metrics.namespace(name),
            )

        return actor

    def _http(self, address: tuple[str, int]) -> Callable[[], Actor]:
        def announce(bound: tuple[str, int]) -> None:
            self.http_address = bound

        def server() -> Actor:
            dialects = {ns.name: ns.dialect for ns in self._config.namespaces.values()}
            requests, listen = self.metrics.requests, self._config.listen
            services = {"/v1/automaton": Automaton(self.client.future, dialects, requests).answer}
            where = self._listeners.get("http", address)
            native = self._native().answer
            return HttpServer(where, self._pages, announce, requests, services, listen.tls, listen.limits, native)

        return server

    def _thrift(self, address: tuple[str, int]) -> Callable[[], Actor]:
        def announce(bound: tuple[str, int]) -> None:
            self.thrift_address = bound

        def server() -> Actor:
            listen = self._config.listen
            where = self._listeners.get("thrift", address)
            return TcpServer(where, self._native(), announce, self.metrics.requests, listen.tls, listen.limits)

        return server

    def _native(self) -> Native:
        return Native(self.client.future, Access(self._config.listen.native), self.metrics.requests)

    # Its parts

    def _database_of(self, ns: str) -> _Database:
        return self._databases[self._config.pools[self._config.namespaces[ns].storage.pool].database]

    def _fed_by(self) -> Mapping[str, Feed]:
        """The caches of the namespaces that have one, by the database that feeds them."""
        feeds: dict[str, dict[str, Cache]] = {}
        for name, ns in self._config.namespaces.items():
            if ns.storage.cache is not None:
                source = partial(self._storages[name].reading, name)
                feeds.setdefault(ns.storage.cache, {})[name] = Cache(name, source, self._memory)
        return {database: Feed(caches) for database, caches in feeds.items()}

    def _feed_of(self, ns: str) -> Feed | None:
        name = self._config.namespaces[ns].storage.cache
        return None if name is None else self._feeds[name]

    def _storage(self, ns: NamespaceConfig) -> PostgresStorage:
        pools = self._database_of(ns.name).pools
        names = ns.storage
        return PostgresStorage(Pools(pools[names.pool], pools[names.scan_pool], pools[names.front_pool]))

    def _engine(self) -> Engine:
        caches = {name: cache for feed in self._feeds.values() for name, cache in feed.caches.items()}
        namespaces = {
            name: Namespace(
                name,
                self._database_of(name).name,
                self._storages[name],
                ns.process_step_timeout,
                self._modernizers.get(name),
                caches.get(name),
            )
            for name, ns in self._config.namespaces.items()
        }
        return Engine(
            namespaces,
            self._directory,
            self._tokens,
            self._timer,
            self._readers,
            self._modernizing,
            lambda: not (self._draining or self._stopping.is_set()),  # the ports are open before the start has ended
            self._pages.health,
        )

    def _namespace_health(self, ns: str) -> Mapping[str, Any]:
        lease, feed = self._database_of(ns).lease, self._feed_of(ns)
        figures = self._ask(Role.SCHEDULER, ns, Load())
        problems = [
            problem
            for problem, is_there in (
                ("the lease was not renewed: the database is away", not lease.is_valid),
                ("the scheduler does not answer", not isinstance(figures, LoadFigures)),
                ("there is no worker pool", self._directory.find(Role.WORKER_POOL, ns) is None),
                ("the node is stopping", self._draining),
            )
            if is_there
        ]
        details: dict[str, Any] = {
            "problems": problems,
            "node": self._config.node_name,
            "epoch": lease.epoch,
            "lease_age": _seconds(lease.age),
            "workers": self._config.namespaces[ns].worker_pool_size,
            "load": asdict(figures) if isinstance(figures, LoadFigures) else {},
            "totals": self.metrics.totals(ns),
            "nodes": [_shown(peer) for peer in lease.peers],
        }
        if ns in self._standings:
            details["outbox"] = self._outbox_health(ns, problems)
        if feed is not None:
            details["cache"] = feed.health
        return details

    def _outbox_health(self, ns: str, problems: list[str]) -> Mapping[str, Any]:
        """What the publisher of a namespace knows of its outbox; the other nodes know nothing."""
        standing = self._standings[ns]
        if standing.age > self._notifiers[ns].max_age:
            problems.append(f"messages have been waiting for {standing.age:.0f} s: {standing.trouble or 'no progress'}")
        figures = asdict(standing.backlog) if standing.leads else {}
        return {"publisher": standing.leads, "trouble": standing.trouble, **figures}

    def _announce(self, ns: str, tasks: Sequence[int]) -> None:
        self._directory.cast(Role.SCANNER, ns, Announced(tasks))

    def _root_exited(self, exit_: Exit) -> None:
        if self._root is not None and exit_.ref.stop_reason is None:
            logger.critical("the supervision tree has given up: %r", exit_.reason)
        self._failed.set()

    def _close(self) -> None:
        for executor in (self._readers, self._modernizing):
            executor.shutdown(wait=False)  # what waits for a thread fails at once: the pools are closed
        self._timer.close()
        self.client.future.close()
        self._close_pools()

    def _close_pools(self) -> None:
        for db in self._databases.values():
            for pool in db.pools.values():
                pool.close()

    # Stop

    def _drain(self) -> None:
        self._leave_shared_ports()
        self._draining = True
        deadline = monotonic() + self._config.drain_timeout
        for ns in self._config.namespaces:
            self._ask(Role.SCHEDULER, ns, Drain())
        for database in self._databases:
            self._ask(Role.WRITER, database, Settle())
        while monotonic() < deadline and any(self._held(ns) for ns in self._config.namespaces):
            Event().wait(DRAIN_POLL)
        for db in self._databases.values():
            for ns in db.namespaces:  # it hands back what did not begin, if there is a database to take it
                left = deadline - monotonic() if db.lease.is_valid else 0.0
                self._ask(Role.SCANNER, ns, Settle(), max(HEALTH_PATIENCE, left))
        for ns in self._notifiers:
            self._ask(Role.NOTIFIER, ns, Settle(), max(HEALTH_PATIENCE, deadline - monotonic()))

    def _leave_shared_ports(self) -> None:
        """Who comes now is for the other processes."""
        with suppress(ActorDead, CallTimeout):
            children = self._root.call(WhichChildren(), HEALTH_PATIENCE) if self._listeners and self._root else ()
            for child in children:
                if child.id in self._listeners and child.ref is not None:
                    child.ref.call(StopAccepting(), HEALTH_PATIENCE)
        for listener in self._listeners.values():
            listener.close()

    def _held(self, ns: str) -> bool:
        """Whether something is left; who is too busy to answer has something."""
        figures = self._ask(Role.SCHEDULER, ns, Load())
        if isinstance(figures, LoadFigures):
            return figures.held > 0
        return self._directory.find(Role.SCHEDULER, ns) is not None

    def _ask(self, role: Role, owner: str, message: Any, patience: float = HEALTH_PATIENCE) -> object:
        """The answer of whoever plays the role; None when nobody does, or not in time."""
        ref = self._directory.find(role, owner)
        if ref is None:
            return None
        try:
            answer: object = ref.call(message, patience)
        except (ActorDead, CallTimeout):
            return None
        return answer


def _plugins(
    namespaces: Iterable[NamespaceConfig], problems: list[str]
) -> tuple[Mapping[str, Processor], Mapping[str, Modernizer]]:
    """The processors, and the modernizers of those that have one, by namespace; what is wrong goes to the problems."""
    processors: dict[str, Processor] = {}
    modernizers: dict[str, Modernizer] = {}
    for ns in namespaces:
        with _collecting(problems, f'progressor.namespaces."{ns.name}".processor: '):
            processors[ns.name] = processor.resolve(ns.processor.client, ns.processor.options)
        if (given := ns.modernizer) is not None:
            with _collecting(problems, f'progressor.namespaces."{ns.name}".modernizer: '):
                modernize = modernizer.resolve(given.client, given.options)
                modernizers[ns.name] = Modernizer(given.format_version, modernize)
    return processors, modernizers


@contextmanager
def _collecting(problems: list[str], where: str = "") -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        problems += [f"{where}{problem}" for problem in error.problems]


def _foreseen(error: BaseException | None) -> ProgressorError | None:
    """What kept an actor from starting, if it is an error of ours: a port that is taken, the database gone."""
    while isinstance(error, ChildStartFailed):
        error = error.__cause__
    return error if isinstance(error, ProgressorError) else None


def _databases(config: Config) -> Iterable[_Database]:
    """The databases that some namespace uses."""
    for name, database in config.databases.items():
        namespaces = tuple(
            ns.name for ns in config.namespaces.values() if config.pools[ns.storage.pool].database == name
        )
        if namespaces:
            pools = {
                pool.name: Pool(database.conninfo(), pool.size, pool.name)
                for pool in config.pools.values()
                if pool.database == name
            }
            yield _Database(name, database.conninfo(), namespaces, Lease(config.lease_timeout), pools)


def _shown(peer: Peer) -> Mapping[str, Any]:
    return asdict(peer) | {"started": peer.started.isoformat(), "seconds_left": _seconds(peer.seconds_left)}


def _seconds(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None
