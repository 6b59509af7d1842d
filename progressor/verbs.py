"""The verbs as their callers see them, wherever the engine is: in this process, or at the other end of a connection."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from datetime import datetime
from typing import Any, ParamSpec, TypeVar

from progressor import checks
from progressor.model import Action, Answered, Health, Metadata, Op, Page, Process, Range, TraceUnit

P = ParamSpec("P")
T = TypeVar("T")


class Verbs(ABC):
    """The verbs, waiting for their answers. `future` has the same verbs as futures.

    What they take:

    - `ns`: the namespace. `id`: the process, 1 to 256 characters without NUL.
    - `args`: bytes for the step. `context`: bytes for the step and the timers that it sets.
    - `range`: the slice of the history that the step is given, or that is read; None: all of it.
    - `idempotency_key`: 1 to 256 characters without NUL, unique in the namespace. All requests with one key have one
      effect and get one answer, whatever that was.
    - `timeout`: seconds to wait for the answer; at most, and by default, `process_step_timeout` of the namespace.

    What they raise, beside what each says:

    - All: InvalidRequest with the field, NamespaceNotFound, StorageUnavailable (nothing was stored: try again) and
      StorageRejected (the database refuses these data, and will again).
    - Those with a `timeout`: RequestTimeout. The outcome is unknown, and what was asked for may go on.
    - Those with an `idempotency_key`: IdempotencyConflict, when it was used for another process, verb or args.
    - All over a connection: CannotConnect and AccessDenied (nothing was done), UnexpectedAnswer, RequestTimeout.
    """

    future: FutureVerbs

    def execute(
        self,
        op: Op | str,
        *,
        ns: str,
        id: str,
        args: bytes = b"",
        context: bytes = b"",
        range: Range | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> Answered:
        """The verb `op`, from `init` to `remove`, with all that its answer says: also the task, and the last event, for
        a later `get(at_least_event_id=...)`. The verbs below are short for it. `simple_repair` and `remove` run no step
        of their own: they use neither `args` nor `range`."""
        return self._ask(checks.operation(op), ns, id, args, context, range, idempotency_key, timeout)

    def init(
        self,
        *,
        ns: str,
        id: str,
        args: bytes = b"",
        context: bytes = b"",
        range: Range | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> bytes | None:
        """Creates a process and runs its init; the response of the step. Raises ProcessAlreadyExists, and
        ProcessorError when the step fails."""
        return self._ask(Op.INIT, ns, id, args, context, range, idempotency_key, timeout).response

    def call(
        self,
        *,
        ns: str,
        id: str,
        args: bytes = b"",
        context: bytes = b"",
        range: Range | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> bytes | None:
        """Runs a call, after those that were accepted before; the response of the step. Raises ProcessNotFound and
        ProcessInError, also when the process is removed or breaks before its turn, and ProcessorError when the step
        fails."""
        return self._ask(Op.CALL, ns, id, args, context, range, idempotency_key, timeout).response

    def repair(
        self,
        *,
        ns: str,
        id: str,
        args: bytes = b"",
        context: bytes = b"",
        range: Range | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> bytes | None:
        """Runs a repair of a process in error; the response of the step. Raises ProcessNotFound, ProcessRunning,
        ProcessInInit, and ProcessorError when the step fails: the process is as it was then."""
        return self._ask(Op.REPAIR, ns, id, args, context, range, idempotency_key, timeout).response

    def simple_repair(
        self,
        *,
        ns: str,
        id: str,
        context: bytes = b"",
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> None:
        """Lets a process in error go on where it broke, and does not wait for that: a timer that broke it is run
        again, with this `context`. Raises ProcessNotFound, ProcessRunning, ProcessInInit."""
        self._ask(Op.SIMPLE_REPAIR, ns, id, b"", context, None, idempotency_key, timeout)

    def notify(
        self,
        *,
        ns: str,
        id: str,
        args: bytes = b"",
        context: bytes = b"",
        range: Range | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> int:
        """Stores a notification, which the processor sees in order with calls, and does not wait for that; its task
        id. Raises ProcessNotFound, ProcessInError."""
        return self._ask(Op.NOTIFY, ns, id, args, context, range, idempotency_key, timeout).task_id

    def remove(
        self,
        *,
        ns: str,
        id: str,
        context: bytes = b"",
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> None:
        """Deletes a process and all that belongs to it, after the step that runs now. Raises ProcessNotFound."""
        self._ask(Op.REMOVE, ns, id, b"", context, None, idempotency_key, timeout)

    @abstractmethod
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
        """Reads a process with a slice of its history; waits while its init runs.

        `cache`: it may be answered from memory, if the namespace has a cache. `at_least_event_id`: waits until the
        process has this event. Raises ProcessNotFound.
        """

    @abstractmethod
    def put(self, *, ns: str, id: str, process: Process, action: Action | None = None, context: bytes = b"") -> None:
        """Imports a ready process with its history; no step runs.

        `process`: of this `id`, running or in error; numbers of events, 1 to n, and times may be left out. `action`:
        SetTimer if it is to have a timer. Raises ProcessAlreadyExists, and RequestTimeout when it may have been stored:
        `get` tells.
        """

    @abstractmethod
    def trace(self, *, ns: str, id: str) -> Sequence[TraceUnit]:
        """Every task of a process with its events, in order. Raises ProcessNotFound."""

    @abstractmethod
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
        """Processes in the order of their ids, without histories, a page at a time: all that is asked for holds.

        `metadata`: what that of the process contains. `created_from`, `created_to` and their like: aware datetimes, the
        first included, the second not. `limit`: 1 to 10,000. `cursor`: that of the page before; None: the first page.
        """

    @abstractmethod
    def health_check(self, namespaces: Sequence[str]) -> tuple[Health, Mapping[str, Any]]:
        """Whether these namespaces work, with details that JSON can carry. Asks the node, not the database."""

    @abstractmethod
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
        """What a request comes to."""


class FutureVerbs:
    """The verbs as futures, with the arguments and errors of `Verbs`. Every error comes with the future, that of bad
    input too. Each waits in a thread, unless there is a better way."""

    def __init__(self, verbs: Verbs, threads: Executor) -> None:
        self._verbs = verbs
        self._threads = threads

    def execute(
        self,
        op: Op | str,
        *,
        ns: str,
        id: str,
        args: bytes = b"",
        context: bytes = b"",
        range: Range | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> Future[Answered]:
        return self._submit(op, ns, id, args, context, range, idempotency_key, timeout, _whole)

    def init(
        self,
        *,
        ns: str,
        id: str,
        args: bytes = b"",
        context: bytes = b"",
        range: Range | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> Future[bytes | None]:
        return self._submit(Op.INIT, ns, id, args, context, range, idempotency_key, timeout, _response)

    def call(
        self,
        *,
        ns: str,
        id: str,
        args: bytes = b"",
        context: bytes = b"",
        range: Range | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> Future[bytes | None]:
        return self._submit(Op.CALL, ns, id, args, context, range, idempotency_key, timeout, _response)

    def repair(
        self,
        *,
        ns: str,
        id: str,
        args: bytes = b"",
        context: bytes = b"",
        range: Range | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> Future[bytes | None]:
        return self._submit(Op.REPAIR, ns, id, args, context, range, idempotency_key, timeout, _response)

    def simple_repair(
        self,
        *,
        ns: str,
        id: str,
        context: bytes = b"",
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> Future[None]:
        return self._submit(Op.SIMPLE_REPAIR, ns, id, b"", context, None, idempotency_key, timeout, _nothing)

    def notify(
        self,
        *,
        ns: str,
        id: str,
        args: bytes = b"",
        context: bytes = b"",
        range: Range | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> Future[int]:
        return self._submit(Op.NOTIFY, ns, id, args, context, range, idempotency_key, timeout, _task_id)

    def remove(
        self,
        *,
        ns: str,
        id: str,
        context: bytes = b"",
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> Future[None]:
        return self._submit(Op.REMOVE, ns, id, b"", context, None, idempotency_key, timeout, _nothing)

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
        return self._run(
            self._verbs.get,
            ns=ns,
            id=id,
            range=range,
            cache=cache,
            at_least_event_id=at_least_event_id,
            timeout=timeout,
        )

    def put(
        self, *, ns: str, id: str, process: Process, action: Action | None = None, context: bytes = b""
    ) -> Future[None]:
        return self._run(self._verbs.put, ns=ns, id=id, process=process, action=action, context=context)

    def trace(self, *, ns: str, id: str) -> Future[Sequence[TraceUnit]]:
        return self._run(self._verbs.trace, ns=ns, id=id)

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
    ) -> Future[Page]:
        return self._run(
            self._verbs.list,
            ns=ns,
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

    def health_check(self, namespaces: Sequence[str]) -> Future[tuple[Health, Mapping[str, Any]]]:
        return self._run(self._verbs.health_check, namespaces)

    def _run(self, verb: Callable[P, T], *args: P.args, **given: P.kwargs) -> Future[T]:
        """What a verb comes to that has a thread to wait in."""
        return self._threads.submit(verb, *args, **given)

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
        """What a request comes to, as `view` shows it."""

        def asked() -> T:
            return view(
                self._verbs.execute(
                    op,
                    ns=ns,
                    id=process_id,
                    args=args,
                    context=context,
                    range=range_,
                    idempotency_key=key,
                    timeout=timeout,
                )
            )

        return self._run(asked)


def _whole(answer: Answered) -> Answered:
    return answer


def _response(answer: Answered) -> bytes | None:
    return answer.response


def _task_id(answer: Answered) -> int:
    return answer.task_id


def _nothing(_: Answered) -> None:
    return None
