"""The forward pass over a run of blocks, and the residuals for its backward pass (`backward`).

A run is `blocks` neighboring blocks of one length L: tokens `[N, blocks, L, ...]` -> y `[N, blocks, L, V]`, and the
carry `[N, n * in, out]` from before the first block to after the last.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from memkit.engine.core.coefficients import Coefficients
from memkit.engine.core.rows import Weights
from memkit.engine.forms.blocks import cast
from memkit.engine.forms.fused.compile import Prepare, as_written
from memkit.engine.gradients.products import fold, upright_weight
from memkit.engine.gradients.reading import QueryResiduals, read_queries
from memkit.engine.gradients.segments import write_pass
from memkit.rule import Rule, Tokens
from memkit.state import Tree, map_tensors, merge_trees, tensors, with_tensors


class Inputs(NamedTuple):
    """Differentiable inputs of a run: tokens and coefficients `[N, blocks, ...]`, the rest `[N, ...]`.

    coefficients.weight is the effect on the weights of queries. anchor: the weights of a mini-batch begun earlier.
    Carry, anchor and coefficients.last_carry may have a higher precision than the rest, the precision of products.
    """

    tokens: Tokens
    coefficients: Coefficients
    carry: Weights
    anchor: Weights
    constants: dict[str, Tensor]


class Outputs(NamedTuple):
    """Results of a run: y `[N, blocks, L, V]`, the carry and the anchor after its last block."""

    y: Tensor
    carry: Weights
    anchor: Weights


class Residuals(NamedTuple):
    """Tensors of one block kept for its backward pass: carry and anchor at its start, and the result of every product.

    outputs, grad_inputs: of the write pass, see `segments.WritePass`. queries: of the read.
    """

    carry: Weights
    anchor: Weights
    outputs: Weights
    grad_inputs: Weights
    queries: QueryResiduals


class BlockRun(NamedTuple):
    """Constants of a run: the rule; per block, the rows `[N]` for which it begins a mini-batch; and the compiler."""

    rule: Rule
    begins: tuple[Tensor | bool, ...]
    prepare: Prepare = as_written

    def blocks(self, tree: Tree) -> list[Tree]:
        """Split a tree of tensors `[N, blocks, ...]` into one tree per block.

        Compiled blocks take copies: the strides of views depend on the number of blocks, and torch would compile again
        for every other number.
        """
        split = ([x if self.prepare is as_written else x.contiguous() for x in y.unbind(1)] for y in tensors(tree))
        return [with_tensors(tree, block) for block in zip(*split, strict=True)]


def forward(run: BlockRun, inputs: Inputs, residuals: list[Residuals] | None) -> Outputs:
    """Run the blocks on detached tensors, appending each block's residuals unless the list is None."""
    outputs, carry, anchor, block = [], inputs.carry, inputs.anchor, run.prepare(_block)
    for begins, (tokens, coefficients) in zip(
        run.begins, run.blocks((inputs.tokens, inputs.coefficients)), strict=True
    ):
        anchor = next_anchor(run.rule, begins, carry, anchor, tokens)
        y, following, kept = block(
            run.rule, tokens, coefficients, carry, anchor, inputs.constants, keep=residuals is not None
        )
        if residuals is not None:
            residuals.append(kept)
        outputs.append(y)
        carry = following
    return Outputs(torch.stack(outputs, 1), carry, map_tensors(Tensor.contiguous, anchor))


def writes_need_grad(inputs: Inputs) -> bool:
    """Return whether any input of the state needs a gradient; queries alone do not change the state."""
    return any(x.requires_grad for x in tensors(inputs._replace(tokens=inputs.tokens._replace(q=inputs.tokens.k))))


def next_anchor(rule: Rule, begins: Tensor | bool, carry: Weights, anchor: Weights, tokens: Tokens) -> Weights:
    """Return the weights at which a block's gradients are taken: the carried ones if it begins a mini-batch."""
    if begins is False:
        return anchor
    shapes = rule.memory.shapes(tokens.k.shape[-1], tokens.v.shape[-1])
    fresh = {name: upright_weight(x, *shapes[name]) for name, x in carry.items()}
    return merge_trees(begins, anchor, fresh) if isinstance(begins, Tensor) else fresh


def _block(
    rule: Rule,
    tokens: Tokens,
    coefficients: Coefficients,
    carry: Weights,
    anchor: Weights,
    constants: dict[str, Tensor],
    *,
    keep: bool,
) -> tuple[Tensor, Weights, Residuals | None]:
    """Run one block: tape, read, fold. Residuals are None unless `keep`, so that memory is freed early."""
    state = carry
    carry, weights = cast((carry, anchor), tokens.k.dtype)

    def linear_fwd(name: str, x: Tensor) -> Tensor:
        return torch.bmm(x, weights[name])

    def linear_vjp(name: str, x: Tensor, error: Tensor) -> Tensor | None:
        return torch.bmm(error, weights[name].mT) if x.requires_grad else None

    tape = write_pass(rule, tokens, constants, carry, linear_fwd, linear_vjp, graph=False)
    a, r = map_tensors(Tensor.detach, (tape.forward.inputs, tape.errors))
    y, queries = read_queries(rule, tokens.q, constants, coefficients.weight, carry, a, r)
    last_carry, last_write = coefficients.last_carry, coefficients.last_write
    following = {name: fold(last_carry, last_write, x, a[name], r[name]) for name, x in state.items()}
    if not keep:
        return y, following, None
    outputs, grad_inputs = map_tensors(Tensor.detach, (tape.forward.outputs, tape.grad_inputs))
    return y, following, Residuals(state, anchor, outputs, grad_inputs, queries)
