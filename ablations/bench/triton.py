"""`memkit bench triton`: the form `triton` against `fused`, eager and compiled, on a CUDA device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import torch
from torch import Tensor

import memkit
from ablations.bench.base import Benchmark, Tell, benchmark
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
"""As torch names them: products near float32 for the kernel, and products in TF32."""

Run = Callable[[], tuple[Tensor, ...]]


@benchmark("triton")
def triton(tell: Tell) -> Benchmark:
    """Time and distance of the kernels of the form `triton` beside `fused`, on a GPU.

    Raises `ValueError` where there is none.
    """
    where, rows, data, done = device(), [], {}, iter(range(10**6))
    cases = list(product(BATCHES, PRECISIONS, (False, True)))
    total = len(cases) * len(FORMS) * (REPEATS + 1)
    for batch, precision, training in cases:
        title = f"{batch} x {HEADS}, {precision}, {'forward and backward' if training else 'forward'}"
        with products(precision):
            found = one(batch, where, training, lambda name, title=title: tell(f"{title}: {name}", next(done), total))
        for name, figures in found.items():
            seconds, ratio, off = figures["seconds"], figures["ratio"], figures["distance"]
            rows.append((title, name, f"{1e3 * seconds:.2f}", str(ratio), f"{off:.1e}"))
        data[title] = {name: figures | {"ratio": vars(figures["ratio"])} for name, figures in found.items()}
    notes = (
        f"The memory of Titans (MLP of depth 2 and expansion 4) without its layer, {HEADS} heads of {WIDTH}, "
        f"mini-batches of {MINI_BATCH}, T = {TOKENS}, float32, on {name_of(where)}; {REPEATS} rounds in which all take "
        "turns. Times are from the call until the device is done. Distance: the largest difference of any result, "
        "gradients included, from `dual` in float64, relative to the largest number there."
    )
    columns = ("rows, precision, what", "form", "ms", "times the kernel's", "distance")
    return Benchmark("The kernels of the form `triton`", columns, tuple(rows), notes, {"cases": data})


def device() -> str:
    """Where to measure; `ValueError` where there is no GPU or no triton."""
    if not torch.cuda.is_available():
        raise ValueError(
            "benchmark 'triton' times GPU kernels and needs a CUDA device, which this machine lacks. What can be said "
            "without one, the docstring of memkit.engine.forms.triton says."
        )
    return "cuda"


def name_of(where: str) -> str:
    """What the machine calls the device."""
    return torch.cuda.get_device_name() if where == "cuda" else where


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Let torch and the kernels multiply float32 with this precision."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def one(batch: int, where: str, training: bool, tell: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Seconds, ratio and distance of every form at one batch size."""
    rule, given, state = problem(batch)
    double = map_tensors(lambda x: x.to(where, torch.double) if x.is_floating_point() else x.to(where), (given, state))
    exact = step(rule, *double, form="dual", training=training)()
    given, state = map_tensors(lambda x: x.to(where), (given, state))
    runs = {name: step(rule, given, state, training=training, **how) for name, how in FORMS.items()}
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        distances = {name: distance(run(), exact) for name, run in runs.items()}
        times = take_turns({name: waited(run, where) for name, run in runs.items()}, REPEATS, tell)
    kernel = times[KERNEL]
    return {
        name: {"seconds": x.median, "ratio": x.relative_to(kernel), "distance": distances[name]}
        for name, x in times.items()
    }


def problem(batch: int) -> tuple[memkit.Rule, Tree, memkit.MemoryState]:
    """The reference shape: a rule, (q, k, v, gates), and a state."""
    rule = memkit.build("rule", "titans", mini_batch=MINI_BATCH)
    g = torch.Generator().manual_seed(0)
    shape = (batch, TOKENS, HEADS)
    q, k, v = (torch.randn(*shape, WIDTH, generator=g) for _ in range(3))
    q, k = (x / x.norm(dim=-1, keepdim=True) for x in (q, k))
    high = {"lr": 0.01, "momentum": 0.9, "decay": 0.02}
    gates = {name: high[name] * torch.rand(shape, generator=g) for name in rule.gates}
    state = memkit.init_state(rule, batch=batch, heads=HEADS, key_dim=WIDTH, value_dim=WIDTH, generator=g)
    return rule, (q, k, v, gates), state


def step(
    rule: memkit.Rule, given: Tree, state: memkit.MemoryState, *, form: Form, training: bool, compiled: bool = False
) -> Run:
    """A call, with gradients of tokens and gates if it is training."""
    leaves = tensors(given)

    def call(q: Tensor, k: Tensor, v: Tensor, gates: dict[str, Tensor]) -> Tensor:
        return memkit.memorize(rule, q, k, v, gates, state, form=form)[0]

    def run() -> tuple[Tensor, ...]:
        for x in leaves:
            x.requires_grad_(training)
        with torch.set_grad_enabled(training), memkit.compile_blocks(compiled):
            y = call(*given)
            slopes = torch.autograd.grad(y.square().sum(), leaves) if training else ()
        return y.detach(), *slopes

    return run


def waited(run: Run, where: str) -> Callable[[], None]:
    """The same, until the device has done it."""

    def until_done() -> None:
        run()
        if where == "cuda":
            torch.cuda.synchronize()

    return until_done


def distance(found: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> float:
    """The largest over all tensors of the largest difference, relative to the largest number."""
    return max(float((x - y).abs().max() / y.abs().max()) for x, y in zip(found, exact, strict=True))
