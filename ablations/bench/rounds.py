"""`memkit bench rounds`: what exact online learning of a deep memory costs, and how fast its rounds come closer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import memkit
from ablations.bench.base import Benchmark, Tell, benchmark
from ablations.bench.goal import Goal
from ablations.bench.memory import keep_freed
from ablations.bench.timing import Times, take_turns

BATCH, TOKENS, HEADS, WIDTH, REPEATS = 8, 512, 4, 64, 5
ROUNDS = (0, 1, 2, 3, 4, 8)
TOLERANCE, TO_REACH = 1e-5, 4.0
RECOMPUTE = 32
ONE_BY_ONE, CLOSE, EXACT = "token by token (dual)", f"to {TOLERANCE:g}", "to rounding (auto)"
TRAINED = "forward and backward, "


@benchmark("rounds")
def rounds(tell: Tell) -> Benchmark:
    """Rounds of the form `iterate` against distance from the exact answer and time, forward and with gradients."""
    kept = keep_freed()
    given = _given()
    calls: dict[str, Callable[[], Any]] = {ONE_BY_ONE: _forward(given, form="dual")}
    calls |= {f"{n} rounds": _forward(given, form="iterate", rounds=n) for n in ROUNDS}
    calls |= {CLOSE: _forward(given, form="iterate", tolerance=TOLERANCE), EXACT: _forward(given)}
    exact = calls[ONE_BY_ONE]()
    distances = {name: float((run() - exact).norm() / exact.norm()) for name, run in calls.items()}
    trained = {
        TRAINED + ONE_BY_ONE: _step(given, form="dual", recompute=RECOMPUTE),
        TRAINED + CLOSE: _step(given, form="iterate", tolerance=TOLERANCE),
        TRAINED + EXACT: _step(given),
    }
    times: dict[str, Times] = {}
    done, count = iter(range(10**6)), (REPEATS + 1) * (len(calls) + len(trained))
    for some in (calls, trained):
        times |= take_turns(some, REPEATS, lambda name: tell(name, next(done), count))
    ratios = {name: times[_yardstick(name)].relative_to(times[name]) for name in times}
    rows = tuple(
        (name, f"{distances[name]:.1e}" if name in distances else "", f"{times[name].median:.3f}", str(ratios[name]))
        for name in times
    )
    columns = ("form", "distance", "seconds", "times faster")
    data = {name: {"distance": distances.get(name), "seconds": times[name].seconds} for name in times}
    goals = tuple(_goal(times, name) for name in (CLOSE, TRAINED + CLOSE))
    return Benchmark(
        "Exact online learning by rounds", columns, rows, _notes(distances, kept=kept), {"forms": data}, goals
    )


def _given() -> tuple[Any, ...]:
    """A rule, tokens, gates and a state."""
    rule = memkit.build("rule", "titans", mini_batch=1)
    g = torch.Generator().manual_seed(0)
    shape = (BATCH, TOKENS, HEADS)
    q, k, v = (torch.randn(*shape, WIDTH, generator=g) for _ in range(3))
    q, k = (x / x.norm(dim=-1, keepdim=True) for x in (q, k))
    gates = {
        "lr": 0.05 * torch.rand(shape, generator=g),
        "momentum": 0.9 * torch.rand(shape, generator=g),
        "decay": 0.02 * torch.rand(shape, generator=g),
    }
    state = memkit.init_state(rule, batch=BATCH, heads=HEADS, key_dim=WIDTH, value_dim=WIDTH, generator=g)
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
        f"An MLP memory of depth 2 and expansion 4 that learns at every token; B = {BATCH}, T = {TOKENS}, {HEADS} "
        f"heads of {WIDTH}, float32; {REPEATS} turns of each. Distance is relative to token by token, whose own "
        f"rounding is of the order of 1e-7; {TOLERANCE:g} is reached {rounds}. With gradients token by token keeps the "
        f"state every {RECOMPUTE} tokens and runs what is between again: all states would fill gigabytes. The "
        f"allocator {allocator}: token by token asks for new weights at every token, and may else take twice as long."
    )


def _goal(times: dict[str, Times], name: str) -> Goal:
    yardstick = _yardstick(name)
    ours, theirs = (f"{times[one].median:.2f} s" for one in (name, yardstick))
    ratio = times[yardstick].relative_to(times[name])
    return Goal(f"exact online learning: {name}", ours, f"{yardstick}, {theirs}", ratio, TO_REACH)
