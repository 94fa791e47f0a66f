"""One fixed-point iteration over a block: a forward and a backward pass of the memory on keys k `[N, L, K]`.

In it each token uses the weights after the block's earlier writes: P Z of the carry Z before the block, and the masked
scores ((x a^T) * C) times the errors r. The backward pass multiplies by transposes, so a and r change places:

    z = P (x Z) + ((x x^T) * C) r        g = P (r Z^T) + ((r r^T) * C) x

The inputs a are this iteration's own x, and so are the errors r of the backward pass; only the forward pass uses errors
of the iteration before. Even these are this iteration's own in the output layer, if its output is the prediction and
the loss is quadratic in it: they solve a triangular system, as in the form `solve`, and convergence is faster.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from memkit.engine.core.affine import Affine
from memkit.engine.core.coefficients import Effect
from memkit.engine.core.rows import Weights
from memkit.engine.core.surprise import limit_errors, squared_surprise
from memkit.engine.gradients.products import is_transposed
from memkit.engine.gradients.segments import write_pass
from memkit.engine.gradients.vjp import ReadResiduals, read_state_fwd
from memkit.rule import Rule, Tokens
from memkit.state import map_tensors


class Problem(NamedTuple):
    """A block's fixed-point problem: its tokens, the carry before it, and the effect on each gradient point.

    affine: errors of the output layer as a function of the prediction; None if they are not solved for.
    """

    tokens: Tokens
    point: Effect
    carry: Weights
    constants: Weights
    affine: Affine | None


class Residuals(NamedTuple):
    """Results of an iteration's products, by name, kept for its VJP.

    outputs, grad_inputs: see `segments.WritePass`. reads, transposed_reads: of the forward and the backward pass.
    """

    outputs: Weights
    grad_inputs: Weights
    reads: dict[str, ReadResiduals]
    transposed_reads: dict[str, ReadResiduals]


class IterationResult(NamedTuple):
    """Inputs `[N, L, in]` and errors `[N, L, out]` by name; prediction `[N, L, V]`; and residuals.

    squared_surprise: squared gradient norms `[N, L]` before the rule's limit; None without a limit.
    """

    inputs: Weights
    errors: Weights
    prediction: Tensor
    squared_surprise: Tensor | None
    residuals: Residuals


class MemoryGraph(NamedTuple):
    """Dependencies between the linear maps of a memory.

    output_layer: the linear map whose output is the prediction, under a loss quadratic or linear in it and without a
    limit, so that its errors can be solved for; or None. depends_on_earlier: linear maps whose input depends on
    another linear map, and so changes between iterations.
    """

    output_layer: str | None
    depends_on_earlier: frozenset[str]


def memory_graph(rule: Rule, k: Tensor, weights: Weights, constants: Weights) -> MemoryGraph:
    """Trace a rule's memory on keys k `[N, T, K]`; T = 0 is enough."""
    outputs: dict[str, Tensor] = {}
    depends_on_earlier = set()

    def linear(name: str, x: Tensor) -> Tensor:
        if x.requires_grad:
            depends_on_earlier.add(name)
        outputs[name] = x.new_zeros(*x.shape[:-1], weights[name].shape[-1]).requires_grad_()
        return outputs[name]

    with torch.enable_grad():
        prediction = rule.memory.forward(linear, k.detach(), map_tensors(Tensor.detach, constants))
    solvable = (rule.objective.quadratic or rule.objective.linear) and rule.surprise_limit is None
    output_layer = next((name for name, out in outputs.items() if solvable and out is prediction), None)
    return MemoryGraph(output_layer, frozenset(depends_on_earlier))


class Iteration:
    """The map r -> G(r) of one block, from old errors to new ones; all its tensors are detached.

    unknown: names of the linear maps with errors to iterate on, all but the output layer.
    """

    def __init__(self, rule: Rule, problem: Problem, graph: MemoryGraph) -> None:
        if (graph.output_layer is None) != (problem.affine is None):
            raise RuntimeError("errors of the output layer are solved for if, and only if, they are known as affine.")
        self.rule, self.problem, self.graph = rule, problem, graph
        self.unknown = tuple(name for name in problem.carry if name != graph.output_layer)
        self._shapes = rule.memory.shapes(problem.tokens.k.shape[-1], problem.tokens.v.shape[-1])
        self._unchanging: dict[str, tuple[Tensor, ReadResiduals, Tensor]] = {}

    def unknown_errors(self, result: IterationResult) -> Weights:
        """Return the errors for the next iteration."""
        return {name: result.errors[name] for name in self.unknown}

    def __call__(self, old: Weights) -> IterationResult:
        """Run one iteration from old errors of the unknown; empty: without the block's own writes."""
        point, limit = self.problem.point, self.rule.surprise_limit
        reads: dict[str, ReadResiduals] = {}
        transposed_reads: dict[str, ReadResiduals] = {}
        solved: Weights = {}

        def linear_fwd(name: str, x: Tensor) -> Tensor:
            at_carry, reads[name], scores = self._read_carry(name, x)
            r = old.get(name)
            if name == self.graph.output_layer and self.problem.affine is not None:
                r = solved[name] = self.problem.affine.solve(scores, at_carry)
            if r is None:
                return at_carry
            reused = name in self._unchanging  # by later iterations, so not in place
            return at_carry.baddbmm(scores, r) if reused else at_carry.baddbmm_(scores, r)

        def linear_vjp(name: str, x: Tensor, error: Tensor) -> Tensor | None:
            if name not in self.graph.depends_on_earlier:
                return None
            carry, written = self.problem.carry[name], error if limit is None else old.get(name)
            a, transposed = error if written is None else written, not is_transposed(carry, error.shape[-1])
            at_carry, transposed_reads[name] = read_state_fwd(point, error, carry, a, transposed=transposed)
            if written is None:
                return at_carry
            return at_carry.baddbmm_(transposed_reads[name].scores * point.write, x.detach())

        tokens, constants, names = self.problem.tokens, self.problem.constants, self.problem.carry
        tape = write_pass(
            self.rule, tokens, constants, names, linear_fwd, linear_vjp, graph=False, solved_errors=solved
        )
        (inputs, outputs, prediction), errors, grad_inputs = map_tensors(Tensor.detach, tape)
        residuals = Residuals(outputs, grad_inputs, reads, transposed_reads)
        result = IterationResult(inputs, errors, prediction, None, residuals)
        if limit is None:
            return result
        squared = squared_surprise(inputs, errors)
        return result._replace(errors=limit_errors(self.rule, squared, errors), squared_surprise=squared)

    def _read_carry(self, name: str, x: Tensor) -> tuple[Tensor, ReadResiduals, Tensor]:
        """Return P (x Z), residuals and masked scores; computed once if x is the same in all iterations."""
        if name in self._unchanging:
            return self._unchanging[name]
        point, carry = self.problem.point, self.problem.carry[name]
        transposed = is_transposed(carry, self._shapes[name][1])
        at_carry, residuals = read_state_fwd(point, x, carry, x, transposed=transposed)
        result = at_carry, residuals, residuals.scores * point.write
        if name not in self.graph.depends_on_earlier:
            self._unchanging[name] = result
        return result
