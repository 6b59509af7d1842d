"""Reads `sys.toml` and checks it whole, before anything starts (docs/operations.md, "Configuration").

`load` answers a `Config` that is right in every part, or raises one `ConfigError` with a line for each
mistake. The file is read through `_Reader`: a table that knows its path, collects problems, remembers which
keys it was asked for, and names the others when it is closed. A namespace is such a table laid over
`[progressor.defaults]`, laid over the built-in defaults; a mistake is reported once, where it was written.

Secrets reach neither a problem nor a repr: what may hold one is checked without showing it, and its field is
left out of the repr.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import socket
import threading
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Self, TypeAlias, TypeVar

from progressor.checks import SENDABLE, is_host, is_sendable
from progressor.errors import ConfigError
from progressor.model import TaskType

T = TypeVar("T")

LONGEST_NAMESPACE: Final = 63 - len("_tasks_idempotency_key_idx")
"""Bytes of UTF-8 that a namespace may have: PostgreSQL cuts longer identifiers silently."""

MAX_AGE: Final = 60.0
"""Seconds that messages may wait to be published, if nothing else is said."""

STORAGE_CLIENTS: Final = ("postgres",)

RETRYABLE_WHEN_INTERRUPTED: Final = (TaskType.INIT, TaskType.CALL, TaskType.REPAIR)

LIBPQ_PARAMETERS: Final = (
    "hostaddr", "passfile", "require_auth", "channel_binding", "connect_timeout", "options",
    "application_name", "fallback_application_name", "keepalives", "keepalives_idle",
    "keepalives_interval", "keepalives_count", "tcp_user_timeout", "sslmode", "sslnegotiation",
    "sslcompression", "sslcert", "sslkey", "sslpassword", "sslcertmode", "sslrootcert", "sslcrl",
    "sslcrldir", "sslsni", "requirepeer", "ssl_min_protocol_version", "ssl_max_protocol_version",
    "krbsrvname", "gssencmode", "gssdelegation", "gsslib", "target_session_attrs", "load_balance_hosts",
)  # fmt: skip
"""Keys of `[databases.x]` that libpq gets as they are (PostgreSQL manual, "Parameter Key Words").

