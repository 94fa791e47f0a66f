"""`memkit bench rules`: time per token of each rule, in the form that `auto` takes, beside a Titans matrix."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

import memkit
from ablations.bench.base import Benchmark, Progress, benchmark
from ablations.bench.timing import Times, take_turns
from memkit.engine import gate_shape
from memkit.rule import Rule

TOKENS, HEADS, WIDTH, ROUNDS = 2048, 4, 64, 5
LARGE_STATE, FEW_TOKENS = 4 * 2**20, 128
"""Rules with more bytes of state per row are timed on FEW_TOKENS tokens, since their time grows with the state.
So are rules of the form `expand`, which builds a step per token."""
YARDSTICK = "titans, depth 1"


@benchmark("rules")
def rules(progress: Progress) -> Benchmark:
    """Time and state of every registered rule, relative to `titans` with one matrix per head."""
    known: dict[str, Rule] = {YARDSTICK: memkit.build("rule", "titans", depth=1)}
    known |= {name: memkit.build("rule", name) for name in memkit.names("rule")}
    times: dict[bool, dict[str, Times]] = {}
    done, total = 0, 2 * (ROUNDS + 1) * len(known)
    for backward in (False, True):

        def count(name: str) -> None:
            nonlocal done
            progress(name, done, total)
            done += 1

        taken = take_turns({name: call(rule, backward) for name, rule in known.items()}, ROUNDS, count, again=True)
        times[backward] = {name: taken[name].each(tokens_of(rule)) for name, rule in known.items()}
    rows, data = [], {}
    for name, rule in known.items():
        form = memkit.explain(rule).partition(":")[0]
        ratios = [times[backward][name].relative_to(times[backward][YARDSTICK]) for backward in (False, True)]
        speeds = [1 / times[backward][name].median for backward in (False, True)]
        state = state_bytes(rule)
        rows.append((name, form, *map(str, ratios), *(f"{speed:,.0f}" for speed in speeds), f"{state / 1024:.0f}"))
        data[name] = {
            "form": form,
            "forward": vars(ratios[0]),
            "forward_backward": vars(ratios[1]),
            "tokens_per_second": speeds,
            "tokens": tokens_of(rule),
            "state_bytes": state,
        }
    columns = ("rule", "form", "forward", "forward + backward", "tokens/s", "tokens/s, both", "state, KiB")
    notes = (
        f"Time per token in multiples of `titans` with one matrix per head and mini-batches of 16 (median, least and "
        f"largest of {ROUNDS} rounds in which all rules take turns, the second of two calls "
        f"each); T = {TOKENS}, or {FEW_TOKENS} if the state is above "
        f"{LARGE_STATE // 2**20} MiB or the form is expand; {HEADS} heads of {WIDTH}, one row, float32, "
        f"{torch.get_num_threads()} thread(s) of {os.cpu_count()} cores, torch {torch.__version__}. "
        "Rules with their default options; state of one row."
    )
    return Benchmark("Memory rules", columns, tuple(rows), notes, {"rules": data})


def call(rule: Rule, backward: bool) -> Callable[[], None]:
    """One pass over random tokens with unit keys, gates inside their ranges and small steps."""
    g = torch.Generator().manual_seed(0)
    shape = (1, tokens_of(rule), HEADS)
    q = torch.randn(*shape, WIDTH, generator=g)
    k, v = (torch.randn(*shape, rule.pairs, WIDTH, generator=g) for _ in range(2))
    q, k, v = q / q.norm(dim=-1, keepdim=True), (k / k.norm(dim=-1, keepdim=True)).flatten(3), v.flatten(3)
    small = {"lr": 0.5 / rule.period, "momentum": 0.9, "decay": 0.1}
    gates = {}
    for name, gate in rule.gates.items():
        high = min(gate.high, gate.low + small.get(name, 1.0))
        gates[name] = gate.low + (high - gate.low) * torch.rand(gate_shape(rule, gate, k, v), generator=g)
    state = memkit.init_state(rule, batch=1, heads=HEADS, key_dim=WIDTH, value_dim=WIDTH, generator=g)
    leaves = [q, k, v, *gates.values(), *state.initial.values()]

    def run() -> None:
        for x in leaves:
            x.requires_grad_(backward).grad = None
        y, _ = memkit.memorize(rule, q, k, v, gates, state)
        if backward:
            y.square().mean().backward()

    return run


def tokens_of(rule: Rule) -> int:
    """Return the number of tokens that a rule is timed on."""
    slow = state_bytes(rule) > LARGE_STATE or memkit.explain(rule).startswith("expand:")
    return min(TOKENS, FEW_TOKENS) if slow else TOKENS


def state_bytes(rule: Rule) -> int:
    """Count the bytes of one row's state; tensors shared with its initial state count once."""
    return memkit.init_state(rule, batch=1, heads=HEADS, key_dim=WIDTH, value_dim=WIDTH).bytes
