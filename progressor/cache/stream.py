"""The WAL of a database as it is written (PostgreSQL manual, "Streaming Replication Protocol").

The slot is temporary: it goes with the connection, so that a node that dies keeps no WAL. The connection is used in
short looks, because creating a slot waits for transactions that write, and a node must be able to stop meanwhile.
"""

from __future__ import annotations

import select
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from time import monotonic, sleep
from typing import Any

from psycopg import pq

from progressor.cache.transaction import Decoder, Transaction
from progressor.postgres import EPOCH, connect

LOOK = 0.2
"""Seconds: how long a look lasts at most, and so how long a stop may take."""
PAUSE = 0.004
"""Seconds to let more come when something has come. The server sends each row by itself, and to be woken for each of
them, which takes the interpreter from a thread that runs, costs more than the rows do."""
STATUS_INTERVAL = 1.0
"""Seconds between reports of what was received; the server keeps its WAL until then."""
SILENCE = 10.0
"""Seconds without a word after which the connection counts as lost. The server is asked for one after half of it."""
NAME = "progressor replication"

_WAL_DATA, _KEEPALIVE = b"wk"
_WAL_DATA_HEADER = 25
_KEEPALIVE_BODY = struct.Struct(">QQB").unpack_from
_STATUS = struct.Struct(">cQQQqB").pack


class StreamLost(Exception):
    """the stream of the WAL has ended"""


class Stream:
    """Used by one thread. `is_over` tells when to give up waiting."""

    def __init__(
        self, conninfo: Mapping[str, Any], slot: str, publications: Sequence[str], is_over: Callable[[], bool]
    ) -> None:
        """Waits until the server streams. Raises psycopg.Error, StreamLost."""
        self._connection = connect(conninfo, application_name=NAME, replication="database")
        self._link = self._connection.pgconn
        self._link.nonblocking = 1
        self._poll = select.poll()
        self._poll.register(self._link.socket, select.POLLIN)
        self._is_over = is_over
        self._decoder = Decoder()
        self._heard = self._reported_at = monotonic()
        self._reported = 0
        self._asked = self._flows = False
        self.position = 0
        """Up to here everything was received and handled."""
        try:
            self._start(slot, publications)
        except BaseException:
            self.close()
            raise

    def receive(self, seconds: float) -> Iterator[Transaction]:
        """What is committed within this time. A transaction counts as handled when the next one is asked for."""
        until = monotonic() + seconds
        while (left := until - monotonic()) > 0 and not self._is_over():
            if self._flows:
                sleep(PAUSE)
                self._link.consume_input()
            else:
                self._wait(left)
            yield from self._received()
            self._keep_alive()

    def close(self) -> None:
        self._connection.close()

    # Setting up

    def _start(self, slot: str, publications: Sequence[str]) -> None:
        created = self._command(
            f"CREATE_REPLICATION_SLOT {_quoted(slot)} TEMPORARY LOGICAL pgoutput (SNAPSHOT 'nothing')"
        )
        self.position = _lsn(created.get_value(0, 1) or b"0/0")
        while self._result() is not None:
            pass
        names = ",".join(map(_quoted, publications)).replace("'", "''")
        self._command(
            f"START_REPLICATION SLOT {_quoted(slot)} LOGICAL 0/0"
            f" (proto_version '1', publication_names '{names}', binary 'true')"
        )

    def _command(self, text: str) -> pq.abc.PGresult:
        self._link.send_query(text.encode())
        result = self._result()
        if result is None or result.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COPY_BOTH):
            raise StreamLost(self._link.get_error_message())
        return result

    def _result(self) -> pq.abc.PGresult | None:
        while self._link.flush() or self._link.is_busy():
            if self._is_over():
                raise StreamLost("stopped")
            self._wait(LOOK)
        return self._link.get_result()

    # The stream

    def _wait(self, seconds: float) -> None:
        if self._poll.poll(seconds * 1000):
            self._link.consume_input()

    def _received(self) -> Iterator[Transaction]:
        self._flows = False
        while True:
            size, view = self._link.get_copy_data(1)
            if size == 0:
                break
            if size < 0:
                self._link.get_result()
                raise StreamLost(self._link.get_error_message() or StreamLost.__doc__)
            self._flows = True
            data = bytes(view)
            if data[0] == _KEEPALIVE:
                self._note(data)
            elif data[0] == _WAL_DATA and (transaction := self._decoder.add(data[_WAL_DATA_HEADER:])) is not None:
                yield transaction
                self.position = max(self.position, transaction.end)
        if self._flows:
            self._heard, self._asked = monotonic(), False

    def _note(self, data: bytes) -> None:
        """The server has nothing more for us up to there."""
        end, _, wants_reply = _KEEPALIVE_BODY(data, 1)
        if not self._decoder.in_transaction:
            self.position = max(self.position, end)
        if wants_reply:
            self._report(monotonic())

    def _keep_alive(self) -> None:
        now = monotonic()
        silence = now - self._heard
        if silence > SILENCE:
            raise StreamLost(f"no word from the server for {SILENCE:g} s")
        if silence > SILENCE / 2 and not self._asked:
            self._asked = True
            self._report(now, ask=True)
        elif self.position > self._reported and now - self._reported_at > STATUS_INTERVAL:
            self._report(now)
        self._link.flush()

    def _report(self, now: float, *, ask: bool = False) -> None:
        at = (datetime.now(UTC) - EPOCH) // timedelta(microseconds=1)
        self._link.put_copy_data(_STATUS(b"r", self.position, self.position, self.position, at, ask))
        self._reported, self._reported_at = self.position, now


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _lsn(text: bytes) -> int:
    high, low = text.split(b"/")
    return int(high, 16) << 32 | int(low, 16)
