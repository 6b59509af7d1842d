"""What a period costs: CPU of the engine and of PostgreSQL, WAL, transactions, memory."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Any, Self, TypeAlias

import psycopg

from bench import proc

Figures: TypeAlias = dict[str, float]
"""What was measured. The report has columns for per_second, p50, p99, max (milliseconds), engine_cpu and postgres_cpu
(seconds for 1,000 operations), wal (bytes an operation) and memory (megabytes); the other names are for people."""

_COUNTERS = """
select (pg_current_wal_insert_lsn() - '0/0')::bigint,
  (select xact_commit + xact_rollback from pg_stat_database where datname = %s)"""
_BACKENDS = """
select pid, case when backend_type = 'client backend' then application_name else backend_type end
from pg_stat_activity where pid <> pg_backend_pid()"""


@dataclass(frozen=True, slots=True)
class Reading:
    at: float
    engine_cpu: float
    postgres_cpu: float
    wal: int
    transactions: int


@dataclass(frozen=True, slots=True)
class Period:
    """Between two readings."""

    begin: Reading
    end: Reading
    memory: float

    @property
    def seconds(self) -> float:
        return self.end.at - self.begin.at

    @property
    def engine_cpu(self) -> float:
        return self.end.engine_cpu - self.begin.engine_cpu

    @property
    def postgres_cpu(self) -> float:
        return self.end.postgres_cpu - self.begin.postgres_cpu

    @property
    def transactions(self) -> int:
        return self.end.transactions - self.begin.transactions

    def costs(self, operations: float) -> Figures:
        """The costs of each of so many operations."""
        if not operations:
            return {"memory": self.memory}
        return {
            "engine_cpu": 1000 * self.engine_cpu / operations,
            "postgres_cpu": 1000 * self.postgres_cpu / operations,
            "wal": (self.end.wal - self.begin.wal) / operations,
            "memory": self.memory,
        }


class Meter:
    """Reads over a connection to another database, so as not to count itself."""

    def __init__(self, conninfo: Mapping[str, Any], dbname: str, postgres_pid: int) -> None:
        self._connection = psycopg.connect(**conninfo, autocommit=True)
        self._dbname = dbname
        self._postgres_pid = postgres_pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.close()

    def read(self, engine_pid: int) -> Reading:
        row = self._connection.execute(_COUNTERS, [self._dbname]).fetchone()
        wal, transactions = row or (0, 0)
        engine, postgres = proc.family_cpu_seconds(engine_pid), proc.family_cpu_seconds(self._postgres_pid)
        return Reading(monotonic(), engine, postgres, wal, transactions)

    def backends(self) -> Counter[str]:
        """Microseconds of CPU of the server's processes, by what they are for."""
        found: Counter[str] = Counter()
        for pid, name in self._connection.execute(_BACKENDS):
            purpose = re.sub(r" [0-9a-f]{32}$", "", name or "other")
            found[purpose] += round(1e6 * proc.cpu_seconds(pid))
        return found
