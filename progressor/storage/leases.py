"""The rows of the nodes, over a connection that serves nothing else: a heartbeat waits for nobody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from progressor.engine.ports import Peer
from progressor.errors import StorageUnavailable
from progressor.storage.committer import Connection
from progressor.storage.errors import translated

_ACQUIRE = """
insert into progressor_nodes (node_name, expires_at) values (%s, clock_timestamp() + %s) returning epoch"""
_RENEW = "update progressor_nodes set expires_at = clock_timestamp() + %s where epoch = %s returning epoch"
# A batch of the dead node that is being committed holds its row; it is passed over until that has ended.
# One's own row must be fresh: else the database has stalled since it was renewed, and nobody could renew theirs.
_BURY = """
delete from progressor_nodes where epoch in (
  select epoch from progressor_nodes where expires_at < clock_timestamp() and epoch <> %s and exists (
    select from progressor_nodes own where own.epoch = %s and own.expires_at > clock_timestamp() + %s)
  for update skip locked)
returning epoch"""
_PEERS = """
select epoch, node_name, started_at, extract(epoch from expires_at - clock_timestamp())::float8
from progressor_nodes order by epoch"""
_GIVE_UP = "delete from progressor_nodes where epoch = %s returning epoch"


class PostgresLeases:
    """Implements `lease.LeaseStore`. `patience` (seconds) bounds every statement. Used by one thread."""

    def __init__(self, conninfo: Mapping[str, Any], patience: float) -> None:
        self._conninfo = conninfo
        self._patience = patience
        self._connection: Connection | None = None

    def acquire(self, node_name: str, seconds: float) -> int:
        ((epoch,),) = self._run(_ACQUIRE, node_name, timedelta(seconds=seconds))
        return int(epoch)

    def renew(self, epoch: int, seconds: float) -> bool:
        return bool(self._run(_RENEW, timedelta(seconds=seconds), epoch))

    def bury(self, epoch: int) -> Sequence[int]:
        return [int(row[0]) for row in self._run(_BURY, epoch, epoch, timedelta(seconds=self._patience))]

    def peers(self) -> Sequence[Peer]:
        return [Peer(*row) for row in self._run(_PEERS)]

    def give_up(self, epoch: int) -> None:
        self._run(_GIVE_UP, epoch)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _run(self, query: str, *parameters: Any) -> list[TupleRow]:
        try:
            with translated():
                return self._connected().execute(query, parameters).fetchall()
        except StorageUnavailable:
            self.close()
            self._connection = None
            raise

    def _connected(self) -> Connection:
        if self._connection is None:
            milliseconds = round(self._patience * 1000)
            options = {
                "application_name": "progressor lease",
                "connect_timeout": max(2, round(self._patience)),
                "tcp_user_timeout": milliseconds,
            }
            connection = psycopg.connect(**{**self._conninfo, **options}, autocommit=True)
            connection.execute("select set_config('statement_timeout', %s, false)", [str(milliseconds)])
            self._connection = connection
        return self._connection
