"""Compare two programs fairly on a machine that others use too: turn about, each in a process of its own.

The driver starts one long-lived worker per side and lets them run one after the other, so that whatever slows
the machine slows neighbours alike. A worker tells what each run took, and by how much its memory grew.
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

    `about` is what it says of itself when it is ready. Raises `RuntimeError` with the reason when it is not.
    """

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self._reply()

    def run(self) -> dict[str, Any]:
        """One run: {"seconds": ..., "peak_mib": ... or None}."""
        if self._process.stdin is not None:
            self._process.stdin.write("run\n")
            self._process.stdin.flush()
        return self._reply()

    def close(self) -> None:
        """Let the worker end."""
        self._process.communicate()

    def _reply(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        reply = json.loads(line) if line else {"error": f"{self._process.args} ended without a reply."}
        if "error" in reply:
            self.close()
            raise RuntimeError(reply["error"])
        return reply


def serve(prepare: Callable[[], tuple[Step, dict[str, Any]]]) -> None:
    """Be a worker. `prepare` returns what one run does, and what the driver should know of this side."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not get among the replies

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
    """Seconds of one run, and by how much it raised the process's resident memory at its peak (Linux only)."""
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
    """A line of /proc/self/status, in MiB."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


def compare(ours: Worker, theirs: Worker, pairs: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Run both once for their memory, then turn about for their times; ratios are theirs / ours.

    Memory comes from the first run, because a heap that a run has stretched is reused by the next.
    """
    memory = [worker.run()["peak_mib"] for worker in (ours, theirs)]
    tell("warmed up")
    seconds: list[tuple[float, float]] = []
    for pair in range(pairs):
        seconds.append((ours.run()["seconds"], theirs.run()["seconds"]))
        tell("pair {} of {}: {:.3f} s and {:.3f} s".format(pair + 1, pairs, *seconds[-1]))
    medians = [statistics.median(times) for times in zip(*seconds, strict=True)]
    return {
        "seconds": seconds,
        "median_seconds": medians,
        "times_faster": medians[1] / medians[0],
        "times_faster_in_each_pair": [theirs / ours for ours, theirs in seconds],
        "peak_mib": memory,
        "times_less_memory": None if None in memory or not memory[0] else memory[1] / memory[0],
    }
