"""`memkit bench rounds`: what exact online learning of a deep memory costs, and how fast its rounds come closer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

import memkit
from ablations.bench.base import Benchmark, Tell, benchmark
from ablations.bench.goal import Goal
from ablations.bench.memory import keep_freed
from ablations.bench.timing import Times, take_turns
from ablations.pool import run_all

ROUNDS = (0, 1, 2, 3, 4, 8)
TOLERANCE, TO_REACH = 1e-5, 4.0
RECOMPUTE = 32
ONE_BY_ONE, CLOSE, EXACT = "token by token (fused)", f"to {TOLERANCE:g}", "to rounding (auto)"
TRAINED = "forward and backward, "


@dataclass(frozen=True)
class Sizes:
    """Rows, tokens and widths of what is learned, and the rounds in which all forms take turns."""

    batch: int = 8
    tokens: int = 512
    heads: int = 4
    width: int = 64
    repeats: int = 5


SIZES = Sizes()


class Measured(NamedTuple):
    """By form: distance from token by token, and times; and whether the allocator did as it was told."""

    distances: dict[str, float]
    times: dict[str, Times]
    kept: bool


@benchmark("rounds")
def rounds(tell: Tell) -> Benchmark:
    """Rounds of the form `iterate` against distance from the exact answer and time, forward and with gradients."""
    distances, times, kept = _in_its_own_process(tell)
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


def _in_its_own_process(tell: Tell) -> Measured:
    """Measure where the allocator can be told what it stays with until the process ends."""
    for news in run_all(measure, {"rounds": (SIZES, torch.get_num_threads())}, 1, fresh=True):
        if news.kind == "done":
            return news.value
        if news.kind == "failed":
            raise RuntimeError(f"{news.value}\n{news.details}")
        tell(*news.value)
    raise RuntimeError("the process that measures rounds ended without a word.")


def measure(sizes: Sizes, threads: int, send: Callable[[tuple[str, int, int]], None]) -> Measured:
    """Run and time all forms; `send` hears what is timed, how much is done and of how much."""
    torch.set_num_threads(threads)
    kept, given = keep_freed(), _given(sizes)
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
    done, count = iter(range(10**6)), (sizes.repeats + 1) * (len(calls) + len(trained))
    for some in (calls, trained):
        times |= take_turns(some, sizes.repeats, lambda name: send((name, next(done), count)))
    return Measured(distances, times, kept)


def _given(sizes: Sizes) -> tuple[Any, ...]:
    """A rule, tokens, gates and a state."""
    rule = memkit.build("rule", "titans", mini_batch=1)
    g = torch.Generator().manual_seed(0)
    shape = (sizes.batch, sizes.tokens, sizes.heads)
    q, k, v = (torch.randn(*shape, sizes.width, generator=g) for _ in range(3))
    q, k = (x / x.norm(dim=-1, keepdim=True) for x in (q, k))
    gates = {
        "lr": 0.05 * torch.rand(shape, generator=g),
        "momentum": 0.9 * torch.rand(shape, generator=g),
        "decay": 0.02 * torch.rand(shape, generator=g),
    }
    wide: dict[str, Any] = {"batch": sizes.batch, "heads": sizes.heads, "key_dim": sizes.width}
    state = memkit.init_state(rule, **wide, value_dim=sizes.width, generator=g)
    return rule, q, k, v, gates, state


def _forward(given: tuple[Any, ...], **options: Any) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            return memkit.memorize(*given, **options)[0]

    return run


def _step(given: tuple[Any, ...], **options: Any) -> Callable[[], object]:
    """The outputs and the gradients of their squares, in everything that was given."""
    rule, gates, state = given[0], given[4], given[5]

    def run() -> object:
        fresh = state.map(Tensor.clone)
        inputs = tuple(x.detach().requires_grad_() for x in given[1:4])
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
    rounds = f"after {needed[0]} rounds" if needed else f"by none of {ROUNDS[-1]} rounds"
    allocator = "keeps what it is given back" if kept else "is as it is"
    return (
        "An MLP memory of depth 2 and expansion 4 that learns at every token; "
        f"B = {SIZES.batch}, T = {SIZES.tokens}, {SIZES.heads} heads of {SIZES.width}, float32; {SIZES.repeats} turns "
        "of each. Distance is relative to token by token, whose own rounding is of the order of 1e-7; "
        f"{TOLERANCE:g} is reached {rounds}. With gradients token by token keeps the state every {RECOMPUTE} tokens "
        "and runs what is between again: all states would fill gigabytes. A process of its own, whose allocator "
        f"{allocator}: token by token asks for new weights at every token, and may else take twice as long."
    )


def _goal(times: dict[str, Times], name: str) -> Goal:
    yardstick = _yardstick(name)
    ours, theirs = (f"{times[one].median:.2f} s" for one in (name, yardstick))
    ratio = times[yardstick].relative_to(times[name])
    return Goal(f"exact online learning: {name}", ours, f"{yardstick}, {theirs}", ratio, TO_REACH)
