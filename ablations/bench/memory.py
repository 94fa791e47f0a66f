"""The memory of a call, measured in a process of its own, because a process rarely gives memory back."""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Names of glibc's `mallopt`."""


def keep_freed() -> bool:
    """Make the allocator of this process keep freed memory from now on; returns False if it has no such setting.

    glibc returns large blocks to the system by rules of its own, and the next call pays for new pages: the same call
    can take twice as long, depending on the calls before.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is None:
        return False
    return bool(set_option(TRIM_THRESHOLD, 2**30) and set_option(MMAP_THRESHOLD, 32 * 2**20))


def growth(prepare: Callable[..., Callable[[], object]], *arguments: Any) -> float:
    """Return the MiB by which a call of `prepare(*arguments)()` raises a new process's largest resident memory.

    `prepare` is a module's function, and the arguments can be pickled.
    """
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_grown, (prepare, arguments))


def peak() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    if STATUS.exists():  # Linux: ru_maxrss begins with the parent's memory
        return _status("VmHWM")
    unit = 1024 * 1024 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def resident() -> float:
    """Return the resident memory of this process now, in MiB; on systems without /proc, the largest so far."""
    return _status("VmRSS") if STATUS.exists() else peak()


def _status(field: str) -> float:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


def _grown(prepare: Callable[..., Callable[[], object]], arguments: tuple[Any, ...]) -> float:
    call = prepare(*arguments)
    before = peak()
    call()
    return peak() - before
