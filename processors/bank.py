"""A pretended bank for the sample `payment`: the last digits of a card decide what happens to it.

Like a real one it takes an idempotency key with each order and carries an order out once, however often it comes.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from threading import Lock
from typing import Any

CARDS = {"0002": "refused", "0119": "unreliable", "0341": "broken"}
"""Cards of which something else becomes than an authorisation and a capture."""


class Refusal(Exception):
    """The bank says no, and will say it again."""


class Bank:
    """`cards`: what becomes of cards that end with these digits; `failures`: how often an unreliable one fails.

    Thread-safe, as everything that a processor uses must be: one object serves all workers.
    """

    def __init__(self, cards: Mapping[str, str] = CARDS, failures: int = 2) -> None:
        self._cards = cards
        self._failures = failures
        self._captures: Counter[str] = Counter()
        self._lock = Lock()

    def authorise(self, key: str, card: str) -> str:
        """The number of the authorisation. Raises Refusal."""
        if self._cards.get(card[-4:]) == "refused":
            raise Refusal("card refused")
        return f"{_number(key)}-{card[-4:]}"

    def capture(self, key: str, authorisation: str) -> Mapping[str, Any]:
        """The receipt, as the bank sends it. Raises ConnectionError when the bank cannot be reached."""
        match self._cards.get(authorisation[-4:]):
            case "unreliable" if self._attempt(key) <= self._failures:
                raise ConnectionResetError("the bank hung up")
            case "broken":
                return {"fault": "E-1203"}
        return {"receipt": _number(key)}

    def _attempt(self, key: str) -> int:
        with self._lock:
            self._captures[key] += 1
            return self._captures[key]


def _number(key: str) -> str:
    """The same for the same key: this bank needs no memory to carry an order out once."""
    return hashlib.sha256(key.encode()).hexdigest()[:8]
