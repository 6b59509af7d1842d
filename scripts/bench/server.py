"""The PostgreSQL server of the benchmark, and pgbench on it: what this machine can do at this time."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg.sql import SQL, Identifier

from progressor.storage.embedded import EmbeddedPostgres, find_binaries

SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "wal_level": "logical",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "5min",
}
"""A modest real server: what is answered is on the disk, and the cache can read the WAL."""
REFERENCE = ("-N", "-c", "16", "-j", "2")
_REFERENCE_DB = "pgbench"


class BenchServer:
    """A server of its own, with a database for the reference; `scale` is that of pgbench."""

    def __init__(self, bin_dir: str | None, scale: int) -> None:
        self._pgbench_binary = find_binaries(bin_dir).directory / "pgbench"
        self.postgres = EmbeddedPostgres.start(bin_dir=bin_dir, settings=SETTINGS)
        try:
            with self._admin() as admin:
                admin.execute(f"create database {_REFERENCE_DB}")
                self.version = str(admin.info.server_version // 10000)
            self._pgbench("-i", "-q", "-s", str(scale))
        except BaseException:
            self.postgres.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.postgres.close()

    def reference(self, seconds: float) -> float:
        """Transactions a second of `pgbench -N` with 16 clients, now."""
        self.checkpoint()
        output = self._pgbench(*REFERENCE, "-n", "-T", str(max(1, round(seconds))))
        found = re.search(r"^tps = ([0-9.]+)", output, re.MULTILINE)
        if found is None:
            raise RuntimeError(f"pgbench said:\n{output}")
        return float(found[1])

    def checkpoint(self) -> None:
        """What is measured next begins as everything else does: a first change of a page writes it whole."""
        with self._admin() as admin:
            admin.execute("checkpoint")

    @contextmanager
    def database(self) -> Iterator[dict[str, Any]]:
        """An empty database, as arguments of psycopg.connect; dropped at the end."""
        name = f"bench_{secrets.token_hex(4)}"
        with self._admin() as admin:
            admin.execute(SQL("create database {}").format(Identifier(name)))
        try:
            yield {**self.postgres.conninfo, "dbname": name}
        finally:
            with self._admin() as admin:
                admin.execute(SQL("drop database {} with (force)").format(Identifier(name)))

    def _admin(self) -> psycopg.Connection[Any]:
        return psycopg.connect(**self.postgres.conninfo, autocommit=True)

    def _pgbench(self, *arguments: str) -> str:
        server = self.postgres
        where = ["-h", server.host, "-p", str(server.port), "-U", server.user, _REFERENCE_DB]
        command: Sequence[str] = [str(self._pgbench_binary), *arguments, *where]
        environment = {**os.environ, "PGPASSWORD": server.password, "LC_ALL": "C"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"pgbench failed with status {done.returncode}:\n{done.stderr}")
        return done.stdout
