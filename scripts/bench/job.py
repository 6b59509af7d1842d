"""A run of a workload, as the workload sees it: sizes, a node, a database, and the measuring."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from time import monotonic, sleep
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from bench import proc
from bench.load import Load, Operation, Verbs
from bench.meter import Figures, Meter, Period
from bench.sampler import Sampler
from progressor import LocalClient, Node

NS = "bench/bench"
WORKERS = 200
TOPICS = {"topic": "events", "lifecycle_topic": "turns"}
TABLES = ("processes", "tasks", "schedule", "running", "events", "outbox")
_PROGRESS = """
select process_id, (select coalesce(max(event_id), 0) from {events} e where e.process_id = p.process_id)
from {processes} p"""


class NotAvailable(Exception):
    """The workload cannot be run with this version of Progressor."""


@dataclass(frozen=True, slots=True)
class Job:
    """What the parent orders, as JSON."""

    workload: str
    conninfo: Mapping[str, Any]
    """Of a database of its own; of an earlier run's when the workload keeps it."""
    admin: Mapping[str, Any]
    """Of another database on the same server."""
    postgres_pid: int
    seconds: float
    quick: bool
    profile: bool
    soak_minutes: float

    @property
    def json(self) -> bytes:
        return json.dumps(asdict(self)).encode()


@dataclass
class Measured:
    """A period that was measured; filled in at its end."""

    period: Period | None = None

    def __call__(self) -> Period:
        assert self.period is not None
        return self.period


@dataclass
class Progress:
    """How many events each process has, and when the database was asked."""

    at: float
    events: Mapping[str, int]


@dataclass
class Bench:
    job: Job
    meter: Meter
    engine_pid: int
    """Its CPU and memory count, and those of its descendants."""
    database: psycopg.Connection[TupleRow]
    series: list[dict[str, float]] = field(default_factory=list)
    """What a workload reports of each minute."""
    profile: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.job.seconds

    @property
    def warm_up(self) -> float:
        return 0.5 if self.job.quick else 2.0

    def size(self, full: int, quick: int) -> int:
        return quick if self.job.quick else full

    def config(self, processor: str, kafka: str | None = None, **defaults: Any) -> Mapping[str, Any]:
        """Of a node with one namespace, the default sizes and 200 workers; `kafka`: a broker for its TOPICS."""
        conninfo = self.job.conninfo
        pools = {"default_pool": 10, "default_scan_pool": 2, "default_front_pool": 10}
        namespace: dict[str, Any] = {"processor": {"client": f"bench.processors:{processor}"}}
        if kafka is not None:
            namespace["notifier"] = {"client": "kafka", **TOPICS}
        return {
            "progressor": {
                "drain_timeout": 5,
                "defaults": {"worker_pool_size": WORKERS, **defaults},
                "namespaces": {NS: namespace},
            },
            "databases": {
                "bench": {
                    "host": conninfo["host"],
                    "port": conninfo["port"],
                    "database": conninfo["dbname"],
                    "username": conninfo["user"],
                    "password": conninfo["password"],
                }
            },
            "pools": {name: {"database": "bench", "size": size} for name, size in pools.items()},
            "kafka": {} if kafka is None else {"clients": {"kafka": {"endpoints": [kafka]}}},
        }

    @contextmanager
    def node(self, processor: str, kafka: str | None = None, **defaults: Any) -> Iterator[LocalClient]:
        """A node in this process."""
        with Node.from_config(self.config(processor, kafka, **defaults)) as node:
            yield node.client

    @contextmanager
    def measuring(self) -> Iterator[Measured]:
        measured = Measured()
        begin = self.meter.read(self.engine_pid)
        with self._profiling():
            yield measured
        end = self.meter.read(self.engine_pid)
        measured.period = Period(begin, end, proc.family_memory(self.engine_pid))

    def measure(self, client: Verbs, clients: int, operation: Operation) -> Figures:
        """Operations a second of so many clients who do one after the other, their latencies and their costs."""
        with Load(client, clients, operation) as load:
            sleep(self.warm_up)
            with self.measuring() as measured, load.recording():
                sleep(self.seconds)
        return {"per_second": load.per_second, **load.figures(), **measured().costs(load.operations)}

    def progress(self) -> Progress:
        at = monotonic()
        return Progress(at, dict(self.rows(_PROGRESS)))

    def rows(self, query: str, *parameters: Any) -> Sequence[TupleRow]:
        """`{processes}` and so on name the tables."""
        for table in TABLES:
            query = query.replace(f"{{{table}}}", f'"{NS}_{table}"')
        cursor = self.database.execute(query.encode(), parameters or None)
        return cursor.fetchall() if cursor.description else []

    @contextmanager
    def _profiling(self) -> Iterator[None]:
        if not self.job.profile:
            yield
            return
        with Sampler(self.meter.backends()) as sampler:
            yield
        self.profile += sampler.report(self.meter.backends())
