"""Where a node is: `thrift://HOST:PORT`, or `http://HOST[:PORT][/PATH]`; with an `s` behind the scheme for TLS."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from progressor import checks
from progressor.errors import ConfigError

DEFAULT_PATH = "/v1/progressor"
DEFAULT_PORTS = {"http": 80, "https": 443}
SCHEMES = ("thrift", "thrifts", "http", "https")


@dataclass(frozen=True, slots=True)
class Address:
    scheme: str
    host: str
    port: int
    path: str
    """Of HTTP."""

    @property
    def has_tls(self) -> bool:
        return self.scheme.endswith("s")

    @property
    def is_http(self) -> bool:
        return self.scheme in DEFAULT_PORTS

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def read_url(url: str) -> Address:
    """Raises ConfigError, which names the part that is wrong."""
    if not isinstance(url, str):
        raise ConfigError([f"url: expected a string, got {type(url).__name__}"])
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigError([f"url: {error}"]) from None
    problem = _problem(parts)
    if problem is not None:
        raise ConfigError([f"url: {problem}"])
    port = parts.port or DEFAULT_PORTS[parts.scheme]
    return Address(parts.scheme, parts.hostname or "", port, parts.path.rstrip("/") or DEFAULT_PATH)


def _problem(parts: SplitResult) -> str | None:
    """Shows no part that may be a password."""
    is_http = parts.scheme in DEFAULT_PORTS
    if parts.scheme not in SCHEMES:
        return f"expected one of {', '.join(f'{scheme}://' for scheme in SCHEMES)}, got {parts.scheme!r}"
    if "@" in parts.netloc:
        return "a user or a password has no place in it: give the secret by itself"
    if not parts.hostname:
        return f"there is no host behind {parts.scheme}://"
    if not checks.is_host(parts.hostname):
        return f"no host has the name {parts.hostname}: expected parts of 1 to 63 characters"
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0 or (port is None and not is_http):
        return f"expected a port from 1 to 65535 behind the host {parts.hostname}"
    if parts.query or parts.fragment or (parts.path.strip("/") and not is_http):
        return f"expected nothing behind {parts.scheme}://{parts.netloc}"
    return None
