"""Addresses to listen on. A socket may outlive the server that accepts from it: `--processes N` hands it down."""

from __future__ import annotations

import os
import socket
import ssl
from dataclasses import dataclass

from progressor.config import TlsConfig
from progressor.errors import CannotListen, ConfigError
from progressor.otp import Call

BACKLOG = 1024
PATIENCE = 5.0
"""Seconds for the loop of a server to hear what it is told."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The server has ended, though nobody told it to."""


@dataclass(frozen=True, slots=True)
class StopAccepting(Call[None]):
    """Leave new connections to others who listen on the same socket, and end those that ask for nothing now."""


def listen(address: tuple[str, int]) -> socket.socket:
    """Raises CannotListen."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    try:
        return socket.create_server(address, family=family, backlog=BACKLOG)
    except OSError as error:
        reason = str(error.strerror).partition(" (while ")[0]  # it repeats the address
        raise CannotListen(f"cannot listen on {shown(address)}: {reason}") from error


def own(where: socket.socket | tuple[str, int]) -> socket.socket:
    """A listener that does not block, at an address, or one more of a socket. Raises CannotListen.

    Whether a socket blocks, all processes that have it share. `socket.dup` would let it block for a moment, in which
    another process may wait in `accept` for a connection that a third one has taken.
    """
    listener = listen(where) if isinstance(where, tuple) else socket.socket(fileno=os.dup(where.fileno()))
    listener.setblocking(False)
    return listener


def bound(listener: socket.socket) -> tuple[str, int]:
    """The address that a socket listens on."""
    host, port = listener.getsockname()[:2]
    return str(host), int(port)


def shown(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def url(address: tuple[str, int], *, tls: bool = False) -> str:
    return f"{'https' if tls else 'http'}://{shown(address)}"


def tls_context(tls: TlsConfig) -> ssl.SSLContext:
    """Raises ConfigError."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(tls.certificate, tls.key)
        if tls.client_ca is not None:
            context.load_verify_locations(tls.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except ssl.SSLError as error:
        raise ConfigError([f"listen.tls: certificate, key and client_ca do not fit: {error.reason}"]) from error
    return context
