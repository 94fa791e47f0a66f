"""How much memory a call takes: measured in a process of its own, as what a process once took it rarely gives back."""

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
    """Have the allocator keep what is given back to it, while this process lives; False where it cannot be told.

    glibc gives large memory back to the system by rules of its own, and the next call pays for it page by page: the
    same one may take twice as long, depending on what others did before.
    """
    tell = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return tell is not None and bool(tell(TRIM_THRESHOLD, 2**30) and tell(MMAP_THRESHOLD, 32 * 2**20))


def growth(prepare: Callable[..., Callable[[], object]], *arguments: Any) -> float:
    """MiB by which one call of `prepare(*arguments)` raises the largest resident memory of a new process.

    `prepare` is a function of a module, and the arguments can be pickled.
    """
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_grown, (prepare, arguments))


def peak() -> float:
    """The largest resident memory of this process so far, in MiB."""
    if STATUS.exists():  # Linux, where ru_maxrss begins with what the process that started this one had
        return _status("VmHWM")
    unit = 1024 * 1024 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def resident() -> float:
    """The resident memory of this process now, in MiB; where that is not known, the largest so far."""
    return _status("VmRSS") if STATUS.exists() else peak()


def _status(field: str) -> float:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


def _grown(prepare: Callable[..., Callable[[], object]], arguments: tuple[Any, ...]) -> float:
    call = prepare(*arguments)
    before = peak()
    call()
    return peak() - before
