"""Where a process's messages go: `erlang:phash2` of the key, modulo the number of partitions.

Machinegun and the Erlang original choose so too: a process keeps its partition whoever publishes. The hash of a binary
is Bob Jenkins' of 1996 ("lookup2"), begun as Erlang begins it, and cut to 27 bits.
"""

from __future__ import annotations

import struct
from functools import lru_cache

_GOLDEN = 0x9E3779B9
_BEGIN = 13 * _GOLDEN & 0xFFFFFFFF
_BITS = 0x7FFFFFF
_BLOCK = 12
CACHED_KEYS = 65536


@lru_cache(CACHED_KEYS)
def phash2(key: bytes) -> int:
    """`erlang:phash2/1` of a binary: 0 to 2^27 - 1."""
    return _hash(key) & _BITS


def _hash(key: bytes) -> int:
    if not key:
        return _BEGIN
    a, b, c = _GOLDEN, _GOLDEN, _BEGIN
    whole = len(key) - len(key) % _BLOCK
    for x, y, z in struct.iter_unpack("<3I", key[:whole]):
        a, b, c = _mix(a + x, b + y, c + z)
    tail = key[whole:]
    # The lowest byte of the third word holds the length.
    x, y, z = struct.unpack("<3I", tail[:8].ljust(8, b"\0") + b"\0" + tail[8:].ljust(3, b"\0"))
    return _mix(a + x, b + y, c + z + len(key))[2]


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    """Of words of 32 bits, whatever is above in what is given."""
    for right, left, last in ((13, 8, 13), (12, 16, 5), (3, 10, 15)):
        a = (a - b - c ^ (c & 0xFFFFFFFF) >> right) & 0xFFFFFFFF
        b = (b - c - a ^ a << left) & 0xFFFFFFFF
        c = (c - a - b ^ b >> last) & 0xFFFFFFFF
    return a, b, c
