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


async def aside(size: int, work: Callable[..., T], *arguments: object) -> T:
    """What `work` answers for arguments of so many bytes."""
    if size < MUCH:
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)
