"""The verbs of a node elsewhere, over its native service.

    with progressor.Client("thrift://127.0.0.1:8023") as client:
        client.call(ns=..., id=..., args=...)

The same verbs with the same errors as in the process of the node, and CannotConnect when there is none. Thread-safe.
When a request may have been executed, though no answer came, it is a RequestTimeout (progressor/rpc/channel.py).
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from thrift.Thrift import TApplicationException, TException

from progressor import checks
from progressor.errors import ConfigError, InvalidRequest, RequestTimeout, StorageUnavailable, UnexpectedAnswer
from progressor.model import Action, Answered, Health, Metadata, Op, Page, Process, Range, TraceUnit
from progressor.rpc import codec, native_types
from progressor.rpc.address import Address, read_url
from progressor.rpc.channel import Channel, Effect
from progressor.rpc.codec import DecodeError
from progressor.rpc.connection import Connection
from progressor.rpc.gen.native import Progressor as Generated
from progressor.rpc.gen.native import ttypes as native
from progressor.verbs import FutureVerbs, Verbs

MARGIN = 2.0
"""Seconds beyond its own timeout that the node has for its answer, which says more than ours."""


class Client(Verbs):
    def __init__(
        self,
        url: str,
        *,
        ca: str | Path | None = None,
        certificate: str | Path | None = None,
        key: str | Path | None = None,
        secret: str | None = None,
        connect_timeout: float = 5.0,
        read_timeout: float = 60.0,
        connections: int = 50,
    ) -> None:
        """Connects when it is used.

        `url`: see progressor/rpc/address.py. `ca`, `certificate` and `key` are files in PEM; without `ca` the
        authorities of the system are trusted. `read_timeout`: how long to wait for the answer to a request without a
        timeout of its own. `connections`: how many are kept, and how many futures are served at a time.
        Raises ConfigError.
        """
        address = read_url(url)
        tls = _context(address, ca, certificate, key)
        self._greets = address.has_tls or not address.is_http
        if secret is not None and not checks.is_sendable(secret):
            raise ConfigError([f"secret: expected {checks.SENDABLE}"])
        self._secret = secret
        self._read_timeout = read_timeout
        self._channel = Channel(address, tls, secret, connect_timeout, connections, self._greet)
        self._threads = ThreadPoolExecutor(connections, "client")
        self.future = FutureVerbs(self, self._threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Waits for the futures that are under way."""
        self._threads.shutdown(cancel_futures=True)
        self._channel.close()

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
        checks.text("ns", ns)
        checks.process_id(id)
        checks.event_id("at_least_event_id", at_least_event_id)
        checks.timeout(timeout)
        request = native.GetRequest(
            ns, id, _range(range), bool(cache), at_least_event_id, native_types.write_seconds(timeout)
        )
        return native_types.read_process(self._exchange("Get", request, timeout=timeout))

    def put(self, *, ns: str, id: str, process: Process, action: Action | None = None, context: bytes = b"") -> None:
        checks.text("ns", ns)
        checks.process_id(id)
        checks.binary("context", context)
        checks.put_action(action)
        checks.imported(id, process)
        new, timer = native_types.write_new_process(process), native_types.write_timer(action)
        self._exchange("Put", native.PutRequest(ns, id, new, timer, context), effect=Effect.TWO)

    def trace(self, *, ns: str, id: str) -> Sequence[TraceUnit]:
        checks.text("ns", ns)
        checks.process_id(id)
        return [native_types.read_unit(unit) for unit in self._exchange("Trace", ns, id)]

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
        checks.text("ns", ns)
        checks.selection(status, metadata, (created_from, created_to), (status_changed_from, status_changed_to))
        checks.page(limit, id_prefix, cursor)
        request = native.ListRequest(
            ns=ns,
            status=native_types.write_name(native.ProcessStatus, status),
            metadata=native_types.write_object(metadata),
            id_prefix=id_prefix,
            created_from=native_types.write_instant(created_from),
            created_to=native_types.write_instant(created_to),
            status_changed_from=native_types.write_instant(status_changed_from),
            status_changed_to=native_types.write_instant(status_changed_to),
            limit=limit,
            cursor=cursor,
        )
        return native_types.read_page(self._exchange("List", request))

    def health_check(self, namespaces: Sequence[str]) -> tuple[Health, Mapping[str, Any]]:
        checks.names("namespaces", namespaces)
        for ns in namespaces:
            checks.text("ns", ns)
        return native_types.read_health(self._exchange("HealthCheck", [*namespaces]))

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
        checks.text("ns", ns)
        checks.request(process_id, args, context, range_, key, timeout)
        request = native.Request(
            ns, process_id, args, context, _range(range_), key, native_types.write_seconds(timeout)
        )
        effect = Effect.TWO if key is None else Effect.ONE
        return native_types.read_answer(
            self._exchange(native_types.METHODS[op], request, timeout=timeout, effect=effect)
        )

    def _exchange(
        self, method: str, *arguments: Any, timeout: float | None = None, effect: Effect = Effect.NONE
    ) -> Any:
        seconds = self._read_timeout if timeout is None else timeout + MARGIN
        answer, may_be_done = self._channel.exchange(_message(method, *arguments), seconds, effect)
        try:
            return _result(method, answer)
        except StorageUnavailable as error:
            if may_be_done:  # only the second one was not
                raise RequestTimeout(f"timeout: the connection broke, the outcome is unknown: {error}") from error
            raise

    def _greet(self, connection: Connection) -> None:
        """Gives the secret, and hears whether we are served at all: over TLS only now, whether our certificate is good.

        What breaks before the answer was done by nobody. Plain HTTP tells by its statuses.
        """
        if self._greets:
            connection.send(_message("Authenticate", self._secret or ""))
            _result("Authenticate", connection.receive())