Left out: what has its own name here, and what the storage sets itself (`client_encoding`, `replication`).
"""

KEEPALIVES: Final[Mapping[str, int]] = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3}
"""A connection that has died without a word while an answer is awaited: nothing else would notice within hours."""

LIBRDKAFKA_PROMISES: Final = (
    "acks", "request.required.acks", "enable.idempotence", "enable.gapless.guarantee", "max.in.flight",
    "max.in.flight.requests.per.connection", "retries", "message.send.max.retries", "message.timeout.ms",
    "delivery.timeout.ms", "queuing.strategy", "partitioner", "transactional.id", "transaction.timeout.ms",
)  # fmt: skip
"""Settings of librdkafka on which it depends that no message is lost and those of a process stay in order."""
LIBRDKAFKA_ENDPOINTS: Final = ("bootstrap.servers", "metadata.broker.list")

_NODE_DEFAULTS: Final[Mapping[str, Any]] = {
    "migration_enabled": True,
    "lease_timeout": 5,
    "heartbeat_interval": 1,
    "drain_timeout": 30,
    "cache_reconnect_timeout": 5000,
    "cache_cleanup_timeout": 300_000,
    "cache_max_bytes": 268_435_456,
}
_NAMESPACE_DEFAULTS: Final[Mapping[str, Any]] = {
    "worker_pool_size": 200,
    "process_step_timeout": 30,
    "task_scan_timeout": 10,
    "call_scan_timeout": 3,
    "retry_interrupted": [],
    "dialect": "plain",
    "retry_policy": {
        "initial_timeout": 3,
        "backoff_coefficient": 1.2,
        "max_timeout": 180,
        "max_attempts": 2,
        "non_retryable_errors": [],
    },
    "storage": {
        "client": "postgres",
        "pool": "default_pool",
        "scan_pool": "default_scan_pool",
        "front_pool": "default_front_pool",
    },
}
_DATABASE_DEFAULTS: Final[Mapping[str, Any]] = {"host": "127.0.0.1", "port": 5432}
_POOL_DEFAULTS: Final[Mapping[str, Any]] = {"size": 10}


# What a file becomes


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    initial_timeout: float
    backoff_coefficient: float
    max_timeout: float
    max_attempts: int
    non_retryable_errors: frozenset[str]


@dataclass(frozen=True, slots=True)
class ProcessorConfig:
    """`client`: a short name, `module:Name` or the name of an entry point, resolved elsewhere."""

    client: str
    options: Mapping[str, Any] = field(repr=False)


class OnDeadLetter(StrEnum):
    """What the messages of a process do behind one that the broker refuses."""

    WAIT = "wait"
    FOLLOW = "follow"


@dataclass(frozen=True, slots=True)
class ModernizerConfig:
    """`client` and `options` as those of a processor; `format_version` is the current one."""

    client: str
    format_version: int
    options: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class NotifierConfig:
    """`client` names a Kafka client; at least one topic is given. `max_age`: seconds that a message may wait."""

    client: str
    topic: str | None
    lifecycle_topic: str | None
    on_dead_letter: OnDeadLetter = OnDeadLetter.WAIT
    max_age: float = MAX_AGE


@dataclass(frozen=True, slots=True)
class StorageConfig:
    """The three pools are of one database; `cache` names it too, or the same one with another role."""

    client: str
    pool: str
    scan_pool: str
    front_pool: str
    cache: str | None


class Dialect(StrEnum):
    """How the Values of the machinegun protocol are stored (docs/thrift.md, "Values")."""

    PLAIN = "plain"
    HELLGATE = "hellgate"


@dataclass(frozen=True, slots=True)
class NamespaceConfig:
    name: str
    worker_pool_size: int
    process_step_timeout: float
    task_scan_timeout: float
    call_scan_timeout: float
    retry_policy: RetryPolicy
    retry_interrupted: frozenset[TaskType]
    dialect: Dialect
    processor: ProcessorConfig
    modernizer: ModernizerConfig | None
    notifier: NotifierConfig | None
    storage: StorageConfig


@dataclass(frozen=True, slots=True)
class DatabaseConfig:
    """`parameters` are libpq's own (TLS, timeouts); one of them may be a secret too (`sslpassword`)."""

    name: str
    host: str
    port: int
    database: str
    username: str
    password: str | None = field(repr=False)
    parameters: Mapping[str, str] = field(repr=False)

    @property
    def place(self) -> tuple[str, int, str]:
        """Where the data are, whoever connects to them."""
        return self.host, self.port, self.database

    def conninfo(self) -> dict[str, Any]:
        """Keyword arguments for `psycopg.connect`, the password among them."""
        known = {"host": self.host, "port": self.port, "dbname": self.database, "user": self.username}
        secret = {} if self.password is None else {"password": self.password}
        return {**known, **KEEPALIVES, **secret, **self.parameters}


@dataclass(frozen=True, slots=True)
class PoolConfig:
    name: str
    database: str
    size: int


@dataclass(frozen=True, slots=True)
class KafkaClientConfig:
    """`config` goes to librdkafka as it is."""

    name: str
    endpoints: tuple[str, ...]
    config: Mapping[str, str | int | float | bool] = field(repr=False)


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """Files in PEM. With `client_ca` only clients with a certificate of these authorities are served."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server grants a client: bytes, and seconds."""

    request_bytes: int = 32 * 1024 * 1024
    head_bytes: int = 64 * 1024
    """Of a request line with its headers."""
    connections: int = 5000
    idle_timeout: float = 60.0
    """How long a connection may stay open between requests."""
    stall_timeout: float = 10.0
    """How long a client may take to send a request, and to go on reading its answer."""
    stop_timeout: float = 2.0
    """How long a server that stops lets the connections end that are open."""


