"""A wrong file is refused whole, with a line for each mistake (docs/operations.md, "Configuration")."""

from __future__ import annotations

import copy
import operator
import pickle
import re
import socket
import tomllib
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import FrozenInstanceError, fields, is_dataclass
from functools import reduce
from math import nan
from pathlib import Path
from typing import Any

import pytest

from progressor import config
from progressor.config import (
    LONGEST_NAMESPACE,
    Config,
    DatabaseConfig,
    KafkaClientConfig,
    Limits,
    ListenConfig,
    ModernizerConfig,
    NamespaceConfig,
    NativeConfig,
    NotifierConfig,
    OnDeadLetter,
    PoolConfig,
    ProcessorConfig,
    RetryPolicy,
    StorageConfig,
    TlsConfig,
    load,
)
from progressor.errors import ConfigError
from progressor.model import TaskType

SAMPLE = Path(__file__).parents[2] / "config" / "sys.toml"

POOLS = """
[databases.db]
database = "d"
username = "u"
[pools]
default_pool = { database = "db" }
default_scan_pool = { database = "db", size = 1 }
default_front_pool = { database = "db" }
"""
NAMESPACE = """
[progressor.namespaces.x]
processor = { client = "echo" }
"""
BASE = POOLS + NAMESPACE
X = "progressor.namespaces.x"
PASSWORDS = "password, password_env, password_file"
TWO_DATABASES = 'pool, scan_pool and front_pool must be of one database, got "db" and "db2"'
SECRET = "hunter2-and-more"
FIXED = "has a fixed value, so that messages arrive and stay in order: leave it out"


