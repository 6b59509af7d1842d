"""An actor that dies when it fails, and says so.

Pykka gives the thread, the inbox and the future. The receive loop is ours, because Pykka's lets an actor live
on after a failed request, stops all actors on a BaseException, stops behind the backlog, and knows no
parents. Our actors are not in Pykka's registry: its `stop_all` knows nothing of supervisors.

The life of an actor:

    __init__   in the starter's thread
    init       in its own thread; the starter waits; an error here is raised at the starter
    handle     one message at a time, until it raises, `exit` is called, or the actor is asked to stop
    terminate  after its last message, also after a crash; it takes no more messages by then
    Exit       to whoever started it; what it started itself and still lives is asked to stop

Private names begin with two underscores, so that subclasses need not know them.
"""

from __future__ import annotations

import logging
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pykka

from progressor.otp.errors import Normal, Shutdown, is_crash
from progressor.otp.messages import Exit, Refuse
from progressor.otp.ref import Ref, reject

logger = logging.getLogger(__name__)

OnExit = Callable[[Exit], object]


class Actor(pykka.ThreadingActor):
    """Base of all actors: override `init`, `handle` and `terminate`."""

    use_daemon_thread = True  # a hung actor must not keep the interpreter from exiting

    def __init__(self, name: str = "") -> None:
        """`name` names the thread too; default: the id in the child specification, or the class."""
        super().__init__()
        self.__inbox: queue.SimpleQueue[Any] = self.actor_inbox  # type: ignore[assignment]
        self.__aside: Any = None
        self.__started = self._create_future()
        self.__on_exit: OnExit | None = None
        self.__linked: weakref.WeakSet[Ref] = weakref.WeakSet()
        self.__thread = _ActorThread(target=self._actor_loop, daemon=self.use_daemon_thread)
        self.ref = self.__thread.ref = Ref(self.actor_ref, self.__inbox, self.__thread, name)

    def init(self) -> None:
        """Prepare, in the actor's own thread. Must not call whoever may be starting this actor."""

    def handle(self, message: object) -> object:
        """Handle one message. The result answers a `Call` (see also `Refuse`); an exception kills."""
        raise TypeError(f"{self.ref.name} does not understand {message!r}")

    def terminate(self, reason: Exception) -> None:
        """Clean up. `reason` is `Normal`, `Shutdown`, or what the actor crashed with."""

    def exit(self, reason: Exception | None = None) -> None:
        """Stop after the handler has returned and its reply is sent; default reason: `Normal`."""
        self.ref.request_stop(reason or Normal())

    def stop(self) -> None:
        """As `exit()`; Pykka's name for it."""
        self.exit()

    def drain(self, limit: int) -> list[object]:
        """Up to `limit` more casts that wait already, in order, without blocking.

        Ends at a call, which is handled as soon as the handler returns, and when the actor is to stop.
        """
        casts: list[object] = []
        while len(casts) < limit and self.__aside is None and self.ref.stop_reason is None:
            try:
                envelope = self.__inbox.get_nowait()
            except queue.Empty:
                break
            if envelope.reply_to is None:
                casts.append(envelope.message)
            else:
                self.__aside = envelope
        return casts

    def start_link(self, factory: Callable[[], Actor], name: str = "") -> Ref:
        """Start an actor. This one gets its `Exit`; when this one dies, that one is asked to stop.

        Raises what the factory or `init` raised. Who does not handle `Exit` dies of it, as if linked.
        """
        ref = factory().launch(name, self.ref.cast)
        self.__linked.add(ref)
        return ref

    def launch(self, name: str, on_exit: OnExit | None) -> Ref:
        """Start the thread and wait for `init`. See `start_link` and `start_root`."""
        self.ref.name = self.__thread.name = self.ref.name or name or type(self).__name__
        self.__on_exit = on_exit
        self._start_actor_loop()
        try:
            self.__started.get()
        except Exception:
            self.ref.join(timeout=1)  # it has nothing left to do
            raise
        return self.ref

    @staticmethod
    def _create_actor_inbox() -> Any:
        return queue.SimpleQueue()  # in C, about twice as fast as Pykka's queue.Queue

    def _start_actor_loop(self) -> None:
        self.__thread.start()

    def _actor_loop(self) -> None:
        try:
            self.init()
        except BaseException as exc:  # raised at the starter
            self.__close_mailbox()
            self.__stop_linked()
            self.__started.set_exception(_exc_info(_as_exception(exc)))
            return
        self.__started.set()
        self.__end(self.__receive())

    def __receive(self) -> Exception:
        """Serve messages until there is a reason to die."""
        ref, get = self.ref, self.__inbox.get
        while True:
            envelope, self.__aside = self.__aside or get(), None
            if ref.stop_reason is not None:
                reject(envelope)
                return ref.stop_reason
            error = self.__serve(envelope)
            del envelope  # an idle actor must not keep its last message in memory
            if error is not None:
                return error

    def __serve(self, envelope: Any) -> Exception | None:
        try:
            reply = self.handle(envelope.message)
        except BaseException as exc:  # told to caller and supervisor
            return self.__fail(envelope, _as_exception(exc))
        if envelope.reply_to is None:
            return None
        if type(reply) is Refuse:
            envelope.reply_to.set_exception(_exc_info(reply.error))
        else:
            envelope.reply_to.set(reply)
        return None

    def __fail(self, envelope: Any, error: Exception) -> Exception:
        self.actor_stopped.set()  # first, so that the caller finds a dead actor
        if envelope.reply_to is not None:
            envelope.reply_to.set_exception(_exc_info(error))
        return error

    def __end(self, reason: Exception) -> None:
        self.__close_mailbox()
        self.__log_crash(reason)
        try:
            self.terminate(reason)
        except BaseException as exc:  # becomes the reason, as in gen_server
            reason = _as_exception(exc)
            self.__log_crash(reason)
        self.__stop_linked()
        if self.__on_exit is not None:
            self.__tell(self.__on_exit, Exit(self.ref, reason))

    def __close_mailbox(self) -> None:
        self.actor_stopped.set()
        if self.__aside is not None:
            reject(self.__aside)
        self.ref.reject_backlog()

    def __stop_linked(self) -> None:
        for ref in list(self.__linked):
            ref.request_stop(Shutdown())

    def __log_crash(self, reason: Exception) -> None:
        if is_crash(reason):
            logger.error("actor %s died", self.ref.name, exc_info=reason, extra={"actor": self.ref.name})

    def __tell(self, on_exit: OnExit, exit_: Exit) -> None:
        try:
            on_exit(exit_)
        except Exception:
            logger.exception("on_exit of %s failed", self.ref.name)


class _ActorThread(threading.Thread):
    """Makes Python's own table of threads the registry of actors: nothing to maintain, nothing to leak."""

    ref: Ref


def actors() -> list[Ref]:
    """The actors whose threads run, for a dump: also those that a supervisor has given up waiting for."""
    return [thread.ref for thread in threading.enumerate() if isinstance(thread, _ActorThread)]


def start_root(factory: Callable[[], Actor], name: str = "root", on_exit: OnExit | None = None) -> Ref:
    """Start an actor without a supervisor: the root of a tree. Raises what its `init` raised.

    `on_exit` is called in the dying root's thread. `ref.join(timeout)` waits for its end, `ref.stop(timeout)`
    stops it.
    """
    return factory().launch(name, on_exit)


def _as_exception(exc: BaseException) -> Exception:
    """SystemExit and its like concern the thread that raised them, not callers and supervisors."""
    if isinstance(exc, Exception):
        return exc
    converted = RuntimeError(f"{exc!r} in an actor")
    converted.__cause__ = exc
    return converted


def _exc_info(error: Exception) -> Any:
    return (type(error), error, error.__traceback__)