@dataclass(frozen=True, slots=True)
class NativeConfig:
    """Who may use the native service: who knows the secret, and has a certificate with one of the names. None: all."""

    secret: str | None = field(default=None, repr=False)
    clients: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class ListenConfig:
    """Host and port of each server; None: it is not started. Port 0: any free one."""

    http: tuple[str, int] | None
    thrift: tuple[str, int] | None
    tls: TlsConfig | None = None
    limits: Limits = Limits()
    native: NativeConfig = NativeConfig()


@dataclass(frozen=True, slots=True)
class Config:
    """Durations in seconds, but `cache_reconnect_timeout` and `cache_cleanup_timeout` in milliseconds."""

    migration_enabled: bool
    node_name: str
    lease_timeout: float
    heartbeat_interval: float
    drain_timeout: float
    cache_reconnect_timeout: int
    cache_cleanup_timeout: int
    cache_max_bytes: int
    namespaces: Mapping[str, NamespaceConfig]
    databases: Mapping[str, DatabaseConfig]
    pools: Mapping[str, PoolConfig]
    kafka: Mapping[str, KafkaClientConfig]
    listen: ListenConfig


def load(source: str | os.PathLike[str] | Mapping[str, Any]) -> Config:
    """The configuration in a TOML file, or in a mapping like one; `ConfigError` lists every mistake."""
    problems: list[str] = []
    raw = source if isinstance(source, Mapping) else _parse(Path(source))
    config = _config(_Reader(problems, ("", raw)))
    if problems:
        raise ConfigError(problems)
    return config


def _parse(path: Path) -> Mapping[str, Any]:
    data = b""
    try:
        data = path.read_bytes()
        return tomllib.loads(data.decode("utf-8-sig"))
    except OSError as exc:
        problem = exc.strerror or type(exc).__name__
    except UnicodeDecodeError as exc:
        line = exc.object.count(b"\n", 0, exc.start) + 1
        problem = f"not UTF-8 (at line {line})"
    except RecursionError:
        problem = "nested too deeply"
    except ValueError as exc:  # tomllib's own error, and int() refusing thousands of digits
        end = data.count(b"\n") + 1
        problem = str(exc).replace("at end of document", f"at line {end}, the end of the file")
    # Raised outside the handlers: an error in the chain would carry the file's text, with its passwords.
    raise ConfigError([f"{path}: {problem}"])


# The parts of the file


def _config(root: _Reader) -> Config:
    with root:
        databases = {name: _database(name, table) for name, table in root.table("databases").tables()}
        pools = {name: _pool(name, table, databases) for name, table in root.table("pools").tables()}
        with root.table("kafka") as reader:
            kafka = {name: _kafka_client(name, table) for name, table in reader.table("clients").tables()}
        listen = _listen(root.table("listen"))
        node = root.table("progressor")
        with node.over((node.path, {"node_name": socket.gethostname(), **_NODE_DEFAULTS})) as node:
            lease_timeout, heartbeat_interval = _lease(node)
            return Config(
                migration_enabled=node.take("migration_enabled", _boolean),
                node_name=node.take("node_name", _text),
                lease_timeout=lease_timeout,
                heartbeat_interval=heartbeat_interval,
                drain_timeout=node.take("drain_timeout", _duration),
                cache_reconnect_timeout=node.take("cache_reconnect_timeout", _positive_integer),
                cache_cleanup_timeout=node.take("cache_cleanup_timeout", _positive_integer),
                cache_max_bytes=node.take("cache_max_bytes", _positive_integer),
                namespaces=_namespaces(node, _Names(databases, pools, kafka)),
                databases=databases,
                pools=pools,
                kafka=kafka,
                listen=listen,
            )


