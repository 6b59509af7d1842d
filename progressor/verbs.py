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
    """The verbs, waiting for their answers. `future` has the same verbs as futures."""

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
        """The verb `op` with all that its answer says: also the task, and the last event, for a later
        `get(at_least_event_id=...)`. The verbs below are short for it. `simple_repair` and `remove` run no step of
        their own: they use neither `args` nor `range`."""
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
        """Creates a process and runs its init. Raises ProcessAlreadyExists, ProcessorError, RequestTimeout."""
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
        """Runs a call, after those that were accepted before. Raises ProcessNotFound, ProcessInError,
        ProcessorError, RequestTimeout."""
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
        """Runs a repair of a process in error. Raises ProcessNotFound, ProcessRunning, ProcessInInit,
        ProcessorError, RequestTimeout."""
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
        """Lets a process in error go on where it broke. Raises as `repair`, without ProcessorError."""
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
        """Stores a notification, which the processor sees in order with calls; its task id.
        Raises ProcessNotFound, ProcessInError."""
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
        """Reads a process with a slice of its history; waits while its init runs. Raises ProcessNotFound,
        RequestTimeout."""

    @abstractmethod
    def put(self, *, ns: str, id: str, process: Process, action: Action | None = None, context: bytes = b"") -> None:
        """Imports a ready process with its history. Raises ProcessAlreadyExists."""

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
        """Processes in the order of their ids, without histories, a page at a time. `metadata`: contains it."""

    @abstractmethod
    def health_check(self, namespaces: Sequence[str]) -> tuple[Health, Mapping[str, Any]]:
        """Whether these namespaces work, with details that JSON can carry. Raises NamespaceNotFound."""

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
