"""`memkit bench length`: time per token and memory of training on longer texts."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch

from ablations.bench.base import Benchmark, Progress, benchmark
from ablations.bench.goal import Goal, single
from ablations.bench.memory import growth
from ablations.bench.problems import MEMORY, titans_layer
from ablations.bench.timing import Spread, Times, take_turns
from ablations.report.lines import Lines

LENGTHS = (2048, 8192, 32_768, 65_536)
DIM, HEADS, MINI_BATCH, GROUP, REPEATS = 256, 4, 64, 4096, 3
KEPT, AGAIN = "all kept", f"recompute={GROUP}"
MIB = 2**20


def training_step(tokens: int, recompute: int | None) -> Callable[[], None]:
    """Forward and backward of one Titans layer over `tokens` tokens, gradients of the inputs included."""
    mixer = titans_layer(DIM, HEADS, MINI_BATCH, recompute=recompute)
    x, arriving = torch.randn(1, tokens, DIM, requires_grad=True), torch.randn(1, tokens, DIM)

    def run() -> None:
        mixer.zero_grad()
        x.grad = None
        mixer(x)[0].backward(arriving)

    return run


@benchmark("length")
def length(progress: Progress) -> Benchmark:
    """Time and memory of a training step, with everything kept for the backward pass or recomputed."""
    modes, total, done = {KEPT: None, AGAIN: GROUP}, 2 * len(LENGTHS) * (REPEATS + 2), itertools.count()
    grown: dict[str, dict[int, float]] = {name: {} for name in modes}
    for tokens in LENGTHS:
        for name, recompute in modes.items():
            progress(f"memory of {tokens:,} tokens, {name}", next(done), total)
            grown[name][tokens] = growth(training_step, tokens, recompute)
    calls = {call(n, name): training_step(n, recompute) for n in LENGTHS for name, recompute in modes.items()}
    taken = take_turns(calls, REPEATS, lambda what: progress(what, next(done), total))
    times = {name: {n: taken[call(n, name)].each(n) for n in LENGTHS} for name in modes}
    notes = (
        f"A training step of one Titans layer (dim {DIM}, {HEADS} heads, {MEMORY}, mini-batches of "
        f"{MINI_BATCH}, one row, float32), {torch.get_num_threads()} thread(s): microseconds per token, the ratio of "
        f"the two in {REPEATS} rounds in which all take turns, and the growth of resident memory at the step's peak, "
        "in a process of its own that holds inputs and the gradients of the outputs beforehand. The last column is the "
        "memory of inputs, outputs and their gradients alone."
    )
    columns = ("tokens", "us per token", "recomputed", "ratio", "MiB", "MiB, recomputed", "ends alone, MiB")
    rows = tuple(_row(n, times, grown) for n in LENGTHS)
    data = {
        "seconds_a_token": {name: {str(n): own[n].seconds for n in LENGTHS} for name, own in times.items()},
        "growth_mib": {name: {str(n): own[n] for n in LENGTHS} for name, own in grown.items()},
    }
    return Benchmark("Training on longer texts", columns, rows, notes, data, _goals(times, grown), _plots(times, grown))


def call(tokens: int, name: str) -> str:
    """Name a timed call."""
    return f"{tokens:,} tokens, {name}"


def _ends(tokens: int) -> float:
    """MiB of inputs, outputs and the gradients of both, in float32."""
    return 4 * tokens * DIM * 4 / MIB


def _row(n: int, times: dict[str, dict[int, Times]], grown: dict[str, dict[int, float]]) -> tuple[str, ...]:
    ratio = times[AGAIN][n].relative_to(times[KEPT][n])
    us = (f"{1e6 * own[n].median:.0f}" for own in times.values())
    return (f"{n:,}", *us, str(ratio), *(f"{own[n]:,.0f}" for own in grown.values()), f"{_ends(n):,.0f}")


def _goals(times: dict[str, dict[int, Times]], grown: dict[str, dict[int, float]]) -> tuple[Goal, ...]:
    def at_most(reach: float, what: str, ours: str, yardstick: str, figure: Spread, unit: str = "times") -> Goal:
        return Goal(f"{what}, {AGAIN}", ours, yardstick, figure, reach, True, unit)

    def us(name: str, n: int) -> str:
        return f"{1e6 * times[name][n].median:.0f} us per token"

    short, before, long = LENGTHS[0], LENGTHS[-2], LENGTHS[-1]
    again, added, ends = times[AGAIN], grown[AGAIN][long] - grown[AGAIN][before], _ends(long) - _ends(before)
    slower, longer = again[long].relative_to(times[KEPT][long]), again[long].relative_to(again[short])
    whole, more = single(grown[AGAIN][long] / 1024), single(added / ends)
    step, theirs = f"a training step over {long:,} tokens", f"{ends:,.0f} MiB of inputs, outputs and gradients"
    return (
        at_most(1.35, step, us(AGAIN, long), f"{us(KEPT, long)}, {KEPT}", slower),
        at_most(4, f"memory of {step}", f"{grown[AGAIN][long]:,.0f} MiB", "4 GiB", whole, "GiB"),
        at_most(1, f"memory of {long - before:,} more tokens", f"{added:,.0f} MiB", theirs, more),
        at_most(1.1, f"time per token of {step}", us(AGAIN, long), f"{us(AGAIN, short)} at {short:,}", longer),
    )


def _plots(times: dict[str, dict[int, Times]], grown: dict[str, dict[int, float]]) -> tuple[Lines, ...]:
    us = {name: [[n, 1e6 * t.median] for n, t in own.items()] for name, own in times.items()}
    mib = {name: [[n, value] for n, value in own.items()] for name, own in grown.items()}
    mib["inputs, outputs and gradients"] = [[n, _ends(n)] for n in LENGTHS]
    return (
        Lines("A training step of one layer", "tokens", "microseconds per token", us),
        Lines("Memory of a training step", "tokens", "MiB at the peak", mib),
    )