def _lease(node: _Reader) -> tuple[float, float]:
    """A lease outlives a heartbeat that comes too late or gets lost."""
    lease, interval = node.take("lease_timeout", _duration), node.take("heartbeat_interval", _duration)
    if not _is_wrong(lease, interval) and lease <= 2 * interval:
        least = f"2 x heartbeat_interval ({interval:g})"
        node.problem("lease_timeout", f"expected more than {least}, got {lease:g}")
    return lease, interval


@dataclass(frozen=True, slots=True)
class _Names:
    """What a namespace may refer to."""

    databases: Mapping[str, DatabaseConfig]
    pools: Mapping[str, PoolConfig]
    kafka: Mapping[str, KafkaClientConfig]


def _namespaces(node: _Reader, names: _Names) -> dict[str, NamespaceConfig]:
    defaults = node.table("defaults", complete=False)
    _namespace("", defaults, names)
    reader = node.table("namespaces")
    if reader.complete and not reader.names():
        reader.problem(None, "expected at least one namespace")
    namespaces = {}
    for name, table in reader.tables():
        _check_namespace_name(name, table)
        layered = table.over(*defaults.layers, (defaults.path, _NAMESPACE_DEFAULTS))
        namespaces[name] = _namespace(name, layered, names)
    return namespaces


def _check_namespace_name(name: str, table: _Reader) -> None:
    """Tables and indexes of a namespace are named after it."""
    size = len(name.encode(errors="replace"))
    if not name:
        table.problem(None, "the name of a namespace is not empty")
    elif not name.isprintable():
        table.problem(None, "the name of a namespace holds no control characters")
    elif size > LONGEST_NAMESPACE:
        table.problem(None, f"the name of a namespace has at most {LONGEST_NAMESPACE} bytes, got {size}")


def _namespace(name: str, reader: _Reader, names: _Names) -> NamespaceConfig:
    with reader:
        return NamespaceConfig(
            name=name,
            worker_pool_size=reader.take("worker_pool_size", _positive_integer),
            process_step_timeout=reader.take("process_step_timeout", _duration),
            task_scan_timeout=reader.take("task_scan_timeout", _duration),
            call_scan_timeout=reader.take("call_scan_timeout", _duration),
            retry_policy=_retry_policy(reader.table("retry_policy", merged=True)),
            retry_interrupted=frozenset(reader.each("retry_interrupted", _retry_interrupted)),
            dialect=reader.take("dialect", _dialect),
            processor=_processor(reader.table("processor")),
            modernizer=_modernizer(reader.table("modernizer")) if reader.has("modernizer") else None,
            notifier=_notifier(reader.table("notifier"), names) if reader.has("notifier") else None,
            storage=_storage(reader.table("storage", merged=True), names),
        )


def _retry_policy(reader: _Reader) -> RetryPolicy:
    with reader:
        return RetryPolicy(
            initial_timeout=reader.take("initial_timeout", _duration),
            backoff_coefficient=reader.take("backoff_coefficient", _coefficient),
            max_timeout=reader.take("max_timeout", _duration),
            max_attempts=reader.take("max_attempts", _positive_integer),
            non_retryable_errors=frozenset(reader.each("non_retryable_errors", _text)),
        )


def _processor(reader: _Reader) -> ProcessorConfig:
    with reader:
        return ProcessorConfig(
            client=reader.take("client", _text), options=dict(reader.optional("options", _table) or {})
        )


def _modernizer(reader: _Reader) -> ModernizerConfig:
    with reader:
        return ModernizerConfig(
            client=reader.take("client", _text),
            format_version=reader.take("format_version", _positive_integer),
            options=dict(reader.optional("options", _table) or {}),
        )


def _notifier(reader: _Reader, names: _Names) -> NotifierConfig:
    with reader:
        if reader.complete and not (reader.has("topic") or reader.has("lifecycle_topic")):
            reader.problem(None, "expected topic, lifecycle_topic or both")
        return NotifierConfig(
            client=reader.take("client", _reference("Kafka client", "kafka.clients", names.kafka)),
            topic=reader.optional("topic", _text),
            lifecycle_topic=reader.optional("lifecycle_topic", _text),
            on_dead_letter=reader.optional("on_dead_letter", _on_dead_letter) or OnDeadLetter.WAIT,
            max_age=reader.optional("max_age", _duration) or MAX_AGE,
        )


