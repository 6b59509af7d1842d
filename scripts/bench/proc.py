"""What Linux says about processes: CPU seconds and memory, of a process with all its descendants."""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
_GONE = (FileNotFoundError, ProcessLookupError)


def cpu_seconds(pid: int) -> float:
    """User and system time, of the children that it has waited for too. Of a process that is gone: 0."""
    return sum(map(int, _stat(pid)[11:15])) / TICKS  # utime, stime, cutime, cstime: proc(5)


def family(pid: int) -> Sequence[int]:
    """The process and its living descendants."""
    children = _children()
    found = [pid]
    for member in found:
        found += children.get(member, ())
    return found


def family_cpu_seconds(pid: int) -> float:
    return sum(cpu_seconds(member) for member in family(pid))


def family_memory(pid: int, field: str = "VmHWM") -> float:
    """Megabytes: the peak (VmHWM), or now (VmRSS)."""
    return sum(_memory(member, field) for member in family(pid))


def kill(pid: int) -> None:
    with suppress(*_GONE):
        os.kill(pid, signal.SIGKILL)


def _memory(pid: int, field: str) -> float:
    with suppress(*_GONE):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
    return 0.0


def _stat(pid: int) -> Sequence[str]:
    """The fields after the name, which may hold anything."""
    with suppress(*_GONE):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return ()


def _children() -> Mapping[int, Sequence[int]]:
    found: defaultdict[int, list[int]] = defaultdict(list)
    for pid in _pids():
        fields = _stat(pid)
        if fields:
            found[int(fields[1])].append(pid)
    return found


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
