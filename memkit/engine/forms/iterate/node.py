"""A block solved by fixed-point iteration, as one node of the autograd graph, differentiated implicitly.

The node reads queries q `[N, L, K]` -> y `[N, L, V]` and folds the block into the carry. Its gradient at the fixed
point r = G(r, theta) needs no history of iterations: with l = d loss / d r and J = dG/dr it is dG/dtheta^T m, where
m = l + J^T l + J^T J^T l + ... (a Neumann series). J is strictly triangular, so the series ends after as many terms as
the block has gradient points. After a fixed number of iterations each one is differentiated instead, from last to
first. Differentiable once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from memkit.autograd import batched, once_differentiable, outside_autocast
from memkit.engine.core.affine import Affine
from memkit.engine.core.coefficients import Coefficients, Effect
from memkit.engine.core.rows import Weights
from memkit.engine.core.tape import Tape
from memkit.engine.forms.iterate import iteration
from memkit.engine.forms.iterate.fixed_point import FixedPoint, FixedPointConfig, largest, relative, row_scales
from memkit.engine.forms.iterate.iteration import Problem
from memkit.engine.forms.iterate.iteration_vjp import IterationVjp, Leaves
from memkit.engine.gradients.products import fold_all
from memkit.engine.gradients.reading import QueryResiduals, read_queries, read_queries_vjp
from memkit.engine.gradients.segments import total_gradient
from memkit.engine.gradients.vjp import BlockGradients, accumulate, fold_vjp
from memkit.rule import Tokens
from memkit.state import emptied, map_tensors, tensors, with_tensors

INSTEAD = (
    "form='step', or form='scan' where it does not fit (windows, writes of several tokens, a bank of levels): "
    "memkit.memorize(..., form='scan'), or run=memkit.Run(form='scan') of a mixer or architecture; "
    "a rule with mini_batch > 1 needs neither"
)


class Inputs(NamedTuple):
    """Differentiable inputs of a block: tokens, coefficients and carry.

    coefficients.weight: the effect on the weights of queries. point: on the weights of each token's gradient.
    """

    tokens: Tokens
    coefficients: Coefficients
    point: Effect
    carry: Weights
    constants: Weights

    def problem(self, affine: Affine | None) -> Problem:
        """Return the detached fixed-point problem."""
        return map_tensors(Tensor.detach, Problem(self.tokens, self.point, self.carry, self.constants, affine))


class Outputs(NamedTuple):
    """Results of a block: y `[N, L, V]`, the next carry, and the tape's inputs and errors."""

    y: Tensor
    carry: Weights
    inputs: Weights
    errors: Weights


class _OutputGradients(NamedTuple):
    """Gradients of `Outputs`; None, or a missing name, if autograd sent none."""

    y: Tensor | None
    carry: Weights
    inputs: Weights
    errors: Weights


class _Residuals(NamedTuple):
    """Tensors kept for the backward pass: of the iterations, of the tape and of the read."""

    iterations: tuple[tuple[iteration.Residuals, Weights], ...]
    affine: Affine | None
    inputs: Weights
    errors: Weights
    queries: QueryResiduals


def apply_block(
    config: FixedPointConfig, inputs: Inputs, solution: FixedPoint, affine: Affine | None
) -> tuple[Tensor, Weights, Tape]:
    """Return y, the next carry and the tape, differentiable in `inputs`."""
    structure: list[Outputs] = []
    flat = _FixedPointBlock.apply(config, emptied(inputs), solution, affine, structure, *tensors(inputs))
    outputs: Outputs = with_tensors(structure[0], flat)
    return outputs.y, outputs.carry, solution.tape._replace(inputs=outputs.inputs, errors=outputs.errors)