def _storage(reader: _Reader, names: _Names) -> StorageConfig:
    pool = _reference("pool", "pools", names.pools)
    with reader:
        storage = StorageConfig(
            client=reader.take("client", _one_of(STORAGE_CLIENTS)),
            pool=reader.take("pool", pool),
            scan_pool=reader.take("scan_pool", pool),
            front_pool=reader.take("front_pool", pool),
            cache=reader.optional("cache", _reference("database", "databases", names.databases)),
        )
    _check_one_database(reader, storage, names.pools)
    _check_cache(reader, storage, names)
    return storage


def _check_one_database(reader: _Reader, storage: StorageConfig, pools: Mapping[str, PoolConfig]) -> None:
    used = [name for name in (storage.pool, storage.scan_pool, storage.front_pool) if not _is_wrong(name)]
    databases = dict.fromkeys(pools[name].database for name in used)
    if len(databases) > 1 and not _is_wrong(*databases):
        got = " and ".join(map(_shown, databases))
        where = reader.written("pool", "scan_pool", "front_pool")
        reader.problem(None, f"pool, scan_pool and front_pool must be of one database, got {got}", where)


def _check_cache(reader: _Reader, storage: StorageConfig, names: _Names) -> None:
    """A cache is fed by the database of its namespace; by another role, perhaps."""
    if storage.cache is None or _is_wrong(storage.pool):
        return
    fed_by, of = (names.databases.get(name) for name in (storage.cache, names.pools[storage.pool].database))
    if fed_by is not None and of is not None and fed_by.place != of.place:
        got = f"{_shown(fed_by.name)}, which is another one than {_shown(of.name)}"
        reader.problem("cache", f"expected the database of the pools, got {got}", reader.written("cache"))


def _database(name: str, reader: _Reader) -> DatabaseConfig:
    with reader.over((reader.path, _DATABASE_DEFAULTS)) as table:
        given = {key: table.optional(key, _parameter) for key in LIBPQ_PARAMETERS}
        return DatabaseConfig(
            name=name,
            host=table.take("host", _text),
            port=table.take("port", _port),
            database=table.take("database", _text),
            username=table.take("username", _text),
            password=_one_secret(table, "password", _secret),  # none: libpq finds it, or needs none
            parameters={key: value for key, value in given.items() if value is not None},
        )


def _one_secret(reader: _Reader, name: str, check: _Check[str]) -> str | None:
    """At most one of three keys."""
    ways: Mapping[str, _Check[str]] = {
        name: _secret,
        f"{name}_env": _secret_in_environment,
        f"{name}_file": _secret_in_file,
    }
    given = [key for key in ways if reader.has(key)]
    if len(given) > 1:
        reader.problem(None, f"expected one of {', '.join(ways)}, got {' and '.join(given)}")
    secrets = [reader.optional(key, _both(ways[key], check)) for key in given]
    return secrets[0] if secrets else None


def _pool(name: str, reader: _Reader, databases: Mapping[str, DatabaseConfig]) -> PoolConfig:
    with reader.over((reader.path, _POOL_DEFAULTS)) as table:
        return PoolConfig(
            name=name,
            database=table.take("database", _reference("database", "databases", databases)),
            size=table.take("size", _positive_integer),
        )


def _kafka_client(name: str, reader: _Reader) -> KafkaClientConfig:
    with reader:
        return KafkaClientConfig(
            name=name,
            endpoints=tuple(reader.each("endpoints", _text, least=1)),
            config=dict(_settings(reader.table("config"))),
        )


