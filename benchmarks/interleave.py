"""Compare two programs fairly on a shared machine: in turns, each in a process of its own.

The driver starts one long-lived worker per side and lets them run in turn, so that other load on the machine slows
neighboring runs alike. A worker reports the seconds of each run, and the growth of its memory.
This file imports nothing of memkit: one side may run in an environment without it.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Step = Callable[[], None]

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Worker:
    """A process that answers every line on its standard input with one JSON object.

    `about` is its first answer, when it is ready. Raises `RuntimeError` with the reason if it cannot start.
    """

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self._reply()

    def run(self) -> dict[str, Any]:
        """Let it run once; returns {"seconds": ..., "peak_mib": ... or None}."""
        if self._process.stdin is not None:
            self._process.stdin.write("run\n")
            self._process.stdin.flush()
        return self._reply()

    def close(self) -> None:
        """End the worker."""
        self._process.communicate()

    def _reply(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        reply = json.loads(line) if line else {"error": f"{self._process.args} ended without a reply."}
        if "error" in reply:
            self.close()
            raise RuntimeError(reply["error"])
        return reply


def serve(prepare: Callable[[], tuple[Step, dict[str, Any]]]) -> None:
    """Be a worker. `prepare` returns the function of one run, and facts about this side for the driver."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # prints of libraries must not mix with the replies

    def reply(values: dict[str, Any]) -> None:
        print(json.dumps(values), file=replies, flush=True)

    try:
        step, about = prepare()
    except (ImportError, ValueError) as error:
        reply({"error": str(error)})
        return
    reply(about)
    for _ in sys.stdin:
        reply(measure(step))


def measure(step: Step) -> dict[str, Any]:
    """Measure one run: seconds, and the growth of resident memory at its peak (Linux only)."""
    gc.collect()
    before = _resident("VmRSS") if _forget_peak() else None
    start = time.perf_counter()
    step()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_mib": None if before is None else _resident("VmHWM") - before}


def _forget_peak() -> bool:
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _resident(field: str) -> float:
    """Read a line of /proc/self/status, in MiB."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


def compare(ours: Worker, theirs: Worker, pairs: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Run both once for their memory, then in turns for their times; ratios are theirs / ours.

    Memory comes from the first run, because the next one reuses its heap.
    """
    memory = [worker.run()["peak_mib"] for worker in (ours, theirs)]
    progress("warmed up")
    seconds: list[tuple[float, float]] = []
    for pair in range(pairs):
        seconds.append((ours.run()["seconds"], theirs.run()["seconds"]))
        progress("pair {} of {}: {:.3f} s and {:.3f} s".format(pair + 1, pairs, *seconds[-1]))
    medians = [statistics.median(times) for times in zip(*seconds, strict=True)]
    return {
        "seconds": seconds,
        "median_seconds": medians,
        "times_faster": medians[1] / medians[0],
        "times_faster_in_each_pair": [theirs / ours for ours, theirs in seconds],
        "peak_mib": memory,
        "times_less_memory": None if None in memory or not memory[0] else memory[1] / memory[0],
    }
