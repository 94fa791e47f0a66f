"""`memkit bench triton`: the form `triton` against `fused`, eager and compiled, on a CUDA device."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import memkit
from ablations.bench.base import Benchmark, Progress, benchmark
from ablations.bench.problems import Problem, problem
from ablations.bench.timing import take_turns
from memkit.engine import FormName as Form
from memkit.state import Tree, map_tensors, tensors

BATCHES, TOKENS, HEADS, WIDTH, MINI_BATCH, REPEATS = (8, 64), 2048, 4, 64, 64, 5
KERNEL = "triton"
FORMS: dict[str, dict[str, Any]] = {
    KERNEL: {"form": "triton"},
    "fused": {"form": "fused"},
    "fused, compiled": {"form": "fused", "compiled": True},
}
PRECISIONS = ("highest", "high")
"""Names of torch: products close to float32 for the kernel, and products in TF32."""

Run = Callable[[], tuple[Tensor, ...]]


@benchmark("triton")
def triton(progress: Progress) -> Benchmark:
    """Time and distance of the kernels of the form `triton` beside `fused`, on a GPU.

    Raises `ValueError` on a machine without one.
    """
    where, rows, data, done = device(), [], {}, itertools.count()
    cases = list(itertools.product(BATCHES, PRECISIONS, (False, True)))
    total = len(cases) * len(FORMS) * (REPEATS + 1)
    for batch, precision, training in cases:
        title = f"{batch} x {HEADS}, {precision}, {'forward and backward' if training else 'forward'}"
        with products(precision):
            forms = one(
                batch, where, training, lambda name, title=title: progress(f"{title}: {name}", next(done), total)
            )
        for name, figures in forms.items():
            seconds, ratio, off = figures["seconds"], figures["ratio"], figures["distance"]
            rows.append((title, name, f"{1e3 * seconds:.2f}", str(ratio), f"{off:.1e}"))
        data[title] = {name: figures | {"ratio": vars(figures["ratio"])} for name, figures in forms.items()}
    notes = (
        f"The memory of Titans (MLP of depth 2 and expansion 4) without its layer, {HEADS} heads of {WIDTH}, "
        f"mini-batches of {MINI_BATCH}, T = {TOKENS}, float32, on {name_of(where)}; {REPEATS} rounds in which all take "
        "turns. Times run from the call until the device is done. Distance: the largest difference of any result, "
        "gradients included, from `dual` in float64, relative to the largest number of that result."
    )
    columns = ("rows, precision, passes", "form", "ms", "times the kernel's", "distance")
    return Benchmark("The kernels of the form `triton`", columns, tuple(rows), notes, {"cases": data})


def device() -> str:
    """Return the device to measure on; `ValueError` on a machine without a GPU."""
    if not torch.cuda.is_available():
        raise ValueError(
            "benchmark 'triton' times GPU kernels, but this machine has no CUDA device. Run it on a machine with one. "
            "The docstring of memkit.engine.forms.triton.form says what is known without a GPU."
        )
    return "cuda"


def name_of(where: str) -> str:
    """Return the name of a device."""
    return torch.cuda.get_device_name() if where == "cuda" else where


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Set the precision of float32 products, of torch and of the kernels."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def one(batch: int, where: str, training: bool, progress: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Return seconds, ratio and distance of every form at one batch size."""
    rule, *tokens, state = reference(batch)
    given: Tree = tuple(tokens)
    double = map_tensors(lambda x: x.to(where, torch.double) if x.is_floating_point() else x.to(where), (given, state))
    exact = step(rule, *double, form="dual", training=training)()
    given, state = map_tensors(lambda x: x.to(where), (given, state))
    runs = {name: step(rule, given, state, training=training, **how) for name, how in FORMS.items()}
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        distances = {name: distance(run(), exact) for name, run in runs.items()}
        times = take_turns({name: waited(run, where) for name, run in runs.items()}, REPEATS, progress)
    kernel = times[KERNEL]
    return {
        name: {"seconds": x.median, "ratio": x.relative_to(kernel), "distance": distances[name]}
        for name, x in times.items()
    }


def reference(batch: int) -> Problem:
    """Return the problem that all forms run."""
    rule = memkit.build("rule", "titans", mini_batch=MINI_BATCH)
    gates = {"lr": 0.01, "momentum": 0.9, "decay": 0.02}
    return problem(rule, batch=batch, tokens=TOKENS, heads=HEADS, width=WIDTH, gates=gates)


def step(
    rule: memkit.Rule, given: Tree, state: memkit.MemoryState, *, form: Form, training: bool, compiled: bool = False
) -> Run:
    """One call, in training with the gradients of tokens and gates."""
    leaves = tensors(given)

    def call(q: Tensor, k: Tensor, v: Tensor, gates: dict[str, Tensor]) -> Tensor:
        return memkit.memorize(rule, q, k, v, gates, state, form=form)[0]

    def run() -> tuple[Tensor, ...]:
        for x in leaves:
            x.requires_grad_(training)
        with torch.set_grad_enabled(training), memkit.compile_blocks(compiled):
            y = call(*given)
            gradients = torch.autograd.grad(y.square().sum(), leaves) if training else ()
        return y.detach(), *gradients

    return run


def waited(run: Run, where: str) -> Callable[[], None]:
    """Make a run return only when the device is done."""

    def until_done() -> None:
        run()
        if where == "cuda":
            torch.cuda.synchronize()

    return until_done


def distance(results: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> float:
    """Return the largest difference, relative to the largest number of its tensor, over all tensors."""
    return max(float((x - y).abs().max() / y.abs().max()) for x, y in zip(results, exact, strict=True))
