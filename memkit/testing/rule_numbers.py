"""Laws of rules about numbers kept in few bits, and about files."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from memkit.engine import MemoryState
from memkit.files import load_state, save_state
from memkit.rule import Rule, Tokens
from memkit.state import map_tensors
from memkit.testing.close import LARGEST, Discarded, identical, same, within
from memkit.testing.strategies import OPEN_RANGE, RuleProblem

CALL = 200
"""Tokens a call in long streams: below the length above which the engine warns about slow rules."""
LONG_STREAM = 1e-5
ROUNDING = 10
FLOOR = 64 * torch.finfo(torch.float32).eps


@torch.no_grad()
def single_precision(rule: Rule, problem: RuleProblem) -> None:
    """In float32 a long stream stays within 1e-5 of max |y| of float64, at its end as at its start.

    The stream is contractive for most rules: small steps towards one linear map, momentum up to 1/2, decay up
    to 1/20. Where a rule is chaotic even so, 10 times what rounding the inputs causes is allowed.
    """
    fresh = problem.fresh_state(rule)
    exact, rounded, rough = fresh, fresh.to(torch.float32).to(torch.float64), fresh.to(torch.float32)
    largest = 0.0
    for start in range(0, problem.stream, CALL):
        tokens = _contractive(rule, problem, min(CALL, problem.stream - start), start)
        y, exact = problem.engine.memorize(rule, *tokens, exact)
        tokens = map_tensors(Tensor.float, tokens)
        y_rounded, rounded = problem.engine.memorize(rule, *map_tensors(Tensor.double, tokens), rounded)
        y_rough, rough = problem.engine.memorize(rule, *tokens, rough)
        largest = max(largest, float(y.abs().max()))
        if not largest <= LARGEST:
            raise Discarded(f"y reaches {largest:.3g}.")
        bound = max(LONG_STREAM * largest, ROUNDING * float((y_rounded - y).abs().max()))
        within(f"float32 y after {start} tokens and more:", y_rough.double(), y_rounded, bound)


@torch.no_grad()
def rounding(rule: Rule, problem: RuleProblem) -> None:
    """float32 moves the outputs at most 10 times as far as rounding the inputs to float32 does."""
    tokens, state = problem.tokens_for(rule), problem.state_for(rule)
    rounded, rounded_state = map_tensors(Tensor.float, tokens), state.to(torch.float32)
    exact, _ = _run(rule, problem, tokens, state)
    y, _ = _run(rule, problem, map_tensors(Tensor.double, rounded), rounded_state.to(torch.float64))
    rough, _ = _run(rule, problem, rounded, rounded_state)
    largest = float(y.abs().max())
    if not largest <= LARGEST:
        raise Discarded(f"y reaches {largest:.3g}.")
    caused = float((y - exact).abs().max())
    within("float32 y", rough.double(), y, ROUNDING * caused + FLOOR * (1 + largest))


def save_and_load(rule: Rule, problem: RuleProblem) -> None:
    """load_state(save_state(state)) is the state to the last bit, and goes on as it would have."""
    tokens, state = problem.tokens_for(rule), problem.state_for(rule)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        save_state(state, path)
        loaded = load_state(path)
    identical("loaded state", loaded, state)
    same("y after loading", _run(rule, problem, tokens, loaded)[0], _run(rule, problem, tokens, state)[0])


def _run(rule: Rule, problem: RuleProblem, tokens: Tokens, state: MemoryState) -> tuple[Tensor, MemoryState]:
    return problem.engine.memorize(rule, *tokens, state, form=problem.form)


def _contractive(rule: Rule, problem: RuleProblem, length: int, start: int) -> Tokens:
    """Tokens of a lesson that can be learned, with gates under which a memory slowly forgets."""
    tokens = problem.tokens_for(rule, length, stream=1000 + start)
    lesson = torch.randn(problem.key_dim, problem.value_dim, generator=problem.generator(10), dtype=torch.float64)
    gates = dict(tokens.gates)
    # A mini-batch's gradients add up before the first of them is felt.
    gates["lr"] = gates["lr"] / (4 * OPEN_RANGE * rule.period)
    gates["decay"] = gates["decay"] / 20
    if "momentum" in gates:
        gates["momentum"] = gates["momentum"] / 2
    return tokens._replace(v=tokens.k @ lesson, gates=gates)
