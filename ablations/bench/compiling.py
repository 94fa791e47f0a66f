"""`memkit bench compile`: the time to compile a layer, and the gain of a training step."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from tempfile import TemporaryDirectory

import torch

import memkit
from ablations.bench.base import Benchmark, Progress, benchmark
from ablations.bench.core import clock
from ablations.bench.problems import MEMORY, titans_layer
from ablations.bench.timing import Spread
from ablations.pool import run_all

BLOCKS, GRAPH = "compile_blocks()", "torch.compile(fullgraph=True)"
WAYS = {BLOCKS: (True, False), GRAPH: (False, True), f"{GRAPH} under {BLOCKS}": (True, True)}
"""(blocks compiled, the layer as one graph)"""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the layer and the texts, the number of timed rounds, and the compiler."""

    dim: int = 256
    heads: int = 4
    mini_batch: int = 64
    tokens: tuple[int, ...] = (256, 1024)
    rounds: int = 7
    backend: str = "inductor"


SIZES = Sizes()


@benchmark("compile")
def compiling(progress: Progress) -> Benchmark:
    """Time the first training step of a compiled layer, and the later steps beside those of the eager layer."""
    calls = {(n, way): (SIZES, n, way) for n in SIZES.tokens for way in WAYS}
    measured: dict[tuple[int, str], tuple[float, list[float]]] = {}
    for event in run_all(measure, calls, 1, fresh=True):
        if event.kind == "failed":
            raise RuntimeError(f"{event.key[1]}, {event.key[0]} tokens: {event.value}\n{event.details}")
        if event.kind == "done":
            measured[event.key] = event.value
        progress(f"{event.key[1]}, {event.key[0]:,} tokens", len(measured), len(calls))
    rows = tuple(
        (f"{n:,}", way, f"{first:.0f}", str(Spread.of(shares))) for (n, way), (first, shares) in measured.items()
    )
    notes = (
        f"One Titans layer (dim {SIZES.dim}, {SIZES.heads} heads, {MEMORY}, mini-batches of {SIZES.mini_batch}, "
        f"one row, float32), forward and backward, compiled by {SIZES.backend}; a process of one thread and "
        "an empty cache for each. First step: seconds on the wall until it is done. Share of the time: processor time "
        "of a later step over that of the eager layer (median, least and largest of "
        f"{SIZES.rounds} rounds, in which both take turns)."
    )
    columns = ("tokens", "compiled by", "first step, s", "share of the time")
    data = {f"{n}, {way}": {"first": first, "shares": shares} for (n, way), (first, shares) in measured.items()}
    return Benchmark("Compiling a layer", columns, rows, notes, data)


def measure(sizes: Sizes, tokens: int, way: str, send: Callable[[str], object]) -> tuple[float, list[float]]:
    """Return the seconds of the first step, and the shares of time of the later steps."""
    send("starts")
    with TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # an empty cache: every graph is compiled anew
        return _measured(sizes, tokens, way)


def _measured(sizes: Sizes, tokens: int, way: str) -> tuple[float, list[float]]:
    layer = titans_layer(sizes.dim, sizes.heads, sizes.mini_batch)
    blocks, graph = WAYS[way]
    torch._dynamo.config.trace_autograd_ops = True
    fast = torch.compile(layer, fullgraph=True, backend=sizes.backend) if graph else layer
    x, arriving = (torch.randn(1, tokens, sizes.dim) for _ in range(2))

    def step(run: Callable[..., tuple[torch.Tensor, object]]) -> float:
        layer.zero_grad()
        start = clock()
        run(x)[0].backward(arriving)
        return clock() - start

    def compiled() -> float:
        with memkit.compile_blocks(backend=sizes.backend) if blocks else nullcontext():
            return step(fast)

    start = time.perf_counter()
    compiled()
    first = time.perf_counter() - start
    for _ in range(2):  # the warm-up of the process is not timed
        compiled()
        step(layer)
    return first, [compiled() / step(layer) for _ in range(sizes.rounds)]
