"""`memkit bench rounds`: what exact online learning of a deep memory costs, and how fast its rounds come closer."""

from __future__ import annotations

from collections.abc import Callable

import torch

import memkit
from ablations.bench.base import Benchmark, Tell, benchmark
from ablations.bench.timing import take_turns

TOKENS, HEADS, WIDTH, REPEATS = 512, 8, 64, 5
ROUNDS = (0, 1, 2, 4, 8)
ONE_BY_ONE = "token by token (dual)"


@benchmark("rounds")
def rounds(tell: Tell) -> Benchmark:
    """Rounds of the form `iterate` against distance from the exact answer and time, forward."""
    rule = memkit.build("rule", "titans", mini_batch=1)
    g = torch.Generator().manual_seed(0)
    shape = (1, TOKENS, HEADS)
    q, k, v = (torch.randn(*shape, WIDTH, generator=g) for _ in range(3))
    q, k = (x / x.norm(dim=-1, keepdim=True) for x in (q, k))
    gates = {
        "lr": 0.05 * torch.rand(shape, generator=g),
        "momentum": 0.9 * torch.rand(shape, generator=g),
        "decay": 0.02 * torch.rand(shape, generator=g),
    }
    state = memkit.init_state(rule, batch=1, heads=HEADS, key_dim=WIDTH, value_dim=WIDTH, generator=g)

    def form(**options: object) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            with torch.no_grad():
                return memkit.memorize(rule, q, k, v, gates, state, **options)[0]  # type: ignore[arg-type]

        return run

    calls = {ONE_BY_ONE: form(form="dual")}
    calls |= {f"{n} rounds": form(form="iterate", rounds=n) for n in ROUNDS}
    calls |= {"to 1e-5": form(form="iterate", tolerance=1e-5), "to rounding (auto)": form(form="iterate")}
    exact = calls[ONE_BY_ONE]()
    distances = {name: float((run() - exact).norm() / exact.norm()) for name, run in calls.items()}
    count, done = (REPEATS + 1) * len(calls), iter(range(10**6))
    times = take_turns(calls, REPEATS, lambda name: tell(name, next(done), count))
    ratios = {name: times[ONE_BY_ONE].relative_to(times[name]) for name in calls}
    rows = tuple((name, f"{distances[name]:.1e}", f"{times[name].median:.3f}", str(ratios[name])) for name in calls)
    notes = (
        f"An MLP memory of depth 2 and expansion 4 that learns at every token; T = {TOKENS}, {HEADS} heads of {WIDTH}, "
        f"float32, forward, blocks of 16; {REPEATS} rounds in which all take turns. Distance is relative to token by "
        "token, whose own rounding is of the order of 1e-7."
    )
    columns = ("form", "distance", "seconds", "times faster")
    data = {name: {"distance": distances[name], "seconds": times[name].seconds} for name in calls}
    return Benchmark("Exact online learning by rounds", columns, rows, notes, {"forms": data})
