"""Work that takes long for much data, in a thread: the event loop of a port serves the others meanwhile.

A million small values, which are five megabytes on the wire, take seconds to decode.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
MUCH = 64 * 1024
"""Bytes from which on a thread is worth its while."""
OVERHEAD = 32
"""Bytes that each value of a struct counts for beside its text."""


async def aside(size: int, work: Callable[..., T], *arguments: object) -> T:
    """What `work` answers for arguments of so many bytes."""
    if size < MUCH:
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)


def weight(value: object) -> int:
    """About how many bytes a value of Thrift is, with all that is in it; or else some number from MUCH on."""
    size, left = 0, [value]
    while left and size < MUCH:
        each = left.pop()
        size += OVERHEAD
        if isinstance(each, bytes | str):
            size += len(each)
        elif isinstance(each, list):
            left += each
        elif isinstance(each, dict):
            left += [*each, *each.values()]
        elif hasattr(each, "thrift_spec"):
            left += vars(each).values()
    return size
