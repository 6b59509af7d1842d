"""The outbox of a namespace, as its one publisher in the cluster sees it.

One connection carries all: the advisory lock that makes a node the publisher, the reading, and the deleting of what was
published. To lose the session is to lose the role, so nobody deletes who does not lead. The session is named after
the epoch of its node; that of a dead epoch is ended by whoever wants to lead (docs/adr/0008-outbox.md).

Reading does not begin at the first row of the table: what was deleted there lies in the index until a vacuum, and at
ten thousand messages a second that is a long way. It begins above a floor, below which nothing can come to light any
more. A transaction draws its ids before it commits, so a smaller id may appear after a larger one; but a number is safe
when all have ended who can have drawn it or less.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from psycopg.rows import TupleRow

from progressor.engine.ports import Backlog, Message, Notice, Published, Unpublished
from progressor.errors import StorageUnavailable
from progressor.postgres import Connection, connect, translated
from progressor.storage import packing, session, sql

MOST_MESSAGES = 2000
MOST_BYTES = 8 * 1024 * 1024
"""Of payloads and metadata in a portion; one message may have more."""
MOST_COUNTED = 10_000
_IN_ORDER = {  # plans are made while the outbox is empty; else each look at a long one would read and sort all of it
    "enable_bitmapscan": "off",
    "enable_sort": "off",
}
_NOTICES = {str(notice): notice for notice in Notice}


@dataclass(slots=True)
class Floor:
    """Up to where an outbox is empty for good: reading begins above it."""

    value: int = 0
    _safe: int = 0
    _pending: tuple[int, int] | None = None

    def rise(self, drawn: int, xmin: int, next_xid: int, first: int | None) -> None:
        """After a look at an outbox whose first row above the floor was `first`.

        `drawn`: the last id, read before `xmin` (all transactions before it have ended) and `next_xid` (none from it on
        had begun); they are not younger than the look.
        """
        if self._pending is not None and xmin >= self._pending[1]:
            self._safe, self._pending = self._pending[0], None
        if self._pending is None:
            self._pending = drawn, next_xid
        self.value = self._safe if first is None else min(self._safe, first - 1)


class PostgresOutbox:
    """Implements `ports.Outbox`. `holds_back`: messages wait behind a dead letter of their process."""

    def __init__(self, conninfo: Mapping[str, Any], ns: str, *, holds_back: bool) -> None:
        self._conninfo = dict(conninfo)
        self._queries = sql.queries(ns)
        self._settle = sql.call(ns, "settle", 5)
        self._holds_back = holds_back
        self._connection: Connection | None = None
        self._epoch = 0
        self._leads = False
        self._floor = Floor()
        self._waiting: Sequence[int] = ()
        self._are_letters = False

    def lead(self, epoch: int) -> bool:
        with translated():
            connection = self._connected(epoch)
            if not self._leads:
                ((self._leads,),) = connection.execute(self._queries["take_outbox"])
                if not self._leads:
                    connection.execute(self._queries["end_dead_publisher"], {"epoch": str(epoch)})
            return self._leads

    def read(self) -> Unpublished:
        while True:
            found = self._look()
            self._waiting = [row[0] for row in found if row[-1]]
            messages = [_message(row) for row in found if not row[-1]]
            if messages or not found:
                return Unpublished(messages, found[0][-2] if found else 0.0)
            self.settle(Published())

    def settle(self, published: Published) -> None:
        refused = published.refused
        arguments = [
            self._are_letters,
            packing.bigint(published.sent),
            packing.bigint(list(refused)),
            packing.text(refused.values()),
            packing.bigint(self._waiting),
        ]
        with self._session() as connection:
            connection.execute(self._settle, arguments)

    def backlog(self) -> Backlog:
        parameters = {"after": self._floor.value, "most": MOST_COUNTED}
        with self._session() as connection:
            ((depth, age, dead_letters, waiting),) = connection.execute(self._queries["outbox_figures"], parameters)
            return Backlog(depth, age, dead_letters, waiting)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection, self._leads = None, False

    def _look(self) -> list[TupleRow]:
        """What is ready of the dead letters, which are older; else of the outbox."""
        parameters = {
            "after": self._floor.value,
            "limit": MOST_MESSAGES,
            "bytes": MOST_BYTES,
            "holds_back": self._holds_back,
        }
        with self._session() as connection:
            with connection.pipeline():  # each statement has a snapshot of its own, in this order
                drawn = connection.execute(self._queries["outbox_drawn"])
                horizon = connection.execute(self._queries["outbox_horizon"])
                letters = connection.cursor(binary=True).execute(self._queries["letters"], parameters)
                outbox = connection.cursor(binary=True).execute(self._queries["outbox"], parameters)
            ready, found = letters.fetchall(), outbox.fetchall()
            ((last,),), ((xmin, next_xid),) = drawn, horizon
        self._floor.rise(last, xmin, next_xid, found[0][0] if found else None)
        self._are_letters = bool(ready)
        return ready or found

    @contextmanager
    def _session(self) -> Iterator[Connection]:
        """The session that leads. Whatever goes wrong in it is its end, and that of the role."""
        if self._connection is None or not self._leads:
            raise StorageUnavailable("storage unavailable: this node does not publish")
        try:
            with translated():
                yield self._connection
        except BaseException:
            self.close()
            raise

    def _connected(self, epoch: int) -> Connection:
        if self._connection is not None and not self._connection.closed and epoch == self._epoch:
            return self._connection
        self.close()
        self._floor = Floor()
        connection = connect({**self._conninfo, "application_name": f"{sql.PUBLISHER} {epoch}"})
        session.prepare(connection)
        session.configure(connection, {**session.PLANNING, **_IN_ORDER})
        self._connection, self._epoch = connection, epoch
        return connection


def _message(row: TupleRow) -> Message:
    """Of the query `messages`; ten thousand a second."""
    message_id, process_id, notice, at, event_id, metadata, payload, reason, _, _ = row
    told = None if metadata is None else packing.load_json(metadata)
    return Message(message_id, process_id, _NOTICES[notice], at, event_id, told, payload, reason)
