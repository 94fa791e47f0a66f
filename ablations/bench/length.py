"""`memkit bench length`: what training on longer texts costs a token, in time and in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch

import memkit
from ablations.bench.base import Benchmark, Tell, benchmark
from ablations.bench.memory import growth
from ablations.bench.timing import take_turns

LENGTHS = (2048, 8192, 32_768, 65_536)
DIM, HEADS, MINI_BATCH, GROUP, REPEATS = 256, 4, 64, 1024, 3
KEPT, AGAIN = "all kept", f"recompute={GROUP}"
MIB = 2**20


def training_step(tokens: int, recompute: int | None) -> Callable[[], None]:
    """Forward and backward of one Titans layer over `tokens` tokens, gradients of the inputs included."""
    torch.manual_seed(0)
    rule = {"name": "titans", "depth": 2, "expansion": 4, "mini_batch": MINI_BATCH}
    mixer = memkit.build("mixer", "neural_memory", dim=DIM, heads=HEADS, rule=rule, recompute=recompute)
    x = torch.randn(1, tokens, DIM, requires_grad=True)

    def run() -> None:
        mixer.zero_grad()
        x.grad = None
        mixer(x)[0].square().mean().backward()

    return run


@benchmark("length")
def length(tell: Tell) -> Benchmark:
    """Time and memory of a training step a token, with everything kept for the backward pass and without."""
    rows, data, total, done = [], {}, len(LENGTHS) * (2 * (REPEATS + 1) + 2), iter(range(10**6))
    for tokens in LENGTHS:
        grown = {}
        for name, recompute in ((KEPT, None), (AGAIN, GROUP)):
            tell(f"memory of {tokens:,} tokens, {name}", next(done), total)
            grown[name] = growth(training_step, tokens, recompute)
        calls = {KEPT: training_step(tokens, None), AGAIN: training_step(tokens, GROUP)}
        times = take_turns(
            calls, REPEATS, lambda name, tokens=tokens: tell(f"{tokens:,} tokens, {name}", next(done), total)
        )
        each = {name: 1e6 * times[name].median / tokens for name in calls}
        ratio = times[AGAIN].relative_to(times[KEPT])
        ends = 4 * tokens * DIM * 4 / MIB  # x, y and the gradients of both, float32
        figures = (f"{each[KEPT]:.0f}", f"{each[AGAIN]:.0f}", str(ratio), f"{grown[KEPT]:,.0f}", f"{grown[AGAIN]:,.0f}")
        rows.append((f"{tokens:,}", *figures, f"{ends:,.0f}"))
        data[str(tokens)] = {"microseconds_a_token": each, "ratio": vars(ratio), "growth_mib": grown, "ends_mib": ends}
    notes = (
        f"A training step of one Titans layer (dim {DIM}, {HEADS} heads, MLP depth 2 x 4, mini-batches of "
        f"{MINI_BATCH}, one row, float32), {torch.get_num_threads()} thread(s): microseconds a token, the ratio of the "
        f"two in {REPEATS} rounds in which they take turns, and by how much the step raises resident memory at its "
        "peak, in a process of its own. The last column is what inputs, outputs and their gradients take alone."
    )
    columns = ("tokens", "us a token", "recomputed", "ratio", "MiB", "MiB, recomputed", "ends alone, MiB")
    return Benchmark("Training on longer texts", columns, tuple(rows), notes, {"lengths": data})
