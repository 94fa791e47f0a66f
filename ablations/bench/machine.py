"""The machine of a benchmark, without which its figures mean nothing."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path

import torch

from ablations.pool import cores

CPU_INFO = Path("/proc/cpuinfo")


def about(command: str) -> dict[str, str]:
    """Describe command, machine, load of the last minute, versions and date."""
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return {
        "command": command,
        "machine": f"{processor()}, {cores()} cores, {platform.system()} {platform.machine()}",
        "threads": str(torch.get_num_threads()),
        "load": f"{load} at the end (1 a busy core)",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def processor() -> str:
    """Return the processor's name, or else its architecture."""
    if CPU_INFO.exists():
        for line in CPU_INFO.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
