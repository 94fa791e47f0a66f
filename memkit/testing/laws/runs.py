"""Runs of a rule on a problem: inputs by name, and results to compare."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from memkit.engine import MemoryState
from memkit.rule import Rule, Tokens
from memkit.state import Tree
from memkit.testing.results_and_gradients import ResultsAndGradients, Run, differentiate
from memkit.testing.strategies import RuleProblem

ALL = slice(None)


def inputs_of(tokens: Tokens, state: MemoryState) -> dict[str, Tree]:
    """Everything that gradients flow to, by name."""
    return {**tokens._asdict(), "state": state}


def tokens_of(inputs: dict[str, Tree]) -> Tokens:
    """The tokens among the inputs."""
    return Tokens(*(inputs[name] for name in Tokens._fields))


def run_with(rule: Rule, problem: RuleProblem, **options: Any) -> Run:
    """One call of the problem's engine: inputs -> outputs and final state."""

    def run(inputs: dict[str, Tree]) -> dict[str, Tree]:
        y, state = problem.engine.memorize(rule, *tokens_of(inputs), inputs["state"], **options)
        return {"y": y, "state": without_unfilled(state)}

    return run


def run_whole(rule: Rule, problem: RuleProblem, **options: Any) -> ResultsAndGradients:
    """One call from the problem's state over all its tokens, differentiated."""
    return differentiate(
        run_with(rule, problem, **options), inputs_of(problem.tokens_for(rule), problem.state_for(rule))
    )


def without_unfilled(state: MemoryState) -> MemoryState:
    """Clear the unfilled places of a state's window: their contents have no meaning."""
    if state.window is None:
        return state
    filled = state.window.filled[:, None, :]

    def clear(x: Tensor) -> Tensor:
        return torch.where(filled.view(*filled.shape, *[1] * (x.dim() - 3)), x, 0.0)

    window = state.window
    gates = {name: clear(gate) for name, gate in window.gates.items()}
    return replace(state, window=replace(window, k=clear(window.k), v=clear(window.v), gates=gates))
