"""`memkit bench rounds`: the time of exact online learning, and the error after each number of iterations."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

import memkit
from ablations.bench.base import Benchmark, Progress, benchmark
from ablations.bench.goal import Goal
from ablations.bench.memory import keep_freed
from ablations.bench.problems import Problem, problem
from ablations.bench.timing import Times, take_turns
from ablations.pool import run_all

ROUNDS = (0, 1, 2, 3, 4, 8)
TOLERANCE, TO_REACH = 1e-5, 4.0
RECOMPUTE = 32
ONE_BY_ONE, CLOSE, EXACT = "token by token (fused)", f"to {TOLERANCE:g}", "to rounding (auto)"
TRAINED = "forward and backward, "


@dataclass(frozen=True)
class Sizes:
    """Sizes of the problem, and the number of timed rounds."""

    batch: int = 8
    tokens: int = 512
    heads: int = 4
    width: int = 64
    repeats: int = 5


SIZES = Sizes()


class Measured(NamedTuple):
    """By form: distance from token by token, and times. kept: the allocator keeps freed memory."""

    distances: dict[str, float]
    times: dict[str, Times]
    kept: bool


@benchmark("rounds")
def rounds(progress: Progress) -> Benchmark:
    """Distance from the exact answer and time of the form `iterate`, by its rounds, forward and with gradients."""
    distances, times, kept = _in_its_own_process(progress)
    ratios = {name: times[_yardstick(name)].relative_to(times[name]) for name in times}
    rows = tuple(
        (name, f"{distances[name]:.1e}" if name in distances else "", f"{times[name].median:.3f}", str(ratios[name]))
        for name in times
    )
    columns = ("form", "distance", "seconds", "times faster")
    data = {name: {"distance": distances.get(name), "seconds": times[name].seconds} for name in times}
    goals = tuple(_goal(times, name) for name in (CLOSE, TRAINED + CLOSE))
    notes = _notes(distances, kept=kept)
    return Benchmark("Exact online learning by rounds", columns, rows, notes, {"forms": data}, goals)


def _in_its_own_process(progress: Progress) -> Measured:
    """Measure in a process of its own, since the allocator's setting lasts as long as its process."""
    for event in run_all(measure, {"rounds": (SIZES, torch.get_num_threads())}, 1, fresh=True):
        if event.kind == "done":
            return event.value
        if event.kind == "failed":
            raise RuntimeError(f"{event.value}\n{event.details}")
        progress(*event.value)
    raise RuntimeError("the process that measures rounds ended without a result.")


def measure(sizes: Sizes, threads: int, send: Callable[[tuple[str, int, int]], None]) -> Measured:
    """Run and time all forms; calls `send` with the form being timed, the number done and the total."""
    torch.set_num_threads(threads)
    kept, given = keep_freed(), _problem(sizes)
    calls: dict[str, Callable[[], Any]] = {ONE_BY_ONE: _forward(given, form="fused")}
    calls |= {f"{n} rounds": _forward(given, form="iterate", rounds=n) for n in ROUNDS}
    calls |= {CLOSE: _forward(given, form="iterate", tolerance=TOLERANCE), EXACT: _forward(given)}
    exact = calls[ONE_BY_ONE]()
    distances = {name: float((run() - exact).norm() / exact.norm()) for name, run in calls.items()}
    trained = {
        TRAINED + ONE_BY_ONE: _step(given, form="fused", recompute=RECOMPUTE),
        TRAINED + CLOSE: _step(given, form="iterate", tolerance=TOLERANCE),
        TRAINED + EXACT: _step(given),
    }
    times: dict[str, Times] = {}
    done, total = itertools.count(), (sizes.repeats + 1) * (len(calls) + len(trained))
    for some in (calls, trained):
        times |= take_turns(some, sizes.repeats, lambda name: send((name, next(done), total)))
    return Measured(distances, times, kept)


def _problem(sizes: Sizes) -> Problem:
    rule = memkit.build("rule", "titans", mini_batch=1)
    shape = {"batch": sizes.batch, "tokens": sizes.tokens, "heads": sizes.heads, "width": sizes.width}
    return problem(rule, **shape, gates={"lr": 0.05, "momentum": 0.9, "decay": 0.02})


def _forward(given: Problem, **options: Any) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            return memkit.memorize(*given, **options)[0]

    return run


def _step(given: Problem, **options: Any) -> Callable[[], object]:
    """The outputs, and the gradients of their squares with respect to tokens, gates and initial weights."""
    rule, *tokens, gates, state = given

    def run() -> object:
        fresh = state.map(Tensor.clone)
        inputs = tuple(x.detach().requires_grad_() for x in tokens)
        scales = {name: gate.detach().requires_grad_() for name, gate in gates.items()}
        leaves = [*inputs, *scales.values(), *(w.requires_grad_() for w in fresh.weights.values())]
        arguments: tuple[Any, ...] = (rule, *inputs, scales, fresh)
        y, _ = memkit.memorize(*arguments, **options)
        return torch.autograd.grad(y.square().sum(), leaves)

    return run


def _yardstick(name: str) -> str:
    return (TRAINED if name.startswith(TRAINED) else "") + ONE_BY_ONE


def _notes(distances: dict[str, float], *, kept: bool) -> str:
    needed = [n for n in ROUNDS if distances[f"{n} rounds"] <= TOLERANCE]
    rounds = f"after {needed[0]} rounds" if needed else f"by no number up to {ROUNDS[-1]} rounds"
    allocator = "keeps freed memory" if kept else "has the system's settings"
    return (
        "An MLP memory of depth 2 and expansion 4 with an update at every token; "
        f"B = {SIZES.batch}, T = {SIZES.tokens}, {SIZES.heads} heads of {SIZES.width}, float32; {SIZES.repeats} turns "
        "of each. Distance is relative to token by token, which itself rounds at about 1e-7; "
        f"{TOLERANCE:g} is reached {rounds}. With gradients, token by token keeps the state every {RECOMPUTE} tokens "
        "and recomputes the states between: all of them would fill gigabytes. The allocator of this process "
        f"{allocator}; otherwise token by token, which allocates new weights at every token, can take twice as long."
    )


def _goal(times: dict[str, Times], name: str) -> Goal:
    yardstick = _yardstick(name)
    ours, theirs = (f"{times[one].median:.2f} s" for one in (name, yardstick))
    ratio = times[yardstick].relative_to(times[name])
    return Goal(f"exact online learning: {name}", ours, f"{yardstick}, {theirs}", ratio, TO_REACH)