def _settings(reader: _Reader, prefix: str = "") -> Iterator[tuple[str, str | int | float | bool]]:
    """librdkafka's names have dots, which TOML reads as nested tables when they are not quoted."""
    for key in reader.names():
        if reader.is_table(key):
            yield from _settings(reader.table(key), f"{prefix}{key}.")
            continue
        name = prefix + key
        if name in LIBRDKAFKA_PROMISES:
            reader.problem(key, f"{name} has a fixed value, so that messages arrive and stay in order: leave it out")
        elif name in LIBRDKAFKA_ENDPOINTS:
            reader.problem(key, f"{name} has its own key beside config: endpoints")
        yield name, reader.take(key, _setting)


def _listen(reader: _Reader) -> ListenConfig:
    with reader:
        http, thrift = reader.optional("http", _address), reader.optional("thrift", _address)
        tls = _tls(reader.table("tls")) if reader.has("tls") else None
        limits = _limits(reader.table("limits"))
        native = _native(reader.table("native"), tls)
    if http and http == thrift and http[1]:
        reader.problem("thrift", "expected another address than that of http")
    return ListenConfig(http, thrift, tls, limits, native)


def _tls(reader: _Reader) -> TlsConfig:
    with reader:
        return TlsConfig(
            certificate=reader.take("certificate", _file),
            key=reader.take("key", _file),
            client_ca=reader.optional("client_ca", _file),
        )


def _native(reader: _Reader, tls: TlsConfig | None) -> NativeConfig:
    with reader:
        secret = _one_secret(reader, "secret", _sendable)
        clients = frozenset(reader.each("clients", _text, least=1)) if reader.has("clients") else None
    if clients and (tls is None or tls.client_ca is None):
        reader.problem("clients", "needs listen.tls.client_ca, which signs the certificates with these names")
    return NativeConfig(secret, clients)


def _limits(reader: _Reader) -> Limits:
    with reader.over((reader.path, asdict(Limits()))) as table:
        return Limits(
            request_bytes=table.take("request_bytes", _positive_integer),
            head_bytes=table.take("head_bytes", _positive_integer),
            connections=table.take("connections", _positive_integer),
            idle_timeout=table.take("idle_timeout", _duration),
            stall_timeout=table.take("stall_timeout", _duration),
            stop_timeout=table.take("stop_timeout", _duration),
        )


# Reading a table

_Layer: TypeAlias = tuple[str, Mapping[str, Any]]
_Check: TypeAlias = Callable[[Any], T]

_WRONG: Final[Any] = None
"""Stands for a value that is wrong or missing. Nobody sees it: there is a problem, so `load` raises."""


def _is_wrong(*values: Any) -> bool:
    return any(value is _WRONG for value in values)


class _Wrong(Exception):
    """A problem without its path."""


