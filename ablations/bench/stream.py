"""`memkit bench stream`: memory and time per token of two million tokens through LMM, MAC, MAG and MAL."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import memkit
from ablations.bench.base import Benchmark, Failure, Progress, benchmark
from ablations.bench.goal import Goal, single
from ablations.bench.memory import peak, resident
from ablations.bench.timing import Spread, Times, take_turns
from ablations.pool import run_all
from ablations.report.lines import Lines
from memkit.divergence import all_finite

MODELS: dict[str, dict[str, Any]] = {
    "lmm": {},
    "mac": {"segment": 64},
    "mag": {"window": 64},
    "mal": {"window": 64},
}


@dataclass(frozen=True)
class Sizes:
    """chunk: tokens per call. early: tokens before the early timing of `_late_against_early`."""

    dim: int = 128
    heads: int = 4
    depth: int = 2
    tokens: int = 2**21
    chunk: int = 4096
    early: int = 1000
    decoded: int = 64
    rounds: int = 9


SIZES = Sizes()


@benchmark("stream")
def stream(progress: Progress) -> Benchmark:
    """Stream 2^21 tokens through each architecture; the end must equal a short call from a saved state."""
    done, models, failures = dict.fromkeys(MODELS, 0), {}, {}
    total = len(MODELS) * SIZES.tokens // SIZES.chunk
    for event in run_all(one, {name: (name, SIZES) for name in MODELS}, torch.get_num_threads(), fresh=True):
        if event.kind == "failed":
            failures[event.key] = Failure(f"streaming through {event.key}", str(event.value), event.details)
        elif event.kind == "done":
            models[event.key] = event.value
        else:
            done[event.key] = event.value
            progress(str(event.key), sum(done.values()), total)
    models, failures = ({name: given[name] for name in MODELS if name in given} for given in (models, failures))
    if not models:
        raise RuntimeError("\n".join(f"{failure}\n{failure.details}" for failure in failures.values()))
    columns = ("model", "us per token, first", "last", "MiB, first", "all", "state, KiB", "difference", "finite")
    notes = (
        f"{SIZES.tokens:,} random bytes through {SIZES.depth} layers (dim {SIZES.dim}, {SIZES.heads} heads, one row, "
        f"float32, no gradients), {SIZES.chunk:,} tokens per call, a process of one thread for each model, "
        f"{torch.get_num_threads()} at a time. First and last: medians of the first and of the last eighth of the "
        "calls. Memory: the largest resident memory by the end of the first eighth, and by the end of all. "
        f"Difference: the last {SIZES.chunk:,} rows of logits against a call from the state "
        f"saved before them. Ratios of times: calls of {SIZES.chunk:,} tokens, and of one token, from an "
        f"early state and from the last one, {SIZES.rounds} rounds in which both take turns."
    )
    goals = tuple(goal for name, figures in models.items() for goal in _goals(name, figures))
    return Benchmark(
        "Streaming",
        columns,
        tuple(_row(*item) for item in models.items()),
        notes,
        {"models": models},
        goals,
        _plots(models),
        failures=tuple(failures.values()),
    )


def _row(name: str, figures: dict[str, Any]) -> tuple[str, ...]:
    return (
        name,
        f"{figures['first_us']:.0f}",
        f"{figures['last_us']:.0f}",
        f"{figures['early_mib']:.1f}",
        f"{figures['peak_mib']:.1f}",
        f"{figures['state_kib']:,.0f}",
        f"{figures['difference']:.1e}",
        "yes" if figures["finite"] else "no",
    )


def _goals(name: str, figures: dict[str, Any]) -> list[Goal]:
    def at_most(reach: float, what: str, ours: str, yardstick: str, figure: Spread, unit: str = "times") -> Goal:
        return Goal(f"{name}: {what}", ours, yardstick, figure, reach, True, unit)

    late, begun, peak_mib = f"after {SIZES.tokens:,} tokens", figures["early_mib"], figures["peak_mib"]
    difference = figures["difference"] if figures["finite"] else math.nan
    memory = f"{peak_mib:.1f} MiB", f"{begun:.1f} MiB in the first eighth", single(peak_mib / begun)
    goals = [at_most(1.02, f"largest resident memory {late}", *memory)]
    for key, what, early in (("calls", "time per token", SIZES.chunk), ("decoding", "decoding", SIZES.early)):
        first, last = (f"{us:.0f} us per token" for us in figures[key]["us"])
        goals.append(at_most(1.1, f"{what} {late}", last, f"{first} after {early:,}", Spread(**figures[key]["ratio"])))
    end = "one stream", "a call from the saved state", single(difference)
    return [*goals, at_most(1e-6, f"the last {SIZES.chunk:,} outputs", *end, "apart")]


def _plots(models: dict[str, Any]) -> tuple[Lines, ...]:
    def lines(key: str) -> dict[str, list[list[float]]]:
        return {name: [list(point) for point in figures[key]] for name, figures in models.items()}

    return (
        Lines("Time per token while streaming", "tokens so far", "microseconds per token", lines("us_so_far")),
        Lines("Memory while streaming", "tokens so far", "resident memory, MiB", lines("mib_so_far")),
    )


@torch.no_grad()
def one(name: str, sizes: Sizes, send: Callable[[int], None]) -> dict[str, Any]:
    """Stream through one architecture; calls `send` with the number of calls done."""
    torch.manual_seed(0)
    shape = {key: value for key, value in asdict(sizes).items() if key in ("dim", "heads", "depth")}
    model = memkit.build("architecture", name, vocab_size=256, **shape, **MODELS[name])
    calls, generator = sizes.tokens // sizes.chunk, torch.Generator().manual_seed(1)
    eighth, seconds, held, finite, state, begun = max(calls // 8, 1), [], [], True, model.init_state(1), 0.0
    before, ids, logits = state, torch.zeros(1, 0, dtype=torch.long), torch.zeros(0)
    for call in range(calls):
        ids = torch.randint(256, (1, sizes.chunk), generator=generator)
        before, start = state, time.perf_counter()
        logits, state = model(ids, state)
        seconds.append(time.perf_counter() - start)
        held.append(resident())
        begun = peak() if call + 1 == eighth else begun
        finite = finite and bool(logits.isfinite().all())
        send(call + 1)
    largest = peak()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        memkit.save_state(before, str(path))
        again, _ = model(ids, memkit.load_state(str(path)))
    return {
        "first_us": 1e6 * statistics.median(seconds[:eighth]) / sizes.chunk,
        "last_us": 1e6 * statistics.median(seconds[-eighth:]) / sizes.chunk,
        "early_mib": begun,
        "peak_mib": largest,
        "state_kib": state.bytes / 1024,
        "difference": float((again - logits).abs().max()),
        "finite": finite and bool(all_finite(state)),
        "us_so_far": _thinned([1e6 * s / sizes.chunk for s in seconds], sizes.chunk),
        "mib_so_far": _thinned(held, sizes.chunk),
        **_late_against_early(model, state, sizes),
    }


def _thinned(values: list[float], chunk: int) -> list[tuple[int, float]]:
    """Return (tokens so far, median) of consecutive groups of calls, each twice as long as all before."""
    points, start = [], 0
    while start < len(values):
        stop = min(len(values), max(1, 2 * start))
        points.append((stop * chunk, statistics.median(values[start:stop])))
        start = stop
    return points


def _late_against_early(model: torch.nn.Module, late: Any, sizes: Sizes) -> dict[str, Any]:
    """Time per token from a state after all tokens, against a state after few tokens."""
    ids = torch.randint(256, (1, sizes.chunk), generator=torch.Generator().manual_seed(2))

    def decode(state: Any) -> Callable[[], None]:
        return lambda: step_by_step(model, ids[:, : sizes.decoded], state)

    _, after_a_call = model(ids)
    _, after_few = model(ids[:, : sizes.early])
    calls = take_turns({"early": lambda: model(ids, after_a_call), "late": lambda: model(ids, late)}, sizes.rounds)
    decoding = take_turns({"early": decode(after_few), "late": decode(late)}, sizes.rounds)
    return {"calls": _compared(calls, sizes.chunk), "decoding": _compared(decoding, sizes.decoded)}


def step_by_step(model: torch.nn.Module, ids: Tensor, state: Any) -> None:
    """Read ids `[B, T]`, one token per call."""
    for token in ids.split(1, 1):
        _, state = model(token, state)


def _compared(times: dict[str, Times], tokens: int) -> dict[str, Any]:
    us = [1e6 * times[name].median / tokens for name in ("early", "late")]
    return {"us": us, "ratio": vars(times["late"].relative_to(times["early"]))}
