"""Running until told to stop: signals, and what they mean.

SIGTERM and SIGINT drain and stop, a second one stops at once; SIGUSR1 prints every actor, the length of its
mailbox and the stack of its thread.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from threading import Event
from types import FrameType
from typing import Any, TextIO

from progressor.application import Node
from progressor.otp import actors
from progressor.rpc.listener import shown, url

EXIT_FAILED = 1
LOG_FORMAT = "%(asctime)s %(levelname)s %(threadName)s %(name)s: %(message)s"
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

COLLECTOR_THRESHOLDS = (2000, 2, 1000)
"""Of Python's garbage collector: new objects for a collection of the youngest; how many of these for one of the younger
half, and of those for one of all."""

logger = logging.getLogger(__name__)


def serve(
    node: Node,
    on_started: Callable[[], object],
    stop_signals: Iterable[signal.Signals] = STOP_SIGNALS,
) -> int:
    """Runs the node until a stop signal, or until it gives up; the exit status. Raises as `Node.start` does."""
    stop = Event()
    handlers = {number: on_stop(stop, lambda: None) for number in stop_signals}
    with signals({**handlers, signal.SIGUSR1: _on_dump}):
        node.start()
        tame_collector()
        on_started()
        while not stop.is_set() and not node.wait_failed(0.2):
            pass
        failed = not stop.is_set()
        logger.info("stopping")
        node.stop()
    return EXIT_FAILED if failed else 0


def tame_collector() -> None:
    """Keeps Python's collector of cycles from what lives long.

    A collection of everything stops all threads: for 40 ms when there is only the program, and as long again for each
    100,000 events in memory. By its own thresholds Python makes one every few seconds. The engine makes next to no
    cycles, so what is there now is never looked at again, and histories and caches are seldom.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)


def on_stop(stop: Event, kill: Callable[[], object]) -> Callable[[int, FrameType | None], None]:
    """The first signal asks to stop, the second does."""

    def handler(_signum: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            print("progressor-node: stopped at once", file=sys.stderr)
            kill()
            os._exit(EXIT_FAILED)  # nothing may hold it up; what ran is taken over by other nodes
        stop.set()

    return handler


def announce_ready() -> None:
    """On standard output, for whoever started us."""
    print("progressor-node: ready", flush=True)


def announce_ports(http: tuple[str, int] | None, thrift: tuple[str, int] | None, *, tls: bool) -> None:
    if http is not None:
        logger.info("%s/metrics, /health, /ready", url(http, tls=tls))
    if thrift is not None:
        logger.info("%s://%s", "thrifts" if tls else "thrift", shown(thrift))


@contextmanager
def signals(handlers: Mapping[signal.Signals, Any]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _on_dump(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
    dump_actors(sys.stderr)


def dump_actors(out: TextIO) -> None:
    """Every actor: name, class, messages that wait, and where its thread is."""
    frames = sys._current_frames()  # noqa: SLF001 - the documented way to other threads' stacks
    for ref in sorted(actors(), key=lambda ref: ref.name):
        print(f"\n{ref.name} ({ref.actor_class.__name__}), mailbox {ref.mailbox_length}", file=out)
        frame = frames.get(ref.thread) if ref.thread is not None else None
        if frame is not None:
            print("".join(traceback.format_stack(frame)), end="", file=out)
    out.flush()
