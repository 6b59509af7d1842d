"""Who may use the native service: those who know the secret, those whose certificates have one of the names, or all."""

from __future__ import annotations

import hmac
from asyncio import BaseTransport
from dataclasses import dataclass, field

from progressor.config import NativeConfig
from progressor.errors import AccessDenied


@dataclass(slots=True)
class Caller:
    """Who calls: a connection over TCP, one request over HTTP."""

    names: frozenset[str] = frozenset()
    """Those of its certificate, which an authority of ours has signed."""
    secret: str | None = field(default=None, repr=False)
    is_refused: bool = False


class Access:
    def __init__(self, config: NativeConfig) -> None:
        self._secret = config.secret
        self._clients = config.clients

    def check(self, caller: Caller) -> None:
        """Raises AccessDenied, which says what is wrong but not what would be right."""
        problem = self._problem(caller)
        caller.is_refused = problem is not None
        if problem is not None:
            raise AccessDenied(f"{AccessDenied.text}: {problem}")

    def _problem(self, caller: Caller) -> str | None:
        if self._clients is not None and not self._clients & caller.names:
            return "the certificate of the client has none of the names that are let in"
        if self._secret is None:
            return None
        if not caller.secret:
            return "a secret is needed"
        given, wanted = caller.secret.encode(errors="replace"), self._secret.encode()
        return None if hmac.compare_digest(given, wanted) else "wrong secret"


def peer_names(transport: BaseTransport) -> frozenset[str]:
    """The common name and the DNS names of the certificate at the other end; none when it has not been verified."""
    tls = transport.get_extra_info("ssl_object")
    found = (tls.getpeercert() if tls is not None else None) or {}
    common = [value for part in found.get("subject", ()) for key, value in part if key == "commonName"]
    return frozenset(common + [value for kind, value in found.get("subjectAltName", ()) if kind == "DNS"])