class _Reader:
    """One table of the file, or several laid over each other: (path, table) pairs, the first one wins.

    A reader that is not complete misses nothing: its table was wrong altogether, or is only a part.
    """

    def __init__(self, problems: list[str], *layers: _Layer, complete: bool = True) -> None:
        self._problems = problems
        self._asked: dict[str, None] = {}
        self.layers = layers
        self.path = layers[0][0]
        self.complete = complete

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Names the keys that nobody asked for."""
        if error is not None:
            return
        for path, table in self.layers:
            for key in table:
                if key not in self._asked:
                    self.problem(key, "unknown key" + _nearest(key, self._asked), path)

    def over(self, *layers: _Layer) -> _Reader:
        return _Reader(self._problems, *self.layers, *layers, complete=self.complete)

    def problem(self, key: str | None, text: str, path: str | None = None) -> None:
        where = self.path if path is None else path
        self._report(where if key is None else _join(where, key), text)

    def has(self, key: str) -> bool:
        return self._find(key) is not None

    def is_table(self, key: str) -> bool:
        found = self._find(key)
        return found is not None and isinstance(found[1], Mapping)

    def names(self) -> list[str]:
        return [key for _, table in self.layers for key in table]

    def written(self, *keys: str) -> str:
        """The path of the first layer that holds one of the keys."""
        return next((path for path, table in self.layers if not table.keys().isdisjoint(keys)), self.path)

    def take(self, key: str, check: _Check[T]) -> T:
        found = self._find(key)
        if found is not None:
            return self._checked(*found, check)
        self._missing(key)
        return _WRONG  # type: ignore[no-any-return]

    def optional(self, key: str, check: _Check[T]) -> T | None:
        found = self._find(key)
        return None if found is None else self._checked(*found, check)

    def each(self, key: str, check: _Check[T], least: int = 0) -> list[T]:
        found = self._find(key)
        if found is None:
            self._missing(key)
            return []
        path, value = found
        items = self._checked(path, value, _array)
        if not _is_wrong(items) and len(items) < least:
            self._report(path, f"expected at least {least} value")
        return [self._checked(f"{path}[{index}]", item, check) for index, item in enumerate(items or ())]

    def table(self, key: str, *, merged: bool = False, complete: bool = True) -> _Reader:
        """The table at `key` of the first layer that has it, or `merged` key by key; empty if nowhere."""
        self._asked[key] = None
        found = [(_join(path, key), table[key]) for path, table in self.layers if key in table]
        if not merged:
            found = found[:1]
        checked = ((path, self._checked(path, value, _table)) for path, value in found)
        good = [(path, table) for path, table in checked if not _is_wrong(table)]
        empty: _Layer = (_join(self.path, key), {})
        whole = bool(good) if found and not merged else self.complete
        layers = good if good and not merged else [empty, *good]
        return _Reader(self._problems, *layers, complete=complete and whole)

    def tables(self) -> Iterator[tuple[str, _Reader]]:
        """The tables in this one, whose keys are names."""
        for name in self.names():
            yield name, self.table(name)

    def _find(self, key: str) -> tuple[str, Any] | None:
        self._asked[key] = None
        for path, table in self.layers:
            if key in table:
                return _join(path, key), table[key]
        return None

    def _missing(self, key: str) -> None:
        if self.complete:
            self.problem(key, "missing")

    def _checked(self, path: str, value: Any, check: _Check[T]) -> T:
        try:
            return check(value)
        except _Wrong as wrong:
            self._report(path, str(wrong))
            return _WRONG  # type: ignore[no-any-return]

    def _report(self, path: str, text: str) -> None:
        problem = f"{path}: {text}"
        if problem not in self._problems:  # a default is read once for each namespace
            self._problems.append(problem)


def _join(path: str, key: str) -> str:
    bare = re.fullmatch(r"[A-Za-z0-9_-]+", key)
    name = key if bare else _quoted(key)
    return f"{path}.{name}" if path else name


def _quoted(text: str) -> str:
    """As a TOML string on one line."""
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _shown(value: Any) -> str:
    """A value as the file has it, when it is short; never what is in a table or an array."""
    match value:
        case str():
            return _quoted(value if len(value) <= 60 else value[:60] + "…")
        case int() if value.bit_length() > 64:
            return "a number beyond 64 bits"
        case int() | float():
            return str(value).lower()  # true and false too
        case Mapping():
            return "a table"
        case list() | tuple():
            return "an array"
    return f"a {type(value).__name__}"


def _nearest(name: str, known: Collection[str], show: Callable[[str], str] = str) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f", did you mean {show(close[0])}?" if close else ""


# What a value must be: a check answers the value as the configuration keeps it, or raises `_Wrong`


def _expected(what: str, value: Any) -> _Wrong:
    return _Wrong(f"expected {what}, got {_shown(value)}")


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise _expected("true or false", value)


def _text(value: Any) -> str:
    if isinstance(value, str) and value and "\0" not in value:
        return value
    raise _expected("a non-empty string", value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_integer(value) or isinstance(value, float)


def _positive_integer(value: Any) -> int:
    if _is_integer(value) and value > 0:
        return int(value)
    raise _expected("a positive integer", value)


def _port(value: Any) -> int:
    if _is_integer(value) and 0 < value < 65536:
        return int(value)
    raise _expected("a port number", value)


def _duration(value: Any) -> float:
    """Seconds, as many as a thread can wait; nan and inf fail the comparison."""
    if _is_number(value) and 0 < value <= threading.TIMEOUT_MAX:
        return float(value)
    raise _expected("a positive number of seconds", value)


def _coefficient(value: Any) -> float:
    if _is_number(value) and 1 <= value <= 1e9:
        return float(value)
    raise _expected("a number of at least 1", value)


def _array(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return list(value)
    raise _expected("an array", value)


def _table(value: Any) -> Mapping[str, Any]:
    """Says what it got, but does not show it: it may be a connection string."""
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return value
    raise _Wrong("expected a table")


def _one_of(names: Collection[str]) -> _Check[str]:
    def check(value: Any) -> str:
        if isinstance(value, str) and value in names:
            return value
        raise _expected(" or ".join(map(_quoted, names)), value)

    return check


def _dialect(value: Any) -> Dialect:
    return Dialect(_one_of(tuple(Dialect))(value))


def _on_dead_letter(value: Any) -> OnDeadLetter:
    return OnDeadLetter(_one_of(tuple(OnDeadLetter))(value))


def _retry_interrupted(value: Any) -> TaskType:
    return TaskType(_one_of(RETRYABLE_WHEN_INTERRUPTED)(value))


def _reference(kind: str, table: str, known: Collection[str]) -> _Check[str]:
    def check(value: Any) -> str:
        name = _text(value)
        if name in known:
            return name
        raise _Wrong(f"no {kind} {_shown(name)} in [{table}]{_nearest(name, known, _quoted)}")

    return check


_ADDRESS: Final = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^\s:\[\]]+)):([0-9]{1,5})")


def _address(value: Any) -> tuple[str, int]:
    """`host:port`; an IPv6 address in brackets."""
    found = _ADDRESS.fullmatch(value) if isinstance(value, str) else None
    if found and is_host(host := found[1] or found[2]) and int(found[3]) < 65536:
        return host, int(found[3])
    raise _expected('"host:port"', value)


def _parameter(value: Any) -> str:
    if isinstance(value, str) or _is_integer(value):
        return str(value)
    raise _Wrong("expected a string or an integer")


def _setting(value: Any) -> str | int | float | bool:
    if isinstance(value, str | int | float):
        return value
    raise _Wrong("expected a string, a number or a boolean")


def _secret(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise _Wrong("expected a string")


def _both(first: _Check[T], second: Callable[[T], T]) -> _Check[T]:
    return lambda value: second(first(value))


def _sendable(value: str) -> str:
    if is_sendable(value):
        return value
    raise _Wrong(f"expected {SENDABLE}")


def _secret_in_environment(value: Any) -> str:
    """Shows only what looks like a variable: the password itself may have been put here."""
    name = _secret(value)
    if found := os.environ.get(name):
        return found
    shown = f" {name}" if name.isidentifier() and name.isupper() else ""
    raise _Wrong(f"environment variable{shown} is not set or empty")


def _file(value: Any) -> Path:
    path = Path(_text(value))
    try:
        with path.open("rb"):
            return path
    except (OSError, ValueError) as exc:
        raise _Wrong(f"cannot read the file {value!r}: {getattr(exc, 'strerror', exc)}") from None


def _secret_in_file(value: Any) -> str:
    """The file without the newline that editors put at its end."""
    try:
        found = Path(_secret(value)).read_bytes().decode().rstrip("\r\n")
    except OSError as exc:
        raise _Wrong(f"cannot read the file: {exc.strerror}") from None
    except ValueError:  # UnicodeDecodeError carries the secret, a NUL in the path
        raise _Wrong("cannot read the file: not UTF-8 text") from None
    if found:
        return found
    raise _Wrong("the file is empty")
