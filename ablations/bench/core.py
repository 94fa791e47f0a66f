"""`memkit bench core`: the useful operations per second of the memory's core, beside plain batched products."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

import memkit
from ablations.bench.base import Benchmark, Progress, benchmark
from ablations.bench.goal import Goal
from ablations.bench.problems import problem
from ablations.bench.timing import Spread

BATCH, TOKENS, HEADS, WIDTH, EXPANSION, MINI_BATCH = 8, 2048, 4, 64, 4, 64
REPEATS, BEST_OF = 5, 20
FORWARD, TRAINING = 75.0, 65.0
"""Percent of the yardstick to reach."""
FASTER = 1.6
"""The goal for float32's time over bfloat16's, in training."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Variant(NamedTuple):
    """One timed call: the dtype of tokens and products; with or without a backward pass; eager or compiled."""

    dtype: str
    training: bool
    compiled: bool

    def __str__(self) -> str:
        return ", ".join(
            ("training" if self.training else "forward", self.dtype, "compiled" if self.compiled else "eager")
        )

    @property
    def to_reach(self) -> float:
        """The goal, in percent of the yardstick."""
        return TRAINING if self.training else FORWARD


@benchmark("core")
def core(progress: Progress) -> Benchmark:
    """Useful operations per second of Titans' deep memory, beside those of batched products of its shapes."""
    calls = {variant: call(variant) for variant in variants()}
    seconds: dict[Variant, list[float]] = {variant: [] for variant in calls}
    yards: dict[str, list[float]] = {name: [] for name in DTYPES}
    done, total = 0, (REPEATS + 1) * len(calls)
    for turn in range(REPEATS + 1):
        rates = {name: throughput(dtype) for name, dtype in DTYPES.items()}
        for variant, run in calls.items():
            progress(str(variant), done, total)
            run()  # untimed: it pays for memory that the call before gave back
            start = clock()
            run()
            if turn:
                seconds[variant].append(clock() - start)
            done += 1
        if turn:
            for name in yards:
                yards[name].append(rates[name])
    return _report(seconds, yards)


def _report(seconds: dict[Variant, list[float]], yards: dict[str, list[float]]) -> Benchmark:
    rows, goals, data = [], [], {}
    for variant, taken in seconds.items():
        work = operations(training=variant.training)
        percent = [100 * work / s / rate for s, rate in zip(taken, yards[variant.dtype], strict=True)]
        plain = seconds[variant._replace(dtype="float32")]
        share, faster = Spread.of(percent), Spread.of([p / s for p, s in zip(plain, taken, strict=True)])
        wide, ours = variant.dtype == "float32", f"{Spread.of(taken).median:.2f} s"
        if wide:
            yard = f"batched products, {Spread.of(yards[variant.dtype]).median / 1e9:.0f} G operations per second"
            goals.append(Goal(f"core, {variant}", ours, yard, share, variant.to_reach, unit="percent"))
        elif variant.training:
            goals.append(Goal(f"core, {variant}", ours, f"float32, {Spread.of(plain).median:.2f} s", faster, FASTER))
        rows.append((str(variant), _shown(share), "" if wide else str(faster)))
        data[str(variant)] = {"seconds": taken, "percent": vars(share), "faster": vars(faster)}
    peaks = ", ".join(f"{Spread.of(rates).median / 1e9:.0f} in {name}" for name, rates in yards.items())
    notes = (
        f"Titans, {HEADS} heads of {WIDTH}, MLP of depth 2 and expansion {EXPANSION}, mini-batches of {MINI_BATCH}, "
        f"B = {BATCH}, T = {TOKENS}; with one thread, seconds of the processor. Useful operations are "
        "22 d h + 4 C (d + h) per token and head, three times as many in training. In bfloat16 tokens and "
        "products are bfloat16, and the state is float32. The yardstick is "
        f"{yardstick_shapes()} and its transposes in the same dtype, best of {BEST_OF} in every round (giga-operations "
        f"per second, median: {peaks}). Median, least and largest of {REPEATS} rounds in which all take turns, the "
        "second of two calls each. Compiled: under `memkit.compile_blocks()`."
    )
    columns = ("core", "percent of the yardstick", "times faster than float32")
    kept = {"variants": data, "yardstick": yards}
    return Benchmark("The memory's core", columns, tuple(rows), notes, kept, tuple(goals))


def variants() -> list[Variant]:
    """Both dtypes, forward and training, eager and, if this machine has a C++ compiler, compiled."""
    ways = (False, True) if shutil.which(os.environ.get("CXX", "g++")) else (False,)
    return [Variant(dtype, training, way) for way in ways for training in (False, True) for dtype in DTYPES]


def clock() -> float:
    """Return seconds: processor time if torch has one thread, which other programs disturb less; else wall time."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def operations(*, training: bool) -> float:
    """Count the operations of the dual form's products in one call, and twice as many for their gradients."""
    hidden = EXPANSION * WIDTH
    each = 22 * WIDTH * hidden + 4 * MINI_BATCH * (WIDTH + hidden)
    return float(each * BATCH * TOKENS * HEADS * (3 if training else 1))


def throughput(dtype: torch.dtype) -> float:
    """Operations per second of batched products of the core's shapes, each at its best time."""
    rows, hidden = BATCH * HEADS, EXPANSION * WIDTH
    x, w, y = (
        torch.randn(rows, *shape).to(dtype) for shape in ((MINI_BATCH, WIDTH), (WIDTH, hidden), (MINI_BATCH, hidden))
    )
    products = (lambda: x @ w, lambda: y @ w.mT, lambda: x.mT @ y)
    return 2.0 * rows * MINI_BATCH * WIDTH * hidden * len(products) / sum(map(_best, products))


def yardstick_shapes() -> str:
    """Describe the yardstick's product by its shapes."""
    rows = BATCH * HEADS
    return f"[{rows}, {MINI_BATCH}, {WIDTH}] x [{rows}, {WIDTH}, {EXPANSION * WIDTH}]"


def call(variant: Variant) -> Callable[[], None]:
    """One pass over random tokens with unit keys and gates inside their ranges."""
    rule = memkit.build("rule", "titans", expansion=EXPANSION, mini_batch=MINI_BATCH)
    small = {"lr": 0.5 / MINI_BATCH, "momentum": 0.9, "decay": 0.02}
    _, q, k, v, gates, state = problem(rule, batch=BATCH, tokens=TOKENS, heads=HEADS, width=WIDTH, gates=small)
    q, k, v = (x.to(DTYPES[variant.dtype]) for x in (q, k, v))
    leaves = [q, k, v, *gates.values(), *state.initial.values()]

    products = torch.bfloat16 if variant.dtype == "bfloat16" else None

    def step() -> None:
        for x in leaves:
            x.requires_grad_(variant.training).grad = None
        with torch.set_grad_enabled(variant.training), memkit.compile_blocks(variant.compiled):
            y, _ = memkit.memorize(rule, q, k, v, gates, state, products=products)
            if variant.training:
                y.float().square().mean().backward()

    return step


def _best(product: Callable[[], object]) -> float:
    taken = []
    for _ in range(BEST_OF):
        start = clock()
        product()
        taken.append(clock() - start)
    return min(taken)


def _shown(share: Spread) -> str:
    return f"{share.median:.0f} ({share.low:.0f} to {share.high:.0f})"
