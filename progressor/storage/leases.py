"""The rows of the nodes, over a connection that serves nothing else: a heartbeat waits for nobody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from psycopg.rows import TupleRow

from progressor.engine.ports import Peer
from progressor.errors import StorageUnavailable
from progressor.postgres import Connection, connect, translated
from progressor.storage.session import SILENT_CLIENT, WRITER

_ACQUIRE = """
insert into progressor_nodes (node_name, expires_at) values (%s, clock_timestamp() + %s) returning epoch"""
_RENEW = """
with old as (select epoch, expires_at from progressor_nodes where epoch = %s)
update progressor_nodes n set expires_at = clock_timestamp() + %s from old where n.epoch = old.epoch
returning extract(epoch from old.expires_at - clock_timestamp())::float8"""
# A batch of the dead node that is being committed holds its row; it is passed over until that has ended. When the node
# froze in the middle of sending it, that would be when it thaws: no timeout of PostgreSQL 15 looks there. So such a
# session is ended. One's own row must be fresh: else the database has stalled since, and nobody could renew theirs.
_BURY = """
with expired as materialized (
  select epoch, expires_at from progressor_nodes
  where expires_at < clock_timestamp() and epoch <> %(epoch)s and exists (
    select from progressor_nodes own
    where own.epoch = %(epoch)s and own.expires_at > clock_timestamp() + %(patience)s))
, buried as (
  delete from progressor_nodes where epoch in (
    select epoch from progressor_nodes where epoch in (select epoch from expired) for update skip locked)
  returning epoch)
, stuck as materialized (
  select pid from pg_stat_activity
  where exists (select from expired where expires_at < clock_timestamp() - %(stuck)s)
    and datname = current_database() and starts_with(application_name, %(writer)s)
    and state <> 'idle' and wait_event = 'ClientRead' and state_change < clock_timestamp() - %(stuck)s)
select epoch from buried
union all
select null from stuck where pg_terminate_backend(pid)"""
_PEERS = """
select epoch, node_name, started_at, extract(epoch from expires_at - clock_timestamp())::float8
from progressor_nodes order by epoch"""
_GIVE_UP = "delete from progressor_nodes where epoch = %s returning epoch"


class PostgresLeases:
    """Implements `ports.LeaseStore`. `patience` (seconds) bounds every statement. Used by one thread."""

    def __init__(self, conninfo: Mapping[str, Any], patience: float) -> None:
        self._conninfo = conninfo
        self._patience = patience
        self._connection: Connection | None = None

    def acquire(self, node_name: str, seconds: float) -> int:
        ((epoch,),) = self._run(_ACQUIRE, [node_name, timedelta(seconds=seconds)])
        return int(epoch)

    def renew(self, epoch: int, seconds: float) -> float | None:
        found = self._run(_RENEW, [epoch, timedelta(seconds=seconds)])
        return float(found[0][0]) if found else None

    def bury(self, epoch: int) -> Sequence[int]:
        times = {"patience": timedelta(seconds=self._patience), "stuck": timedelta(seconds=SILENT_CLIENT)}
        found = self._run(_BURY, {"epoch": epoch, "writer": WRITER, **times})
        return [int(dead) for (dead,) in found if dead is not None]

    def peers(self) -> Sequence[Peer]:
        return [Peer(*row) for row in self._run(_PEERS)]

    def give_up(self, epoch: int) -> None:
        self._run(_GIVE_UP, [epoch])

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _run(self, query: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[TupleRow]:
        try:
            with translated():
                return self._connected().execute(query, parameters).fetchall()
        except StorageUnavailable:
            self.close()
            self._connection = None
            raise

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = connect(self._conninfo, patience=self._patience, application_name="progressor lease")
        return self._connection
