"""`memkit bench compile`: what it takes to compile a layer, and what a training step gains by it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from tempfile import TemporaryDirectory

import torch

import memkit
from ablations.bench.base import Benchmark, Tell, benchmark
from ablations.bench.core import clock
from ablations.bench.timing import Spread
from ablations.pool import run_all

BLOCKS, GRAPH = "compile_blocks()", "torch.compile(fullgraph=True)"
WAYS = {BLOCKS: (True, False), GRAPH: (False, True), f"{GRAPH} under {BLOCKS}": (True, True)}
"""Whether blocks are compiled, and whether the layer is one graph."""


@dataclass(frozen=True)
class Sizes:
    """The layer, the texts, the rounds in which it and what is compiled take turns, and what compiles."""

    dim: int = 256
    heads: int = 4
    mini_batch: int = 64
    tokens: tuple[int, ...] = (256, 1024)
    rounds: int = 7
    backend: str = "inductor"


SIZES = Sizes()


@benchmark("compile")
def compiling(tell: Tell) -> Benchmark:
    """The first training step of a layer, which compiles it, and those after, against the same as it is written."""
    calls = {(n, way): (SIZES, n, way) for n in SIZES.tokens for way in WAYS}
    found: dict[tuple[int, str], tuple[float, list[float]]] = {}
    for news in run_all(measure, calls, 1, fresh=True):
        if news.kind == "failed":
            raise RuntimeError(f"{news.key[1]}, {news.key[0]} tokens: {news.value}\n{news.details}")
        if news.kind == "done":
            found[news.key] = news.value
        tell(f"{news.key[1]}, {news.key[0]:,} tokens", len(found), len(calls))
    rows = tuple((f"{n:,}", way, f"{first:.0f}", str(Spread.of(shares))) for (n, way), (first, shares) in found.items())
    notes = (
        f"One Titans layer (dim {SIZES.dim}, {SIZES.heads} heads, MLP depth 2 x 4, mini-batches of {SIZES.mini_batch}, "
        f"one row, float32), forward and backward, compiled by {SIZES.backend}; a process of one thread and "
        "an empty cache for each. Seconds on the wall until the first step is done; then the processor's time of a "
        "step as a share of the same layer's that is not compiled, over "
        f"{SIZES.rounds} rounds in which both take turns."
    )
    columns = ("tokens", "compiled by", "first step, s", "share of the time")
    data = {f"{n}, {way}": {"first": first, "shares": shares} for (n, way), (first, shares) in found.items()}
    return Benchmark("What compiling takes and gives", columns, rows, notes, data)


def measure(sizes: Sizes, tokens: int, way: str, send: Callable[[str], object]) -> tuple[float, list[float]]:
    """Seconds of the first step, and the shares of time of those after it."""
    send("starts")
    with TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # of this process: what was compiled before is no help
        return _measured(sizes, tokens, way)


def _measured(sizes: Sizes, tokens: int, way: str) -> tuple[float, list[float]]:
    torch.manual_seed(0)
    rule = {"name": "titans", "depth": 2, "expansion": 4, "mini_batch": sizes.mini_batch}
    layer = memkit.build("mixer", "neural_memory", dim=sizes.dim, heads=sizes.heads, rule=rule)
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
    for _ in range(2):  # neither pays for what was new to the process
        compiled()
        step(layer)
    return first, [compiled() / step(layer) for _ in range(sizes.rounds)]