def refused(source: str | Path | Mapping[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(source)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return list(caught.value.problems)


def loaded(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "sys.toml"
    path.write_text(text, encoding="utf-8")
    return load(path)


WRONG: dict[str, tuple[str, list[str]]] = {
    # the whole
    "an empty file": ("", ["progressor.namespaces: expected at least one namespace"]),
    "no namespace": (
        POOLS + "[progressor.namespaces]",
        ["progressor.namespaces: expected at least one namespace"],
    ),
    "a namespace that is no table": (
        POOLS + "[progressor.namespaces]\nx = 5",
        [f"{X}: expected a table"],
    ),
    "namespaces that are no table": (
        POOLS + "[progressor]\nnamespaces = []",
        ["progressor.namespaces: expected a table"],
    ),
    # unknown keys
    "an unknown top-level table": (BASE + "[database]", ["database: unknown key, did you mean databases?"]),
    "an unknown key like no other": (BASE + "[listen]\nqqq = 1", ["listen.qqq: unknown key"]),
    "an unknown key of the node": (
        BASE + "[progressor]\nlease_timout = 5",
        ["progressor.lease_timout: unknown key, did you mean lease_timeout?"],
    ),
    "an unknown key of a namespace": (
        BASE + "worker_poolsize = 5",
        [f"{X}.worker_poolsize: unknown key, did you mean worker_pool_size?"],
    ),
    "an unknown key of the defaults, once": (
        BASE + "[progressor.namespaces.y]\nprocessor.client = 'echo'\n[progressor.defaults]\nretry = {}",
        ["progressor.defaults.retry: unknown key, did you mean retry_policy?"],
    ),
    "an unknown key of a merged table": (
        BASE + "retry_policy.max_attempt = 5",
        [f"{X}.retry_policy.max_attempt: unknown key, did you mean max_attempts?"],
    ),
    "an unknown parameter of libpq": (
        BASE + "[databases.y]\ndatabase = 'd'\nuser = 'u'\nssl_mode = 'require'",
        [
            "databases.y.username: missing",
            "databases.y.user: unknown key, did you mean username?",
            "databases.y.ssl_mode: unknown key, did you mean sslmode?",
        ],
    ),
    "an unknown key that has to be quoted": (
        BASE + '[listen]\n"ht tp" = 1',
        ['listen."ht tp": unknown key, did you mean http?'],
    ),
    # types
    "the example of the contract": (
        BASE + 'retry_policy.max_attempts = "many"',
        [f'{X}.retry_policy.max_attempts: expected a positive integer, got "many"'],
    ),
    "a boolean where an integer is needed": (
        BASE + "worker_pool_size = true",
        [f"{X}.worker_pool_size: expected a positive integer, got true"],
    ),
    "a fraction where an integer is needed": (
        BASE + "[progressor]\ncache_max_bytes = 1.5",
        ["progressor.cache_max_bytes: expected a positive integer, got 1.5"],
    ),
    "no worker at all": (
        BASE + "worker_pool_size = 0",
        [f"{X}.worker_pool_size: expected a positive integer, got 0"],
    ),
    "an integer where a boolean is needed": (
        BASE + "[progressor]\nmigration_enabled = 1",
        ["progressor.migration_enabled: expected true or false, got 1"],
    ),
    "an empty node name": (
        BASE + "[progressor]\nnode_name = ''",
        ['progressor.node_name: expected a non-empty string, got ""'],
    ),
    "durations that are none": (
        BASE
        + "process_step_timeout = -1\ntask_scan_timeout = nan\ncall_scan_timeout = false"
        + "\n[progressor]\ndrain_timeout = inf",
        [
            "progressor.drain_timeout: expected a positive number of seconds, got inf",
            f"{X}.process_step_timeout: expected a positive number of seconds, got -1",
            f"{X}.task_scan_timeout: expected a positive number of seconds, got nan",
            f"{X}.call_scan_timeout: expected a positive number of seconds, got false",
        ],
    ),
    "a duration of another type": (
        BASE + "process_step_timeout = [30]",
        [f"{X}.process_step_timeout: expected a positive number of seconds, got an array"],
    ),
    "a date where a duration is needed": (
        BASE + "process_step_timeout = 1979-05-27",
        [f"{X}.process_step_timeout: expected a positive number of seconds, got a date"],
    ),
    "an integer beyond everything": (
        BASE + f"process_step_timeout = 0x{'f' * 5000}",
        [f"{X}.process_step_timeout: expected a positive number of seconds, got a number beyond 64 bits"],
    ),
    "a string with line breaks, and a long one": (
        BASE + f'worker_pool_size = "a\\nb\\u2028"\nprocess_step_timeout = "{"s" * 99}"',
        [
            f'{X}.worker_pool_size: expected a positive integer, got "a\\nb\\u2028"',
            f'{X}.process_step_timeout: expected a positive number of seconds, got "{"s" * 60}…"',
        ],
    ),
    "a coefficient that shrinks": (
        BASE + "retry_policy.backoff_coefficient = 0.5",
        [f"{X}.retry_policy.backoff_coefficient: expected a number of at least 1, got 0.5"],
    ),
    "errors that are no array of strings": (
        BASE + "retry_policy.non_retryable_errors = ['a', 5, '']\n[progressor.defaults]\n"
        "retry_policy.non_retryable_errors = 'some_reason'",
        [
            'progressor.defaults.retry_policy.non_retryable_errors: expected an array, got "some_reason"',
            f"{X}.retry_policy.non_retryable_errors[1]: expected a non-empty string, got 5",
            f'{X}.retry_policy.non_retryable_errors[2]: expected a non-empty string, got ""',
        ],
    ),
    "task types that are not retried when interrupted": (
        BASE + "retry_interrupted = ['call', 'timeout', 1]",
        [
            f'{X}.retry_interrupted[1]: expected "init" or "call" or "repair", got "timeout"',
            f'{X}.retry_interrupted[2]: expected "init" or "call" or "repair", got 1',
        ],
    ),
    "a table written as a string": (
        BASE + "retry_policy = 'none'",
        [f"{X}.retry_policy: expected a table"],
    ),
    # the lease
    "a lease as short as two heartbeats": (
        BASE + "[progressor]\nlease_timeout = 3\nheartbeat_interval = 1.5",
        ["progressor.lease_timeout: expected more than 2 x heartbeat_interval (1.5), got 3"],
    ),
    "a lease that is shorter than the default asks for": (
        BASE + "[progressor]\nlease_timeout = 2",
        ["progressor.lease_timeout: expected more than 2 x heartbeat_interval (1), got 2"],
    ),
    "a lease of another type is not compared": (
        BASE + "[progressor]\nlease_timeout = '5s'\nheartbeat_interval = 100",
        ['progressor.lease_timeout: expected a positive number of seconds, got "5s"'],
    ),
    # names
    "a namespace too long": (
        POOLS + f'[progressor.namespaces."{"é" * 19}"]\nprocessor.client = "echo"',
        [f'progressor.namespaces."{"é" * 19}": the name of a namespace has at most 37 bytes, got 38'],
    ),
    "an empty namespace and one with a control character": (
        POOLS + '[progressor.namespaces]\n"".processor.client = "echo"\n"a\\u0000b".processor.client = "echo"',
        [
            'progressor.namespaces."": the name of a namespace is not empty',
            'progressor.namespaces."a\\u0000b": the name of a namespace holds no control characters',
        ],
    ),
    # processor and notifier
    "no processor": (
        POOLS + '[progressor.namespaces."a/b"]',
        ['progressor.namespaces."a/b".processor.client: missing'],
    ),
    "a processor that is no table": (
        POOLS + "[progressor.namespaces.x]\nprocessor = 'echo'",
        [f"{X}.processor: expected a table"],
    ),
    "a processor without a client, in the defaults": (
        POOLS + "[progressor.namespaces.x]\n[progressor.defaults]\nprocessor = { options = 5 }",
        [
            "progressor.defaults.processor.client: missing",
            "progressor.defaults.processor.options: expected a table",
        ],
    ),
    "a modernizer": (
        BASE + "modernizer = { client = 5, format_version = 0, url = 'x' }",
        [
            f"{X}.modernizer.client: expected a non-empty string, got 5",
            f"{X}.modernizer.format_version: expected a positive integer, got 0",
            f"{X}.modernizer.url: unknown key",
        ],
    ),
    "a modernizer without its version": (
        BASE + "modernizer.client = 'thrift'",
        [f"{X}.modernizer.format_version: missing"],
    ),
    "a notifier without topics": (
        BASE + "notifier = { client = 'k' }\n[kafka.clients.k]\nendpoints = ['h:9092']",
        [f"{X}.notifier: expected topic, lifecycle_topic or both"],
    ),
    "a notifier that does something else with dead letters": (
        BASE + "notifier = { client = 'k', topic = 't', on_dead_letter = 'drop', max_age = 0 }\n"
        "[kafka.clients.k]\nendpoints = ['h:9092']",
        [
            f'{X}.notifier.on_dead_letter: expected "wait" or "follow", got "drop"',
            f"{X}.notifier.max_age: expected a positive number of seconds, got 0",
        ],
    ),
    "a notifier of an unknown client": (
        BASE + "notifier = { client = 'kafk', topic = 't' }\n[kafka.clients.kafka]\nendpoints = ['h:9092']",
        [f'{X}.notifier.client: no Kafka client "kafk" in [kafka.clients], did you mean "kafka"?'],
    ),
    "a notifier without a client": (
        BASE + "notifier = { topic = '' }",
        [
            f"{X}.notifier.client: missing",
            f'{X}.notifier.topic: expected a non-empty string, got ""',
        ],
    ),
    # storage
    "no pools at all, once for all namespaces": (
        NAMESPACE + "[progressor.namespaces.y]\nprocessor.client = 'echo'",
        [
            'progressor.defaults.storage.pool: no pool "default_pool" in [pools]',
            'progressor.defaults.storage.scan_pool: no pool "default_scan_pool" in [pools]',
            'progressor.defaults.storage.front_pool: no pool "default_front_pool" in [pools]',
        ],
    ),
    "an unknown pool": (
        BASE + "storage = { pool = 'defualt_pool' }",
        [f'{X}.storage.pool: no pool "defualt_pool" in [pools], did you mean "default_pool"?'],
    ),
    "an unknown pool in the defaults, once": (
        BASE + "[progressor.namespaces.y]\nprocessor.client = 'echo'\n[progressor.defaults.storage]\nscan_pool = 'zzz'",
        ['progressor.defaults.storage.scan_pool: no pool "zzz" in [pools]'],
    ),
    "an unknown storage": (
        BASE + "storage.client = 'mysql'",
        [f'{X}.storage.client: expected "postgres", got "mysql"'],
    ),
    "a cache that is fed by another database": (
        BASE + "storage.cache = 'db2'\n[databases.db2]\ndatabase = 'other'\nusername = 'u'",
        [f'{X}.storage.cache: expected the database of the pools, got "db2", which is another one than "db"'],
    ),
    "a cache of an unknown database": (
        BASE + "storage.cache = 'dba'",
        [f'{X}.storage.cache: no database "dba" in [databases], did you mean "db"?'],
    ),
    "pools of two databases": (
        BASE + "storage.scan_pool = 'other'\n[pools.other]\ndatabase = 'db2'\n"
        "[databases.db2]\ndatabase = 'd'\nusername = 'u'",
        [f"{X}.storage: {TWO_DATABASES}"],
    ),
    "pools of two databases in the defaults, once": (
        BASE + "[progressor.namespaces.y]\nprocessor.client = 'echo'\n"
        "[progressor.defaults.storage]\nscan_pool = 'other'\n[pools.other]\ndatabase = 'db2'\n"
        "[databases.db2]\ndatabase = 'd'\nusername = 'u'",
        [f"progressor.defaults.storage: {TWO_DATABASES}"],
    ),
    "a pool of an unknown database": (
        BASE + "[pools.p]\ndatabase = 'dbb'\nsize = 0",
        [
            'pools.p.database: no database "dbb" in [databases], did you mean "db"?',
            "pools.p.size: expected a positive integer, got 0",
        ],
    ),
    # databases
    "a database with everything wrong": (
        BASE + '[databases."a b"]\nhost = 5\nport = 70000\nconnect_timeout = 0.5',
        [
            'databases."a b".connect_timeout: expected a string or an integer',
            'databases."a b".host: expected a non-empty string, got 5',
            'databases."a b".port: expected a port number, got 70000',
            'databases."a b".database: missing',
            'databases."a b".username: missing',
        ],
    ),
    "a database written as a connection string": (
        BASE + f"[databases]\ny = 'postgres://u:{SECRET}@h/d'",
        ["databases.y: expected a table"],
    ),
    "a password that is no string": (
        POOLS.replace("[pools]", "password = 12345\n[pools]") + NAMESPACE,
        ["databases.db.password: expected a string"],
    ),
    "two passwords": (
        POOLS.replace("[pools]", f"password = '{SECRET}'\npassword_env = ['{SECRET}']\n[pools]") + NAMESPACE,
        [
            f"databases.db: expected one of {PASSWORDS}, got password and password_env",
            "databases.db.password_env: expected a string",
        ],
    ),
    "a variable that is not set": (
        POOLS.replace("[pools]", "password_env = 'PROGRESSOR_NOT_SET'\n[pools]") + NAMESPACE,
        ["databases.db.password_env: environment variable PROGRESSOR_NOT_SET is not set or empty"],
    ),
    "a password where the name of a variable belongs": (
        POOLS.replace("[pools]", f"password_env = '{SECRET}'\n[pools]") + NAMESPACE,
        ["databases.db.password_env: environment variable is not set or empty"],
    ),
    "a password file that is missing": (
        POOLS.replace("[pools]", f"password_file = '/nowhere/{SECRET}'\n[pools]") + NAMESPACE,
        ["databases.db.password_file: cannot read the file: No such file or directory"],
    ),
    # Kafka and addresses
    "Kafka clients": (
        BASE + "[kafka.client]\n[kafka.clients]\na = {}\nb = { endpoints = [], topic = 't' }\n"
        f"c = {{ endpoints = 'h:9092', config = {{ \"sasl.password\" = ['{SECRET}'] }} }}\n"
        f"d = {{ endpoints = [9092], config = {{ ssl.key.password = ['{SECRET}'] }} }}",
        [
            "kafka.clients.a.endpoints: missing",
            "kafka.clients.b.endpoints: expected at least 1 value",
            "kafka.clients.b.topic: unknown key",
            'kafka.clients.c.endpoints: expected an array, got "h:9092"',
            'kafka.clients.c.config."sasl.password": expected a string, a number or a boolean',
            "kafka.clients.d.endpoints[0]: expected a non-empty string, got 9092",
            "kafka.clients.d.config.ssl.key.password: expected a string, a number or a boolean",
            "kafka.client: unknown key, did you mean clients?",
        ],
    ),
    "settings of librdkafka that are promises, or have a key": (
        BASE + "[kafka.clients.k]\nendpoints = ['h:9092']\n[kafka.clients.k.config]\n"
        "acks = 1\nenable.idempotence = true\n'bootstrap.servers' = 'h:9092'",
        [
            f"kafka.clients.k.config.acks: acks {FIXED}",
            f"kafka.clients.k.config.enable.idempotence: enable.idempotence {FIXED}",
            'kafka.clients.k.config."bootstrap.servers": bootstrap.servers has its own key beside config: endpoints',
        ],
    ),
    "addresses": (
        BASE + "[listen]\nhttp = '127.0.0.1'\nthrift = 8023",
        [
            'listen.http: expected "host:port", got "127.0.0.1"',
            'listen.thrift: expected "host:port", got 8023',
        ],
    ),
    "addresses that cannot be": (
        BASE + "[listen]\nhttp = '::1:8022'\nthrift = 'h:65536'",
        [
            'listen.http: expected "host:port", got "::1:8022"',
            'listen.thrift: expected "host:port", got "h:65536"',
        ],
    ),
    "a host that no resolver takes": (
        BASE + "[listen]\nhttp = 'a..b:80'",
        ['listen.http: expected "host:port", got "a..b:80"'],
    ),
    "one address for both servers": (
        BASE + "[listen]\nhttp = 'h:1'\nthrift = 'h:1'",
        ["listen.thrift: expected another address than that of http"],
    ),
    "limits": (
        BASE + "[listen.limits]\nrequest_bytes = 1.5\nconnections = 0\nstall_timeout = -1\nidle = 5",
        [
            "listen.limits.request_bytes: expected a positive integer, got 1.5",
            "listen.limits.connections: expected a positive integer, got 0",
            "listen.limits.stall_timeout: expected a positive number of seconds, got -1",
            "listen.limits.idle: unknown key, did you mean idle_timeout?",
        ],
    ),
    "access to the native service": (
        BASE + f"[listen.native]\nsecret = '{SECRET} {SECRET}'\nclients = []\nclient = 'x'",
        [
            "listen.native.secret: expected a secret of letters, digits and signs of ASCII, without spaces",
            "listen.native.clients: expected at least 1 value",
            "listen.native.client: unknown key, did you mean clients?",
        ],
    ),
    "two secrets": (
        BASE + f"[listen.native]\nsecret = '{SECRET}'\nsecret_file = '/nowhere'",
        [
            "listen.native: expected one of secret, secret_env, secret_file, got secret and secret_file",
            "listen.native.secret_file: cannot read the file: No such file or directory",
        ],
    ),
    "an empty secret": (
        BASE + "[listen.native]\nsecret = ''",
        ["listen.native.secret: expected a secret of letters, digits and signs of ASCII, without spaces"],
    ),
    "a secret that is not set": (
        BASE + "[listen.native]\nsecret_env = 'PROGRESSOR_NOT_SET'",
        ["listen.native.secret_env: environment variable PROGRESSOR_NOT_SET is not set or empty"],
    ),
    "names of certificates that nobody signs": (
        BASE + "[listen.native]\nclients = ['operator', 5]",
        [
            "listen.native.clients[1]: expected a non-empty string, got 5",
            "listen.native.clients: needs listen.tls.client_ca, which signs the certificates with these names",
        ],
    ),
    "limits that are no table": (BASE + "[listen]\nlimits = 5", ["listen.limits: expected a table"]),
}


@pytest.mark.parametrize(("text", "problems"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_refused_with_its_problems(tmp_path: Path, text: str, problems: list[str]) -> None:
    path = tmp_path / "sys.toml"
    path.write_text(text, encoding="utf-8")
    found = refused(path)
    assert found == problems
    assert all(len(problem.splitlines()) == 1 for problem in found)
    assert SECRET not in "\n".join(found)


UNREADABLE: dict[str, tuple[bytes, str]] = {
    "not UTF-8": (b"a = 1\nb = '\xff'\n", "not UTF-8 (at line 2)"),
    "not UTF-8, after a byte order mark": (b"\xef\xbb\xbfa = 1\nb = '\xff'\n", "not UTF-8 (at line 2)"),
    "syntax": (b"a = 1\nb = hunter2\n", "Invalid value (at line 2, column 5)"),
    "the end comes too early": (b"a = 1\nb = [\n", "Invalid value (at line 3, the end of the file)"),
    "twice the same": (b"[a]\n[a]\n", "Cannot declare ('a',) twice (at line 2, column 3)"),
    "nesting": (b"a = " + b"[" * 100_000, "nested too deeply"),
}


@pytest.mark.parametrize(("data", "problem"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_file_that_is_no_toml_is_one_problem(tmp_path: Path, data: bytes, problem: str) -> None:
    path = tmp_path / "sys.toml"
    path.write_bytes(data)
    assert refused(path) == [f"{path}: {problem}"]


def test_digits_beyond_the_limit_of_int_are_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "sys.toml"
    path.write_text("a = " + "9" * 5000)
    (problem,) = refused(path)
    assert problem.startswith(f"{path}: Exceeds the limit")


def test_a_missing_file_and_a_directory_are_problems(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.toml") == [f"{tmp_path}/none.toml: No such file or directory"]
    assert refused(str(tmp_path / "none.toml")) == [f"{tmp_path}/none.toml: No such file or directory"]
    assert refused(tmp_path) == [f"{tmp_path}: Is a directory"]


def test_all_mistakes_are_listed_at_once(tmp_path: Path) -> None:
    path = tmp_path / "sys.toml"
    path.write_text(
        """
        [progressor]
        lease_timeout = 1
        cache_max_bites = 5
        [progressor.namespaces."x/y"]
        processor = { client = "" }
        retry_policy = { max_attempts = "many", initial_timeout = 0 }
        storage = { cache = "nowhere" }
        [databases.db]
        database = "d"
        username = "u"
        port = "5432"
        [pools]
        default_pool = { database = "db" }
        default_scan_pool = { database = "other" }
        [listen]
        https = "127.0.0.1:8022"
        """
    )
    x, front_pool = 'progressor.namespaces."x/y"', "progressor.defaults.storage.front_pool"
    assert refused(path) == [
        'databases.db.port: expected a port number, got "5432"',
        'pools.default_scan_pool.database: no database "other" in [databases]',
        "listen.https: unknown key, did you mean http?",
        "progressor.lease_timeout: expected more than 2 x heartbeat_interval (1), got 1",
        f"{x}.retry_policy.initial_timeout: expected a positive number of seconds, got 0",
        f'{x}.retry_policy.max_attempts: expected a positive integer, got "many"',
        f'{x}.processor.client: expected a non-empty string, got ""',
        f'{front_pool}: no pool "default_front_pool" in [pools], did you mean "default_scan_pool"?',
        f'{x}.storage.cache: no database "nowhere" in [databases]',
        "progressor.cache_max_bites: unknown key, did you mean cache_max_bytes?",
    ]


def test_the_sample_file_loads() -> None:
    config = load(SAMPLE)
    assert config.node_name == "node-1"
    assert {name: ns.processor.client for name, ns in config.namespaces.items()} == {
        "default/default": "echo",
        "cached/namespace": "counter",
        "payment/payment": "payment",
    }
    default, cached = config.namespaces["default/default"], config.namespaces["cached/namespace"]
    assert default.notifier == NotifierConfig(
        "default_kafka_client", "events_topic", "lifecycle_topic", OnDeadLetter.WAIT, 60.0
    )
    assert cached.notifier is None
    assert cached.storage == StorageConfig(
        "postgres", "default_pool", "default_scan_pool", "default_front_pool", "progressor_db"
    )
    assert config.kafka["default_kafka_client"].endpoints == ("127.0.0.1:9092",)
    assert config.listen == ListenConfig(("127.0.0.1", 8022), ("127.0.0.1", 8023))
    assert [pool.size for pool in config.pools.values()] == [10, 2, 10]


def test_the_sample_has_every_key_and_its_comments_can_be_used(tmp_path: Path) -> None:
    file = tmp_path / "any.pem"
    file.write_text("secret")
    text = re.sub(r"^# (?=\[|\w+ = )", "", SAMPLE.read_text(), flags=re.MULTILINE)
    text = re.sub(r'"/(etc|run)/[\w/.]+"', f'"{file}"', text)
    assert loaded(tmp_path, text).listen.tls == TlsConfig(file, file, file)
    found = tomllib.loads(text)
    node, listen = found["progressor"], found["listen"]
    namespace = reduce(operator.or_, node["namespaces"].values(), node["defaults"])
    tables: Mapping[type, Mapping[str, Any]] = {
        Config: node | found,
        NamespaceConfig: namespace,
        RetryPolicy: node["defaults"]["retry_policy"],
        StorageConfig: node["defaults"]["storage"] | namespace["storage"],
        ProcessorConfig: node["namespaces"]["default/default"]["processor"],
        ModernizerConfig: namespace["modernizer"],
        NotifierConfig: namespace["notifier"],
        DatabaseConfig: found["databases"]["progressor_db"],
        PoolConfig: found["pools"]["default_pool"],
        KafkaClientConfig: found["kafka"]["clients"]["default_kafka_client"],
        ListenConfig: listen,
        TlsConfig: listen["tls"],
        Limits: listen["limits"],
        NativeConfig: listen["native"] | {"secret": listen["native"]["secret_file"]},
    }
    assert set(tables) == {part for name, part in vars(config).items() if is_dataclass(part) and name[0] != "_"}
    for part, table in tables.items():
        assert {field.name for field in fields(part)} - {"name", "parameters"} <= set(table), part


def test_what_is_left_out_has_the_values_of_the_sample(tmp_path: Path) -> None:
    sample, config = load(SAMPLE), loaded(tmp_path, BASE)
    for key in (
        "migration_enabled",
        "lease_timeout",
        "heartbeat_interval",
        "drain_timeout",
        "cache_reconnect_timeout",
        "cache_cleanup_timeout",
        "cache_max_bytes",
    ):
        assert getattr(config, key) == getattr(sample, key), key
    assert config.node_name == socket.gethostname()
    assert config.listen == ListenConfig(None, None)
    assert config.kafka == {}
    written, left_out = sample.namespaces["default/default"], config.namespaces["x"]
    for key in (
        "worker_pool_size",
        "process_step_timeout",
        "task_scan_timeout",
        "call_scan_timeout",
        "retry_interrupted",
        "retry_policy",
        "dialect",
        "storage",
    ):
        assert getattr(left_out, key) == getattr(written, key), key
    assert left_out.processor == ProcessorConfig("echo", {})
    assert left_out.notifier is None
    assert (config.databases["db"].host, config.databases["db"].port) == ("127.0.0.1", 5432)
    assert config.databases["db"].password is None
    assert config.pools["default_pool"].size == 10


def test_a_namespace_is_merged_with_the_defaults_key_by_key(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        POOLS
        + """
        [progressor.defaults]
        worker_pool_size = 7
        task_scan_timeout = 0.5
        retry_interrupted = ["init"]
        processor = { client = "echo", options = { a = 1 } }
        notifier = { client = "k", topic = "t", lifecycle_topic = "l" }
        storage = { cache = "db", pool = "own_pool" }
        retry_policy = { max_attempts = 9, max_timeout = 60 }
        [progressor.namespaces.bare]
        [progressor.namespaces.own]
        worker_pool_size = 8
        retry_interrupted = ["call", "repair"]
        processor = { client = "package.module:Name" }
        notifier = { client = "k", lifecycle_topic = "m" }
        storage = { scan_pool = "own_pool" }
        retry_policy = { max_timeout = 30, non_retryable_errors = [] }
        [pools.own_pool]
        database = "db"
        [kafka.clients.k]
        endpoints = ["h:9092"]
        """,
    )
    bare, own = config.namespaces["bare"], config.namespaces["own"]
    assert (bare.worker_pool_size, own.worker_pool_size) == (7, 8)
    assert (bare.task_scan_timeout, own.task_scan_timeout) == (0.5, 0.5)
    assert bare.retry_interrupted == {TaskType.INIT}
    assert own.retry_interrupted == {TaskType.CALL, TaskType.REPAIR}
    assert bare.processor == ProcessorConfig("echo", {"a": 1})
    assert own.processor == ProcessorConfig("package.module:Name", {})
    assert bare.notifier == NotifierConfig("k", "t", "l")
    assert own.notifier == NotifierConfig("k", None, "m")
    assert bare.storage == StorageConfig("postgres", "own_pool", "default_scan_pool", "default_front_pool", "db")
    assert own.storage == StorageConfig("postgres", "own_pool", "own_pool", "default_front_pool", "db")
    assert bare.retry_policy == RetryPolicy(3.0, 1.2, 60.0, 9, frozenset())
    assert own.retry_policy == RetryPolicy(3.0, 1.2, 30.0, 9, frozenset())


def test_a_mapping_is_read_like_a_file() -> None:
    pool = {"database": "db"}
    source = {
        "progressor": {"namespaces": {"x": {"processor": {"client": "echo", "options": {"object": object}}}}},
        "databases": {"db": {"database": "d", "username": "u"}},
        "pools": {"default_pool": pool, "default_scan_pool": pool, "default_front_pool": pool},
    }
    before = copy.deepcopy(source)
    assert load(source).namespaces["x"].processor.options == {"object": object}
    assert source == before
    source["pools"] = {"default_pool": pool, 5: pool}
    assert refused(source)[0] == "pools: expected a table"


def paths(table: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in table.items():
        yield (*above, key)
        if isinstance(value, Mapping):
            yield from paths(value, (*above, key))


ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    nan,
    10**400,
    "",
    "a\0b",
    [],
    [None],
    {},
    {"a": {}},
    {5: 5},
    b"x",
    object(),
]


def problems_of(source: Mapping[str, Any]) -> tuple[str, ...]:
    try:
        load(source)
    except ConfigError as error:
        return error.problems
    return ()


def test_whatever_stands_anywhere_is_accepted_or_a_line_in_the_error() -> None:
    sample = tomllib.loads(SAMPLE.read_text())
    for *above, last in paths(sample):
        for odd in ODD:
            source = copy.deepcopy(sample)
            reduce(lambda table, key: table[key], above, source)[last] = odd
            assert all(len(problem.splitlines()) == 1 for problem in problems_of(source))


def test_addresses_may_be_ipv6_and_have_any_free_port(tmp_path: Path) -> None:
    config = loaded(tmp_path, BASE + "[listen]\nhttp = '[::1]:0'\nthrift = 'localhost:8023'")
    assert config.listen == ListenConfig(("::1", 0), ("localhost", 8023))


def test_the_secret_of_the_native_service_is_in_no_repr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")
    monkeypatch.setenv("PROGRESSOR_TEST_SECRET", SECRET)
    for way in (f"secret = '{SECRET}'", "secret_env = 'PROGRESSOR_TEST_SECRET'", f"secret_file = '{file}'"):
        config = loaded(tmp_path, BASE + f"[listen.native]\n{way}")
        assert config.listen.native == NativeConfig(SECRET, None)
        assert SECRET not in repr(config)
    assert loaded(tmp_path, BASE).listen.native == NativeConfig(None, None)


def test_clients_of_the_native_service_go_by_their_certificates(tmp_path: Path) -> None:
    pem = tmp_path / "any.pem"
    pem.touch()
    tls = f"[listen.tls]\ncertificate = '{pem}'\nkey = '{pem}'\nclient_ca = '{pem}'\n"
    config = loaded(tmp_path, BASE + tls + "[listen.native]\nclients = ['operator', 'shop']")
    assert config.listen.native == NativeConfig(None, frozenset({"operator", "shop"}))


def test_limits_that_are_left_out_are_the_defaults(tmp_path: Path) -> None:
    config = loaded(tmp_path, BASE + "[listen.limits]\nrequest_bytes = 1000\nidle_timeout = 0.5")
    assert config.listen.limits == Limits(request_bytes=1000, idle_timeout=0.5)
    assert loaded(tmp_path, BASE).listen.limits == Limits()


def test_a_namespace_may_have_as_many_bytes_as_fit(tmp_path: Path) -> None:
    name = "n" * LONGEST_NAMESPACE
    assert len(f"{name}_tasks_idempotency_key_idx") == 63
    assert list(loaded(tmp_path, BASE.replace("namespaces.x", f"namespaces.{name}")).namespaces) == [name]


def test_settings_of_kafka_may_be_quoted_or_dotted(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        BASE + "[kafka.clients.k]\nendpoints = ['h:9092']\n[kafka.clients.k.config]\n"
        "'security.protocol' = 'SSL'\nssl.key.location = '/k'\nlinger.ms = 5\nsocket.keepalive.enable = true",
    )
    assert config.kafka["k"].config == {
        "security.protocol": "SSL",
        "ssl.key.location": "/k",
        "linger.ms": 5,
        "socket.keepalive.enable": True,
    }


def test_conninfo_is_what_libpq_calls_it(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        BASE + "[databases.y]\nhost = 'h'\nport = 1\ndatabase = 'd'\nusername = 'u'\npassword = 'p'\n"
        "sslmode = 'verify-full'\nconnect_timeout = 5\n",
    )
    assert config.databases["y"].conninfo() == {
        "host": "h",
        "port": 1,
        "dbname": "d",
        "user": "u",
        "password": "p",
        "sslmode": "verify-full",
        "connect_timeout": "5",
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
    }
    assert "password" not in config.databases["db"].conninfo()


def test_a_password_comes_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "password"
    file.write_bytes(f" {SECRET}\r\n".encode())
    monkeypatch.setenv("PROGRESSOR_TEST_PASSWORD", SECRET)
    config = loaded(
        tmp_path,
        BASE + "[databases.env]\ndatabase = 'd'\nusername = 'u'\npassword_env = 'PROGRESSOR_TEST_PASSWORD'\n"
        f"[databases.file]\ndatabase = 'd'\nusername = 'u'\npassword_file = '{file}'\n",
    )
    assert config.databases["env"].password == SECRET
    assert config.databases["file"].password == " " + SECRET


@pytest.mark.parametrize(
    ("data", "problem"),
    [(b"\n", "the file is empty"), (SECRET.encode() + b"\xff", "cannot read the file: not UTF-8 text")],
)
def test_a_password_file_without_a_password_is_a_problem(tmp_path: Path, data: bytes, problem: str) -> None:
    file = tmp_path / "password"
    file.write_bytes(data)
    path = tmp_path / "sys.toml"
    path.write_text(BASE.replace("[pools]", f"password_file = '{file}'\n[pools]"))
    assert refused(path) == [f"databases.db.password_file: {problem}"]


def test_secrets_are_in_no_repr(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        BASE.replace("[pools]", f"password = '{SECRET}'\nsslpassword = '{SECRET}'\n[pools]")
        + f"processor.options.token = '{SECRET}'\n".replace("processor", "[progressor.namespaces.y]\nprocessor")
        + "processor.client = 'echo'\n"
        + f"[kafka.clients.k]\nendpoints = ['h:9092']\nconfig.sasl.password = '{SECRET}'\n",
    )
    assert config.databases["db"].password == SECRET
    assert SECRET not in repr(config)
    assert SECRET not in str(config)


@pytest.mark.parametrize("end", [b"\xff", b"\nbroken", b"\n[pools.x]\nsize = 0"])
def test_secrets_are_in_no_part_of_the_error(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "sys.toml"
    path.write_bytes(BASE.replace("[pools]", f"password = '{SECRET}'\n[pools]").encode() + end)
    with pytest.raises(ConfigError) as caught:
        load(path)
    error = caught.value
    assert error.__context__ is None
    assert SECRET not in str(error)
    assert SECRET not in repr(error)
    assert SECRET not in "".join(traceback.format_exception(error))


def test_a_config_is_frozen_and_can_be_sent_to_another_process() -> None:
    config = load(SAMPLE)
    with pytest.raises(FrozenInstanceError):
        config.node_name = "other"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(config)) == config
