"""Newer representations for events that are stored already (docs/thrift.md, "Modernizers").

One event at a time, and never more than a page of the history in memory. What was stored stays, however it ends:
asked again, it goes on where it ended, since what has the current version is passed over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime

from progressor.engine.ports import Storage
from progressor.errors import ProcessNotFound, ProcessorError, RequestTimeout, TransientError
from progressor.model import Event, ModernizeRequest, Range, now
from progressor.modernizer import Modernizer
from progressor.representation import format_version

logger = logging.getLogger(__name__)

PAGE = 100


def modernize(
    storage: Storage,
    ns: str,
    process_id: str,
    range_: Range,
    modernizer: Modernizer,
    context: bytes,
    deadline: datetime,
    check_open: Callable[[], None],
) -> None:
    """Raises ProcessNotFound, RequestTimeout, and ProcessorError when the modernizer fails; `check_open` may too."""
    for event in _events(storage, ns, process_id, range_, deadline):
        version = format_version(event.metadata)
        if version is not None and version >= modernizer.format_version:
            continue
        check_open()
        seconds_left(deadline)
        newer = _ask(modernizer, ModernizeRequest(ns, process_id, event, deadline), context)
        if _is_newer(event, version, format_version(newer.metadata)):
            storage.modernize(ns, process_id, event, newer)


def _events(storage: Storage, ns: str, process_id: str, range_: Range, deadline: datetime) -> Iterator[Event]:
    """Those of the range, read a page at a time. The history may grow meanwhile."""
    left = range_.limit
    while left is None or left > 0:
        limit = PAGE if left is None else min(PAGE, left)
        process = storage.get(ns, process_id, replace(range_, limit=limit), seconds_left(deadline))
        if process is None:
            raise ProcessNotFound
        yield from process.history
        if len(process.history) < limit:
            return
        range_ = replace(range_, offset=process.history[-1].event_id)
        left = None if left is None else left - limit


def seconds_left(deadline: datetime) -> float:
    """Raises RequestTimeout when there are none."""
    left = (deadline - now()).total_seconds()
    if left <= 0:
        raise RequestTimeout(
            "timeout: some events may be modernized, others are not; the same request goes on with them"
        )
    return left


def _ask(modernizer: Modernizer, request: ModernizeRequest, context: bytes) -> Event:
    try:
        newer: object = modernizer.modernize(request, context)
    except ProcessorError:
        raise
    except (ConnectionError, TimeoutError) as error:
        raise TransientError(f"{type(error).__name__}: {error}") from error
    except Exception as error:
        logger.exception("a modernizer failed")
        raise ProcessorError(f"{type(error).__name__}: {error}") from error
    if not isinstance(newer, Event):
        raise ProcessorError(f"the modernizer answered {type(newer).__name__} instead of an Event")
    return newer


def _is_newer(event: Event, version: int | None, answered: int | None) -> bool:
    if answered == version:
        return False
    if answered is None or (version is not None and answered < version):
        raise ProcessorError(f"event {event.event_id}: the modernizer answered version {answered} for {version}")
    return True
