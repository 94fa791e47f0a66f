"""Laws of rules in float32."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from memkit.engine import MemoryState
from memkit.rule import Rule, Tokens
from memkit.state import Tree, map_tensors
from memkit.testing.strategies import ENGINE, OPEN_RANGE, RuleProblem
from memkit.testing.tolerance import LARGEST, Discarded, within

CALL = 200
"""Tokens per call in long streams: few enough for the engine not to warn about slow rules."""
LONG_STREAM = 1e-5
ROUNDING = 10
TRIES = 4
HALF_UNIT = 2.0**-24
FLOOR = 2.0**-17
"""Rounding of the outputs and of a few sums, for any inputs, per unit of 1 + max |y|."""


@torch.no_grad()
def single_precision(rule: Rule, problem: RuleProblem) -> None:
    """|y in float32 - y in float64| <= 1e-5 max |y|, all along a long stream.

    The stream is contractive for most rules: small steps towards one linear map, momentum up to 1/2, decay up to
    1/20. A chaotic rule may be off by 10 times the effect of rounding its inputs and its state.
    """
    rough = map_tensors(_float, problem.fresh_state(rule))
    exact = map_tensors(_double, rough)
    moved, largest = [(exact, problem.generator(20 + n)) for n in range(TRIES)], 0.0
    for start in range(0, problem.stream, CALL):
        tokens = map_tensors(_float, _contractive(rule, problem, min(CALL, problem.stream - start), start))
        y_rough, rough = problem.engine.memorize(rule, *tokens, rough)
        tokens = map_tensors(_double, tokens)
        y, exact = problem.engine.memorize(rule, *tokens, exact)
        # A float32 state is rounded at every token, up or down at random: sqrt(CALL) roundings in all.
        runs = [
            (problem.engine.memorize(rule, *_moved(tokens, g), _moved(state, g, math.sqrt(CALL))), g)
            for state, g in moved
        ]
        moved = [(state, g) for (_, state), g in runs]
        reached = float(y.abs().max())
        if not reached <= LARGEST:  # NaN included; `max` would drop it
            raise Discarded(f"y reaches {reached:.3g}.")
        largest = max(largest, reached)
        caused = max(float((other - y).abs().max()) for (other, _), _ in runs)
        bound = max(LONG_STREAM * largest, ROUNDING * caused)
        within(f"float32 y after {start} tokens and more:", y_rough.double(), y, bound)


@torch.no_grad()
def rounding(rule: Rule, problem: RuleProblem) -> None:
    """Error of y in float32 <= 10 times the error of scan in float32, for every form.

    The error of scan is measured with inputs one unit in the last place off, up or down at random.
    """
    # The rounding of inputs alone is no measure: a norm after an average cancels the changes common to all its numbers,
    # and so most effects of moved inputs, but not the rounding of intermediate results.
    inputs = map_tensors(_float, (problem.tokens_for(rule), problem.state_for(rule)))
    rough, y = _run(rule, problem, *inputs)[0], _run(rule, problem, *map_tensors(_double, inputs))[0]
    largest = float(y.abs().max())
    if not largest <= LARGEST:
        raise Discarded(f"y reaches {largest:.3g}.")
    caused = [float((other.double() - y).abs().max()) for other in _definitions(rule, problem, inputs)]
    if not math.isfinite(sum(caused)):
        raise Discarded("the definition overflows in float32.")
    within("float32 y", rough.double(), y, ROUNDING * max(caused) + FLOOR * (1 + largest))


def _definitions(rule: Rule, problem: RuleProblem, inputs: tuple[Tokens, MemoryState]) -> Iterator[Tensor]:
    """Outputs of memkit's own definition for slightly moved inputs."""
    for n in range(TRIES):
        tokens, state = _moved(inputs, problem.generator(20 + n), 2)  # half a unit is often none in float32
        yield ENGINE.memorize(rule, *tokens, state, form="scan")[0]


def _run(rule: Rule, problem: RuleProblem, tokens: Tokens, state: MemoryState) -> tuple[Tensor, MemoryState]:
    return problem.engine.memorize(rule, *tokens, state, form=problem.form)


def _float(x: Tensor) -> Tensor:
    return x.float() if x.is_floating_point() else x


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _moved(tree: Tree, generator: torch.Generator, times: float = 1.0) -> Tree:
    """Move every number by half a unit in its last float32 place, or `times` as far."""
    by = times * HALF_UNIT

    def move(x: Tensor) -> Tensor:
        up = torch.rand(x.shape, generator=generator) < 0.5
        return x * torch.where(up, 1 + by, 1 - by).to(x.dtype) if x.is_floating_point() else x

    return map_tensors(move, tree)


def _contractive(rule: Rule, problem: RuleProblem, length: int, start: int) -> Tokens:
    """Tokens of one linear map, with small steps and slow forgetting."""
    tokens = problem.tokens_for(rule, length, stream=1000 + start)
    lesson = torch.randn(problem.key_dim, problem.value_dim, generator=problem.generator(10), dtype=torch.float64)
    gates = dict(tokens.gates)
    # A mini-batch's gradients add up before the first of them is felt.
    high = rule.gates["lr"].high
    gates["lr"] = gates["lr"] / (4 * (high if math.isfinite(high) else OPEN_RANGE) * rule.period)
    gates["decay"] = gates["decay"] / 20
    if "momentum" in gates:
        gates["momentum"] = gates["momentum"] / 2
    v = (tokens.k.unflatten(-1, (rule.pairs, -1)) @ lesson).flatten(-2)
    return tokens._replace(v=v, gates=gates)
