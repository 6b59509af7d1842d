"""The verbs: each checks its input, hands it to the engine, and waits for the answer or gives a future of it.

    node.client.call(ns=..., id=..., args=...)           waits, at most `timeout` seconds
    node.client.future.call(ns=..., id=..., args=...)    a concurrent.futures.Future

Callbacks of a future run in the engine's threads and must not block. The arguments and errors of the verbs are in
progressor/verbs.py; what each needs and does: docs/design.md, "Operations".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, InvalidStateError, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from time import monotonic
from typing import Any, ParamSpec, TypeAlias, TypeVar

from progressor import checks
from progressor.engine import modernization
from progressor.engine.callers import OUTCOME_UNKNOWN, wake
from progressor.engine.directory import Directory, Role
from progressor.engine.messages import Accept, Expect
from progressor.engine.ports import Cache, Request, Selection, Storage
from progressor.engine.reader import Reader, remembered
from progressor.engine.tokens import Tokens
from progressor.errors import (
    NamespaceNotFound,
    ProcessNotFound,
    ProgressorError,
    RequestTimeout,
    StorageUnavailable,
)
from progressor.model import Action, Answered, Health, Metadata, Op, Page, Process, Range, TraceUnit, now
from progressor.modernizer import Modernizer
from progressor.otp import Timer
from progressor.verbs import FutureVerbs, Verbs

P = ParamSpec("P")
T = TypeVar("T")
EVERYTHING = Range()
KIND = "kind"
RUNS_NO_STEP = (Op.SIMPLE_REPAIR, Op.REMOVE)
"""Requests without a step of their own: arguments and a range must reach neither their task nor the timer that a simple
repair runs again."""
MakeError: TypeAlias = Callable[[], ProgressorError]
STOPPING = f"{StorageUnavailable.text}: the node stops or restarts"


@dataclass(frozen=True, slots=True)
class Namespace:
    """What the verbs need to know of a namespace."""

    name: str
    database: str
    storage: Storage
    patience: float
    """A request waits no longer than this many seconds."""
    modernizer: Modernizer | None = None
    cache: Cache | None = None


@dataclass(frozen=True, slots=True)
class Engine:
    """What the verbs need of a node."""

    namespaces: Mapping[str, Namespace]
    directory: Directory
    tokens: Tokens
    timer: Timer
    readers: ThreadPoolExecutor
    modernizers: ThreadPoolExecutor
    is_open: Callable[[], bool]
    """Whether new requests are taken."""
    health: Callable[[Sequence[str]], tuple[Health, Mapping[str, Any]]]

    def namespace(self, name: str) -> Namespace:
        try:
            return self.namespaces[name]
        except (KeyError, TypeError):  # TypeError: it cannot be a key
            checks.text("ns", name)
            raise NamespaceNotFound from None


class FutureClient(FutureVerbs):
    """The verbs as futures, and two more that the Automaton needs: `timer` and `modernize`."""

    def __init__(self, client: Client, engine: Engine) -> None:
        super().__init__(client, engine.readers)
        self._engine = engine
        self._pending: dict[Future[Any], MakeError] = {}

    def close(self) -> None:
        """Answers those who wait, when nobody else will."""
        for pending, stopped in self._pending.copy().items():
            _refuse(pending, stopped())

    def end_with_the_node(self, pending: Future[Any], stopped: MakeError) -> None:
        """Has a future answered by `close` at the latest."""
        self._pending[pending] = stopped
        pending.add_done_callback(self._pending.pop)

    def get(
        self,
        *,
        ns: str,
        id: str,
        range: Range | None = None,
        cache: bool = True,
        at_least_event_id: int | None = None,
        timeout: float | None = None,
    ) -> Future[Process]:
        """Needs a thread to look at a process that is not in memory, and none to wait for what is not there yet."""
        found: Future[Process] = Future()
        try:
            reader = begin(
                self._engine, ns, id, range, cache=cache, at_least_event_id=at_least_event_id, timeout=timeout
            )
        except ProgressorError as error:
            found.set_exception(error)
            return found
        if isinstance(reader, Process):
            found.set_result(reader)
            return found
        found.add_done_callback(lambda _: reader.news.cancel())
        self._end_in_time(found, reader.left, reader.late, _stopping)
        self._look_soon(reader, found)
        return found

    def _end_in_time(self, pending: Future[Any], seconds: float, late: MakeError, stopped: MakeError) -> None:
        """Has a future answered after so many seconds, whatever hangs, and when the node stops."""
        self.end_with_the_node(pending, stopped)
        try:
            expiry = self._engine.timer.after(seconds, lambda: _refuse(pending, late()))
        except RuntimeError:  # the node has stopped
            _refuse(pending, stopped())
            return
        pending.add_done_callback(lambda _: expiry.cancel())

    def _look_soon(self, reader: Reader, found: Future[Process]) -> None:
        if found.done():  # nobody waits any more
            return
        try:
            self._engine.readers.submit(self._look, reader, found)
        except RuntimeError:  # the node has stopped
            _refuse(found, _stopping())

    def _look(self, reader: Reader, found: Future[Process]) -> None:
        try:
            process = reader.look()
            if process is None:
                self._look_later(reader, found)
                return
        except Exception as error:
            _refuse(found, error)
            return
        with suppress(InvalidStateError):
            found.set_result(process)

    def _look_later(self, reader: Reader, found: Future[Process]) -> None:
        """After a pause, or when there are news."""
        over: Future[None] = Future()
        try:
            expiry = self._engine.timer.after(reader.pause, partial(wake, over))
        except RuntimeError:  # the node has stopped
            _refuse(found, _stopping())
            return
        over.add_done_callback(lambda _: expiry.cancel())
        over.add_done_callback(lambda _: self._look_soon(reader, found))
        reader.news.add_done_callback(lambda _: wake(over))

    def timer(self, *, ns: str, id: str) -> Future[datetime | None]:
        """When the timer of a process fires; None when it has none, or when it runs, or when there is no process."""
        return self._run(timer, self._engine, ns, id)

    def modernize(
        self, *, ns: str, id: str, range: Range | None = None, context: bytes = b"", timeout: float | None = None
    ) -> Future[None]:
        """Has the events of a range brought to their newer representation. Raises NamespaceNotFound when the namespace
        has no modernizer, ProcessNotFound, RequestTimeout, StorageUnavailable, and ProcessorError when the modernizer
        fails. Events that were stored by then stay so: the same request goes on with the others."""
        return _in_thread(self._engine.modernizers, modernize, self._engine, ns, id, range, context, timeout, now())

    def _run(self, verb: Callable[P, T], *args: P.args, **given: P.kwargs) -> Future[T]:
        return _in_thread(self._engine.readers, verb, *args, **given)

    def _submit(
        self,
        op: Op | str,
        ns: str,
        process_id: str,
        args: bytes,
        context: bytes,
        range_: Range | None,
        key: str | None,
        timeout: float | None,
        view: Callable[[Answered], T],
    ) -> Future[T]:
        result: Future[T] = Future()
        try:
            verb = checks.operation(op)
            answered, seconds = send(self._engine, verb, ns, process_id, args, context, range_, key, timeout)
        except ProgressorError as error:
            result.set_exception(error)
            return result
        self._end_in_time(answered, seconds, RequestTimeout, _unknown)
        result.set_running_or_notify_cancel()
        answered.add_done_callback(partial(_pass_on, result, view))
        return result


class Client(Verbs):
    """The verbs of a node in this process."""

    future: FutureClient

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.future = FutureClient(self, engine)

    def get(
        self,
        *,
        ns: str,
        id: str,
        range: Range | None = None,
        cache: bool = True,
        at_least_event_id: int | None = None,
        timeout: float | None = None,
    ) -> Process:
        return get(self._engine, ns, id, range, cache=cache, at_least_event_id=at_least_event_id, timeout=timeout)

    def put(self, *, ns: str, id: str, process: Process, action: Action | None = None, context: bytes = b"") -> None:
        put(self._engine, ns, id, process, action, context)

    def trace(self, *, ns: str, id: str) -> Sequence[TraceUnit]:
        return trace(self._engine, ns, id)

    def list(
        self,
        *,
        ns: str,
        status: str | None = None,
        metadata: Metadata | None = None,
        id_prefix: str | None = None,
        created_from: datetime | None = None,
        created_to: datetime | None = None,
        status_changed_from: datetime | None = None,
        status_changed_to: datetime | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page:
        return page(
            self._engine,
            ns,
            status=status,
            metadata=metadata,
            id_prefix=id_prefix,
            created_from=created_from,
            created_to=created_to,
            status_changed_from=status_changed_from,
            status_changed_to=status_changed_to,
            limit=limit,
            cursor=cursor,
        )

    def health_check(self, namespaces: Sequence[str]) -> tuple[Health, Mapping[str, Any]]:
        return health_check(self._engine, namespaces)

    def _ask(
        self,
        op: Op,
        ns: str,
        process_id: str,
        args: bytes,
        context: bytes,
        range_: Range | None,
        key: str | None,
        timeout: float | None,
    ) -> Answered:
        answered, seconds = send(self._engine, op, ns, process_id, args, context, range_, key, timeout)
        self.future.end_with_the_node(answered, _unknown)
        try:
            return answered.result(seconds)
        except FutureTimeout:
            answered.cancel()
            raise RequestTimeout from None


def send(
    engine: Engine,
    op: Op,
    ns: str,
    process_id: str,
    args: bytes,
    context: bytes,
    range_: Range | None,
    key: str | None,
    timeout: float | None,
) -> tuple[Future[Answered], float]:
    """Checks a request and hands it to the writer; the future of its answer, and how many seconds it may take."""
    namespace = engine.namespace(ns)
    checks.request(process_id, args, context, range_, key, timeout)
    seconds = _patience(namespace, timeout)
    if op in RUNS_NO_STEP:
        args, range_ = b"", None
    request = Request(op, process_id, args, context, key, _metadata(op, range_), engine.tokens.next())
    answered: Future[Answered] = Future()
    accept = Accept(ns, request, answered, monotonic() + seconds)
    _check_open(engine)
    if not engine.directory.cast(Role.WRITER, namespace.database, accept):
        raise StorageUnavailable(STOPPING)
    return answered, seconds


def get(
    engine: Engine,
    ns: str,
    process_id: str,
    range_: Range | None,
    *,
    cache: bool,
    at_least_event_id: int | None,
    timeout: float | None,
) -> Process:
    reader = begin(engine, ns, process_id, range_, cache=cache, at_least_event_id=at_least_event_id, timeout=timeout)
    if isinstance(reader, Process):
        return reader
    try:
        while (process := reader.look()) is None:
            with suppress(FutureTimeout):
                reader.news.result(reader.pause)
    finally:
        reader.news.cancel()
    return process


def begin(
    engine: Engine,
    ns: str,
    process_id: str,
    range_: Range | None,
    *,
    cache: bool,
    at_least_event_id: int | None,
    timeout: float | None,
) -> Process | Reader:
    """Checks a `get`; the process when it is in memory, else who looks for it."""
    namespace = engine.namespace(ns)
    checks.process_id(process_id)
    wanted = EVERYTHING if range_ is None else checks.range_(range_)
    checks.event_id("at_least_event_id", at_least_event_id)
    seconds = _patience(namespace, timeout)
    least, memory = at_least_event_id or 0, namespace.cache if cache else None
    if memory is not None and not least:  # to wait for an event is left to the reader
        found = remembered(memory, process_id, wanted, least)
        if found is not None:
            return found
    return Reader(ns, process_id, wanted, least, namespace.storage, memory, engine.directory, seconds)


def put(engine: Engine, ns: str, process_id: str, process: Process, action: Action | None, context: bytes) -> None:
    namespace = engine.namespace(ns)
    checks.process_id(process_id)
    checks.binary("context", context)
    checks.put_action(action)
    ready = replace(checks.imported(process_id, process), process_id=process_id)
    hint = namespace.storage.put(ns, ready, action, context)
    if hint is not None:
        engine.directory.cast(Role.SCHEDULER, ns, Expect([hint]))


def trace(engine: Engine, ns: str, process_id: str) -> Sequence[TraceUnit]:
    namespace = engine.namespace(ns)
    checks.process_id(process_id)
    units = namespace.storage.trace(ns, process_id)
    if not units and namespace.storage.get(ns, process_id, Range(limit=0)) is None:
        raise ProcessNotFound
    return units


def timer(engine: Engine, ns: str, process_id: str) -> datetime | None:
    namespace = engine.namespace(ns)
    checks.process_id(process_id)
    return namespace.storage.timer(ns, process_id)


def modernize(
    engine: Engine,
    ns: str,
    process_id: str,
    range_: Range | None,
    context: bytes,
    timeout: float | None,
    asked: datetime,
) -> None:
    """The time runs since it was asked for: it has waited for a thread."""
    namespace = engine.namespace(ns)
    if namespace.modernizer is None:
        raise NamespaceNotFound
    deadline = asked + timedelta(seconds=_patience(namespace, timeout))
    left = modernization.seconds_left(deadline)
    whole = get(
        engine, ns, process_id, Range(limit=0), cache=False, at_least_event_id=None, timeout=left
    )  # waits for an init that runs
    modernization.modernize(
        namespace.storage,
        ns,
        whole.process_id,
        checks.range_(range_),
        namespace.modernizer,
        context,
        deadline,
        partial(_check_open, engine),
    )


def page(
    engine: Engine,
    ns: str,
    *,
    status: str | None = None,
    metadata: Metadata | None = None,
    id_prefix: str | None = None,
    created_from: datetime | None = None,
    created_to: datetime | None = None,
    status_changed_from: datetime | None = None,
    status_changed_to: datetime | None = None,
    limit: int = 100,
    cursor: str | None = None,
) -> Page:
    namespace = engine.namespace(ns)
    created = (created_from, created_to)
    changed = (status_changed_from, status_changed_to)
    checks.selection(status, metadata, created, changed)
    checks.page(limit, id_prefix, cursor)
    return namespace.storage.page(ns, Selection(status, metadata, id_prefix, created, changed), limit, cursor)


def health_check(engine: Engine, namespaces: Sequence[str]) -> tuple[Health, Mapping[str, Any]]:
    checks.names("namespaces", namespaces)
    for ns in namespaces:
        engine.namespace(ns)
    return engine.health(namespaces)


def _check_open(engine: Engine) -> None:
    if not engine.is_open():
        raise StorageUnavailable(STOPPING)


def _patience(namespace: Namespace, timeout: float | None) -> float:
    checks.timeout(timeout)
    return namespace.patience if timeout is None else min(timeout, namespace.patience)


def _metadata(op: Op, range_: Range | None) -> Metadata | None:
    if range_ is not None:
        return {"range": {name: value for name, value in asdict(range_).items() if value is not None}}
    match op:
        case Op.SIMPLE_REPAIR:
            return {KIND: "simple_repair"}
        case Op.REMOVE:
            return {KIND: "request"}
    return None


def _in_thread(threads: Executor, verb: Callable[P, T], *args: P.args, **given: P.kwargs) -> Future[T]:
    try:
        return threads.submit(verb, *args, **given)
    except RuntimeError:  # the node has stopped
        refused: Future[T] = Future()
        refused.set_exception(_stopping())
        return refused


def _stopping() -> StorageUnavailable:
    return StorageUnavailable(STOPPING)


def _unknown() -> RequestTimeout:
    return RequestTimeout(OUTCOME_UNKNOWN)


def _refuse(future: Future[Any], error: Exception) -> None:
    with suppress(InvalidStateError):
        future.set_exception(error)


def _pass_on(result: Future[T], view: Callable[[Answered], T], answered: Future[Answered]) -> None:
    error = answered.exception()
    if error is not None:
        result.set_exception(error)
    else:
        result.set_result(view(answered.result()))
