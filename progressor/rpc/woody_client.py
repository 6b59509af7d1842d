"""Calls of other services over woody.

What the other side answers, or does not, becomes a result, a declared exception, or one of two errors: TransientError
when it was certainly not executed or nobody knows, ProcessorError when another try would not help.
"""

from __future__ import annotations

from datetime import timedelta
from time import monotonic
from types import ModuleType
from typing import Any

import urllib3
from thrift.Thrift import TException
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationValueError,
    NameResolutionError,
    NewConnectionError,
)

from progressor import rfc3339
from progressor.errors import ProcessorError, TransientError
from progressor.model import now
from progressor.rpc import codec, woody
from progressor.rpc.codec import DecodeError
from progressor.rpc.deadline import LONGEST, responses

MAX_ANSWER = 64 * 1024 * 1024
LONGEST_CONNECT = 1.0
_TRANSIENT = (woody.UNAVAILABLE.lower(), woody.UNKNOWN.lower())
CONNECTIONS = 200
"""Kept alive; a pool of workers has as many by default."""


class _InTime(HTTPConnection):
    """The whole of an answer comes within the timeout."""

    def getresponse(self) -> Any:
        self.response_class = responses(monotonic() + float(self.timeout or LONGEST))
        return super().getresponse()


class _TlsInTime(_InTime, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _InTime


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsInTime


class WoodyClient:
    """One service at one address. Thread-safe."""

    def __init__(self, url: str, module: ModuleType, timeout: float) -> None:
        """`module` is the generated one of the service, `timeout` the most seconds that a call may take."""
        self._url = url
        self._module = module
        self._timeout = timeout
        self._pool = urllib3.PoolManager(maxsize=CONNECTIONS, retries=False)
        self._pool.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    def call(self, method: str, argument: Any, cause: woody.Call) -> Any:
        """The result of a method with one argument, at most until the deadline of `cause`. Raises what it declares,
        TransientError or ProcessorError."""
        arguments = getattr(self._module, f"{method}_args")(argument)
        message = codec.encode_message(method, codec.CALL, 0, arguments)
        status, headers, body = self._post(message, cause)
        if status != 200:
            raise _failure(status, headers)
        return self._result(method, body)

    def _post(self, message: bytes, cause: woody.Call) -> tuple[int, Any, bytes]:
        seconds = self._timeout if cause.seconds_left is None else min(self._timeout, cause.seconds_left)
        if seconds <= 0:
            raise TransientError("resource unavailable: deadline reached")
        headers = {"content-type": woody.CONTENT_TYPE, "accept": woody.CONTENT_TYPE, **cause.headers()}
        # Milliseconds, as the Erlang library writes it.
        headers["woody.deadline"] = rfc3339.show(now() + timedelta(seconds=seconds), "milliseconds")
        timeout = urllib3.Timeout(seconds, connect=min(seconds / 5, LONGEST_CONNECT))
        try:
            answer = self._pool.request(
                "POST", self._url, message, headers=headers, timeout=timeout, redirect=False, preload_content=False
            )
            try:
                body = answer.read(MAX_ANSWER + 1)
            finally:
                answer.close()  # a whole answer has given its connection back to the pool by now
        except (ConnectTimeoutError, NewConnectionError, NameResolutionError, LocationValueError) as error:
            raise TransientError(f"resource unavailable: {error}") from error
        except (HTTPError, OSError) as error:
            raise TransientError(f"result unknown: {type(error).__name__}: {error}") from error
        if len(body) > MAX_ANSWER:
            raise ProcessorError(f"result unexpected: an answer of more than {MAX_ANSWER} bytes")
        return answer.status, answer.headers, body

    def _result(self, method: str, body: bytes) -> Any:
        try:
            _, kind, seqid, rest = codec.message_head(body)
            result = codec.decode(getattr(self._module, f"{method}_result"), rest)
        except DecodeError as error:
            raise ProcessorError(f"result unexpected: {error}") from error
        if (kind, seqid) != (codec.REPLY, 0):
            raise ProcessorError("result unexpected: no reply to this call")
        for member in vars(result).values():
            if isinstance(member, TException):
                raise member
        if getattr(result, "success", None) is None:
            raise ProcessorError("result unexpected: an empty result")
        return result.success


def _failure(status: int, headers: Any) -> ProcessorError:
    """As the Erlang client reads it: the status, and behind a 502 the class."""
    reason = headers.get(woody.ERROR_REASON, f"HTTP status {status}")
    error_class = {503: woody.UNAVAILABLE, 504: woody.UNKNOWN}.get(status, woody.UNEXPECTED)
    if status == 502:
        error_class = headers.get(woody.ERROR_CLASS, woody.UNEXPECTED)
    kind = error_class.lower()
    if kind in _TRANSIENT:
        return TransientError(f"{kind}: {reason}")
    return ProcessorError(f"result unexpected: {reason}")