def _range(range_: Range | None) -> Any:
    return None if range_ is None else native_types.write_range(checks.range_(range_))


def _message(method: str, *arguments: Any) -> bytes:
    """Raises InvalidRequest. That each value has room was checked; together they may have none."""
    message = codec.encode_message(method, codec.CALL, 0, getattr(Generated, f"{method}_args")(*arguments))
    if len(message) > codec.LARGEST:
        raise InvalidRequest("request", f"it has more than {codec.LARGEST} bytes, the most that Thrift can carry")
    return message


def _result(method: str, reply: bytes) -> Any:
    """Raises what the method declares, as an error of ours, and UnexpectedAnswer."""
    try:
        _, kind, _, body = codec.message_head(reply)
        if kind == codec.EXCEPTION:
            failure = codec.decode(TApplicationException, body)
            raise UnexpectedAnswer(f"{UnexpectedAnswer.text}: {failure.message}")
        result = codec.decode(getattr(Generated, f"{method}_result"), body)
    except DecodeError as error:
        raise UnexpectedAnswer(f"{UnexpectedAnswer.text}: {error}") from error
    for member in vars(result).values():
        if isinstance(member, TException):
            raise native_types.read_error(member)
    if hasattr(result, "success") and result.success is None:
        raise UnexpectedAnswer(f"{UnexpectedAnswer.text}: an empty result")
    return getattr(result, "success", None)


def _context(
    address: Address, ca: str | Path | None, certificate: str | Path | None, key: str | Path | None
) -> ssl.SSLContext | None:
    if not address.has_tls:
        given = {"ca": ca, "certificate": certificate, "key": key}
        problems = [f"{name}: goes with {address.scheme}s:// only" for name, path in given.items() if path is not None]
        if problems:
            raise ConfigError(problems)
        return None
    if key is not None and certificate is None:
        raise ConfigError(["key: goes with a certificate only"])
    try:
        context = ssl.create_default_context(cafile=ca)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except OSError as error:  # SSLError is one
        reason = getattr(error, "reason", None) or error.strerror
        raise ConfigError([f"ca, certificate or key: cannot be used: {reason}"]) from error
    return context
