"""`memkit bench models`: a training step of whole models of equal parameters, against the length of the text."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from ablations.bench.base import Benchmark, Progress, benchmark
from ablations.bench.crossing import crossing, describe
from ablations.bench.memory import growth
from ablations.bench.systems import OWN, SHAPE, SIZES, YARDSTICK, equal_hidden, system
from ablations.bench.timing import Spread, Times, take_turns
from ablations.report.lines import Lines

LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768)
AT_ONCE = 2048
"""The least number of tokens per step: shorter texts are trained in batches."""
WEIGHED = LENGTHS[1::2]
"""Lengths at which memory is measured: it grows evenly, and each figure costs a process of its own."""
ROUNDS, MOST_SECONDS, MOST_MIB = 3, 20.0, 12 * 1024


@dataclass
class Measured:
    """Times per token and MiB of one model, by length."""

    times: dict[int, Times] = field(default_factory=dict)
    mib: dict[int, float] = field(default_factory=dict)


@benchmark("models")
def models(progress: Progress) -> Benchmark:
    """Time and memory of one training step of LMM, MAC, MAG, MAL and a transformer of equal parameters."""
    hidden, done = equal_hidden(), itertools.count()
    measured, total = {name: Measured() for name in OWN}, len(OWN) * (len(LENGTHS) * (ROUNDS + 1) + len(WEIGHED))
    for tokens in LENGTHS:
        going = [name for name in OWN if _goes_on(measured[name], tokens)]
        for name in going if tokens in WEIGHED else ():
            progress(f"memory of {name}, {tokens:,} tokens", next(done), total)
            measured[name].mib[tokens] = growth(training_step, name, hidden[name], tokens)
        calls = {name: training_step(name, hidden[name], tokens) for name in going}
        for name, times in take_turns(
            calls, ROUNDS, lambda what, n=tokens: progress(f"{what}, {n:,} tokens", next(done), total)
        ).items():
            measured[name].times[tokens] = times.each(tokens * batch(tokens))
    crossings = {name: _crossing(measured[YARDSTICK], own) for name, own in measured.items() if name != YARDSTICK}
    rows = [_row(tokens, measured) for tokens in LENGTHS]
    rows.append(("faster from", "", *(describe(crossings[name], LENGTHS) for name in OWN if name != YARDSTICK)))
    notes = (
        f"One training step, forward and backward of the mean cross-entropy ({SHAPE}; models of as many parameters, "
        f"everything kept for the backward pass), {torch.get_num_threads()} thread(s); texts shorter than {AT_ONCE:,} "
        f"tokens in batches of that many. Microseconds per token, medians of {ROUNDS} rounds in which all take turns, "
        "and the growth of resident memory at the peak of a step, in a process of its own. The transformer uses "
        "torch's scaled_dot_product_attention. An empty cell: the step would take above "
        f"{MOST_SECONDS:.0f} s or {MOST_MIB:,} MiB. Faster from: the least length beyond which a model "
        "trains faster than the transformer, interpolated, over the rounds."
    )
    data = {
        "parameters": system(YARDSTICK, hidden[YARDSTICK]).num_parameters(),
        "seconds_a_token": {name: {str(n): t.seconds for n, t in own.times.items()} for name, own in measured.items()},
        "growth_mib": {name: {str(n): mib for n, mib in own.mib.items()} for name, own in measured.items()},
        "faster_from": {name: vars(spread) for name, spread in crossings.items()},
    }
    return Benchmark("Training whole models", ("tokens", *OWN), tuple(rows), notes, data, plots=_plots(measured))


def batch(tokens: int) -> int:
    """Return the rows of a step."""
    return max(1, AT_ONCE // tokens)


def training_step(name: str, hidden: int, tokens: int) -> Callable[[], None]:
    """Forward and backward of one model over rows of `tokens` random bytes."""
    model = system(name, hidden)
    ids = torch.randint(SIZES["vocab_size"], (batch(tokens), tokens + 1), generator=torch.Generator().manual_seed(0))

    def run() -> None:
        model.zero_grad()
        logits, _ = model(ids[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()

    return run


def _goes_on(measured: Measured, tokens: int) -> bool:
    """Return True if a step over `tokens` tokens should stay within the limits, judged by the shorter lengths."""
    before = [n for n in LENGTHS if n < tokens][-2:]
    if any(n not in measured.times for n in before):
        return False
    if len(before) < 2:
        return True
    earlier, last = (measured.times[n].median * n * batch(n) for n in before)
    mib = max((mib * tokens * batch(tokens) / (n * batch(n)) for n, mib in measured.mib.items()), default=0)
    return last * last / earlier <= MOST_SECONDS and mib <= MOST_MIB


def _crossing(yardstick: Measured, own: Measured) -> Spread:
    """The crossing of each round, over the lengths measured for both."""
    both = [n for n in LENGTHS if n in yardstick.times and n in own.times]
    seconds = [[[one.times[n].seconds[i] for n in both] for one in (own, yardstick)] for i in range(ROUNDS)]
    return Spread.of([crossing(both, *pair) for pair in seconds])


def _row(tokens: int, measured: dict[str, Measured]) -> tuple[str, ...]:
    def cell(own: Measured) -> str:
        us = f"{1e6 * own.times[tokens].median:,.0f} us" if tokens in own.times else ""
        return f"{us}, {own.mib[tokens]:,.0f} MiB" if tokens in own.mib else us

    return (f"{tokens:,}", *map(cell, measured.values()))


def _plots(measured: dict[str, Measured]) -> tuple[Lines, ...]:
    us = {name: [[n, 1e6 * t.median] for n, t in own.times.items()] for name, own in measured.items()}
    mib = {name: [[n, grown] for n, grown in own.mib.items()] for name, own in measured.items()}
    return (
        Lines("A training step", "tokens of a text", "microseconds per token", us),
        Lines("Memory of a training step", "tokens of a text", "MiB at the peak", mib),
    )
