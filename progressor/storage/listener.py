"""Hears which tasks other nodes have ended for callers of this one (PostgreSQL's LISTEN).

Only a shortcut: a scanner looks for answers now and then anyway, so what is missed comes a little later.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any

from psycopg import sql

from progressor.errors import StorageUnavailable
from progressor.otp import Actor
from progressor.postgres import Connection, connect, translated

logger = logging.getLogger(__name__)

PATIENCE = 0.2
"""Seconds: how long a look lasts, and so how long a stop may take."""
PAUSE = 1.0
EVERYBODY = 0
"""The channel for tasks that callers of more than one node wait for."""


@dataclass(frozen=True, slots=True)
class Listen:
    """Take one look, then go on."""


class Listener(Actor):
    """Calls `announce(namespace, task ids)`. `epoch` tells this node's epoch of the moment."""

    def __init__(
        self,
        conninfo: Mapping[str, Any],
        epoch: Callable[[], int],
        announce: Callable[[str, Sequence[int]], object],
    ) -> None:
        super().__init__()
        self._conninfo = conninfo
        self._epoch = epoch
        self._announce = announce
        self._connection: Connection | None = None
        self._heard_by = 0

    def init(self) -> None:
        self.ref.cast(Listen())

    def terminate(self, reason: Exception) -> None:
        self._close()

    def handle(self, message: object) -> object:
        match message:
            case Listen():
                self._look()
                self.ref.cast(message)
            case _:
                return super().handle(message)
        return None

    def _look(self) -> None:
        try:
            with translated():
                for notice in self._connected().notifies(timeout=PATIENCE):
                    ns, _, tasks = notice.payload.rpartition(":")
                    self._announce(ns, [int(task) for task in tasks.split(",")])
        except StorageUnavailable as error:
            logger.warning("not listening: %s", error)
            self._close()
            Event().wait(PAUSE)

    def _connected(self) -> Connection:
        epoch = self._epoch()
        if self._connection is None:
            self._connection = connect(self._conninfo, application_name="progressor listener")
            self._heard_by = 0
        if self._heard_by != epoch:
            self._connection.execute("unlisten *")
            for channel in (EVERYBODY, epoch):
                self._connection.execute(sql.SQL("listen {}").format(sql.Identifier(f"progressor_{channel}")))
            self._heard_by = epoch
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