class _FixedPointBlock(torch.autograd.Function):
    """Outputs of a block as a function of all its input tensors, given its fixed point."""

    @staticmethod
    def forward(
        ctx: Any,
        config: FixedPointConfig,
        like: Inputs,
        solution: FixedPoint,
        affine: Affine | None,
        structure: list[Outputs],
        *flat: Tensor,
    ) -> tuple[Tensor, ...]:
        """Read and fold; `structure` receives the tree of the outputs, without tensors."""
        inputs: Inputs = with_tensors(like, [x.detach() for x in flat])
        tape, effect = solution.tape, inputs.coefficients.weight
        y, queries = read_queries(
            config.rule, inputs.tokens.q, inputs.constants, effect, inputs.carry, tape.inputs, tape.errors
        )
        residuals = _Residuals(solution.iterations, affine, tape.inputs, tape.errors, queries)
        carry = fold_all(inputs.carry, inputs.coefficients, tape)
        outputs = Outputs(y, carry, *map_tensors(_view, (tape.inputs, tape.errors)))
        ctx.config, ctx.like = config, like
        ctx.like_residuals, ctx.like_outputs = emptied((residuals, outputs))
        ctx.save_for_backward(*flat, *tensors(residuals))
        ctx.set_materialize_grads(False)
        structure.append(ctx.like_outputs)
        if not any(x.requires_grad for x in flat[1:]):  # flat[0] is q, without influence on the carry and the tape
            ctx.mark_non_differentiable(*tensors(outputs)[1:])
        return tuple(tensors(outputs))

    @staticmethod
    @outside_autocast
    @once_differentiable("the form 'iterate'", INSTEAD)
    def backward(ctx: Any, saved: tuple[Tensor, ...], *flat: Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Go back through fold and read, then through the iteration."""
        detached = map(Tensor.detach, saved)
        inputs, residuals = with_tensors(ctx.like, detached), with_tensors(ctx.like_residuals, detached)
        gradients = _vjp(ctx.config, inputs, residuals, _named(ctx.like_outputs, flat))
        filled = (torch.zeros_like(x) if g is None else g for x, g in zip(tensors(inputs), gradients, strict=True))
        return None, None, None, None, None, *filled


def _view(x: Tensor) -> Tensor:
    """Return a view, because a node must not return tensors of its inputs or residuals."""
    return x.view_as(x)


def _named(like: Outputs, flat: tuple[Tensor | None, ...]) -> _OutputGradients:
    """Name the flat gradients of the outputs, without those absent."""
    rest = iter(flat)
    y = next(rest)
    named = ({name: next(rest) for name in names} for names in like[1:])
    return _OutputGradients(y, *({name: x for name, x in each.items() if x is not None} for each in named))


def _vjp(
    config: FixedPointConfig, inputs: Inputs, residuals: _Residuals, grad_outputs: _OutputGradients
) -> list[Tensor | None]:
    """Return the gradients of all inputs, in the order of their tensors; None for those without one."""
    gradients = BlockGradients(inputs.coefficients, residuals.inputs, residuals.errors)
    leaves = map_tensors(lambda x: x.detach().requires_grad_(), (inputs.tokens, inputs.constants))
    tokens, constants = leaves
    for name, x in grad_outputs.carry.items():
        fold_vjp(name, inputs.carry[name], x, gradients)
    sums = []
    if grad_outputs.y is not None:
        sums.append(
            read_queries_vjp(
                config.rule, tokens.q, constants, inputs.carry, residuals.queries, grad_outputs.y, gradients
            )
        )
    for total, new in ((gradients.grad_inputs, grad_outputs.inputs), (gradients.grad_errors, grad_outputs.errors)):
        for name, x in new.items():
            accumulate(total, name, x.clone())
    sums.extend(each.totals for each in _iterations_vjp(config, inputs, residuals, leaves, gradients))
    flat = [total_gradient(leaf, sums) for leaf in tensors(leaves)]
    grad_tokens, grad_constants = flat[: len(tensors(tokens))], flat[len(tensors(tokens)) :]
    effects = (gradients.grad_weight, gradients.grad_last, gradients.grad_point)
    grad_effects = [effect.get(name) for effect in effects for name in ("carry", "write")]
    return [*grad_tokens, *grad_effects, *(gradients.grad_carry.get(name) for name in inputs.carry), *grad_constants]


def _iterations_vjp(
    config: FixedPointConfig, inputs: Inputs, residuals: _Residuals, leaves: Leaves, gradients: BlockGradients
) -> list[IterationVjp]:
    """Go back through all iterations, last to first; at a fixed point, through the one kept, as often as needed."""
    problem = inputs.problem(residuals.affine)
    iterations: list[IterationVjp] = []
    grad_inputs, grad_errors = gradients.grad_inputs, gradients.grad_errors
    for kept, old in reversed(residuals.iterations):
        vjp = IterationVjp(config.rule, problem, config.graph, kept, old, leaves, gradients.grad_point)
        if config.rounds.fixed is None:
            tolerance = config.rounds.tolerance_for(problem.tokens.k.dtype)
            _sum_neumann_series(vjp, grad_inputs, grad_errors, config.points(problem), tolerance)
        else:
            grad_inputs, grad_errors = {}, vjp.pull(grad_inputs, grad_errors)
        vjp.finish(gradients.grad_carry)
        iterations.append(vjp)
    return iterations


def _sum_neumann_series(
    vjp: IterationVjp, grad_inputs: Weights, grad_errors: Weights, most: int, tolerance: float
) -> None:
    """Pull l, J^T l, J^T J^T l, ... until the last term is within the tolerance, at most `most` terms.

    Later terms are smaller, because the iteration converged. If a row is NaN, all terms are pulled.
    """
    total = {name: x.clone() for name, x in grad_errors.items()}  # clones: `pull` changes its arguments
    for _ in range(most):
        grad_inputs, grad_errors = {}, vjp.pull(grad_inputs, grad_errors)
        if not grad_errors:
            break
        for name, x in grad_errors.items():
            accumulate(total, name, x.clone())
        if batched(grad_errors.values()):  # under vmap sizes cannot be compared: all terms
            continue
        names = list(grad_errors)
        change = relative([grad_errors[name].abs() for name in names], row_scales([total[name] for name in names]))
        if largest(change) <= tolerance:
            break
