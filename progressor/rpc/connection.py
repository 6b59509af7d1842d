"""A connection to the native service, for one request after the other."""

from __future__ import annotations

import http.client
import select
import socket
import ssl
import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping
from http import HTTPStatus

from progressor.errors import CannotConnect, InvalidRequest, UnexpectedAnswer
from progressor.rpc.address import Address
from progressor.rpc.deadline import responses, until
from progressor.rpc.woody import CONTENT_TYPE, ERROR_REASON

HEAD = struct.Struct(">i")
PORTION = 1 << 20
LOST = (OSError, EOFError, http.client.HTTPException)
"""What is raised when there is no connection, or no more."""


class Connection(ABC):
    socket: socket.socket
    deadline: float
    """Until then, by the monotonic clock, a message is sent, and its whole answer received; else TimeoutError."""

    @abstractmethod
    def send(self, message: bytes) -> bool:
        """Whether all of it: a node that refuses a message because of its size answers before it has come to its end.
        Raises one of LOST: the message has not been sent whole."""

    @abstractmethod
    def receive(self) -> bytes:
        """The answer. Raises one of LOST, TimeoutError among them; CannotConnect, when the request was turned away;
        InvalidRequest, when it is too large; UnexpectedAnswer."""

    def close(self) -> None:
        self.socket.close()

    @property
    def is_usable(self) -> bool:
        """Whether nothing comes from the node: before a message has been sent whole, that is a refusal, or the end."""
        if self.socket.fileno() < 0:
            return False
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return not poll.poll(0)


class TcpConnection(Connection):
    def __init__(self, address: Address, tls: ssl.SSLContext | None, seconds: float) -> None:
        """Raises OSError."""
        plain = socket.create_connection((address.host, address.port), seconds)
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socket = plain if tls is None else tls.wrap_socket(plain, server_hostname=address.host)
        except BaseException:
            plain.close()
            raise

    def send(self, message: bytes) -> bool:
        frame = memoryview(HEAD.pack(len(message)) + message)
        for at in range(0, len(frame), PORTION):
            if at and not self.is_usable:
                return False
            until(self.deadline, self.socket).sendall(frame[at : at + PORTION])
        return True

    def receive(self) -> bytes:
        (size,) = HEAD.unpack(self._read(HEAD.size))
        if size < 0:
            raise UnexpectedAnswer
        return self._read(size)

    def _read(self, size: int) -> bytes:
        found = bytearray()
        while len(found) < size:
            part = until(self.deadline, self.socket).recv(min(size - len(found), PORTION))
            if not part:
                raise EOFError("the node has closed the connection")
            found += part
        return bytes(found)


class HttpConnection(Connection):
    def __init__(self, address: Address, tls: ssl.SSLContext | None, seconds: float, secret: str | None) -> None:
        """Raises OSError."""
        if tls is None:
            self._http = http.client.HTTPConnection(address.host, address.port, timeout=seconds)
        else:
            self._http = http.client.HTTPSConnection(address.host, address.port, timeout=seconds, context=tls)
        self._http.connect()
        self.socket = self._http.sock
        self._path = address.path
        authorization = {} if secret is None else {"authorization": f"Bearer {secret}"}
        self._headers: Mapping[str, str] = {"content-type": CONTENT_TYPE, "accept": CONTENT_TYPE, **authorization}

    def send(self, message: bytes) -> bool:
        until(self.deadline, self.socket)
        self._http.request("POST", self._path, message, self._headers)
        return True

    def receive(self) -> bytes:
        self._http.response_class = responses(self.deadline)
        answer = self._http.getresponse()
        body = answer.read()
        if answer.status == HTTPStatus.OK:
            return body
        text = f"HTTP {answer.status} {answer.headers.get(ERROR_REASON, answer.reason)}"
        match answer.status:
            case HTTPStatus.SERVICE_UNAVAILABLE:  # too many connections, or what stands before the node finds none
                raise CannotConnect(f"{CannotConnect.text}: {text}")
            case HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                raise InvalidRequest("request", text)
            case HTTPStatus.BAD_GATEWAY | HTTPStatus.GATEWAY_TIMEOUT:  # it found one, and lost it
                raise EOFError(text)
        raise UnexpectedAnswer(f"{UnexpectedAnswer.text}: {text}")

    def close(self) -> None:
        self._http.close()
