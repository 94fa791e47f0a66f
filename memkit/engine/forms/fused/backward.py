"""The backward pass over a run of blocks, written by hand: gradients of `Inputs` from gradients of `Outputs`.

A gradient has the shape of its tensor. `backward` uses the residuals of `forward`; `backward_by_autograd` needs none
and can be differentiated again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from memkit.engine.core.coefficients import Coefficients
from memkit.engine.core.rows import Weights
from memkit.engine.forms.dual import Carried, run_block
from memkit.engine.forms.fused.forward import BlockRun, Inputs, Outputs, Residuals
from memkit.engine.gradients.products import is_transposed, transposed_as, upright_carry
from memkit.engine.gradients.reading import read_queries_vjp
from memkit.engine.gradients.segments import GradientSums, WritePass, replay_write_pass, total_gradient, write_pass_vjp
from memkit.engine.gradients.vjp import BlockGradients, accumulate_product, fold_vjp
from memkit.layout import Block
from memkit.rule import Rule, Tokens
from memkit.state import map_tensors, tensors, with_tensors


def backward(run: BlockRun, inputs: Inputs, residuals: tuple[Residuals, ...], grad_outputs: Outputs) -> Inputs:
    """Return the gradients of a run's inputs."""
    grad_anchor = grad_outputs.anchor
    transposed = {name: is_transposed(x, grad_anchor[name].shape[2]) for name, x in inputs.carry.items() if grad_anchor}
    carry, anchor = grad_outputs.carry, _transpose(grad_anchor, transposed)
    # A sum over all blocks: in the precision of products it would stop growing too early.
    wide = torch.promote_types(inputs.tokens.k.dtype, torch.float32)
    constants = map_tensors(lambda x: torch.zeros_like(x, dtype=wide), inputs.constants)
    per_block = []
    blocks = run.blocks((inputs.tokens, inputs.coefficients, grad_outputs.y))
    block_vjp = run.prepare(_block_vjp)
    for j in reversed(range(len(residuals))):
        tokens, coefficients, grad_y = blocks[j]
        block = block_vjp(run.rule, tokens, coefficients, residuals[j], inputs.constants, grad_y, carry)
        carry, anchor = _anchor_vjp(run.begins[j], block, anchor)
        constants = {name: x + block.constants[name] for name, x in constants.items()}
        per_block.append((block.tokens, block.coefficients))
    stacked = [torch.stack(x[::-1], 1) for x in zip(*map(tensors, per_block), strict=True)]
    tokens, coefficients = with_tensors(per_block[0], stacked)
    anchor = _transpose(anchor, transposed)
    anchor = {name: anchor[name] if name in anchor else torch.zeros_like(x) for name, x in inputs.anchor.items()}
    return Inputs(tokens, coefficients, carry, anchor, constants)


class _BlockInputGradients(NamedTuple):
    """Gradients of one block's inputs; weights: those of its anchor, transposed if the carry is."""

    tokens: Tokens
    coefficients: Coefficients
    constants: dict[str, Tensor]
    carry: Weights
    weights: Weights


def _block_vjp(
    rule: Rule,
    tokens: Tokens,
    coefficients: Coefficients,
    residuals: Residuals,
    constants: dict[str, Tensor],
    grad_y: Tensor,
    grad_carry: Weights,
) -> _BlockInputGradients:
    """Backward pass of one block: fold, read, tape; grad_carry: the gradient of the carry after the block."""
    tokens, constants = map_tensors(lambda x: x.detach().requires_grad_(), (tokens, constants))
    tape = replay_write_pass(rule, tokens, constants, residuals.outputs, residuals.grad_inputs)
    gradients = BlockGradients(coefficients, *map_tensors(Tensor.detach, (tape.forward.inputs, tape.errors)))
    for name, x in residuals.carry.items():
        fold_vjp(name, x, grad_carry[name], gradients)
    low, weights = map_tensors(lambda x: x.to(tokens.k.dtype), (residuals.carry, residuals.anchor))
    from_read = read_queries_vjp(rule, tokens.q, constants, low, residuals.queries, grad_y, gradients)
    from_tape = _tape_vjp(tape, tape.leaves(tokens, constants), weights, gradients)

    def gradient(leaf: Tensor) -> Tensor:
        total = total_gradient(leaf, (from_read, from_tape))
        return torch.zeros_like(leaf) if total is None else total

    grad_tokens, grad_constants = map_tensors(gradient, (tokens, constants))
    grad_coefficients = gradients.grad_coefficients()
    return _BlockInputGradients(
        grad_tokens, grad_coefficients, grad_constants, gradients.grad_carry, gradients.grad_weights
    )


def _tape_vjp(tape: WritePass, leaves: list[Tensor], weights: Weights, gradients: BlockGradients) -> GradientSums:
    """Return the gradients of leaves through the tape, taken at `weights`.

    `gradients` must hold the whole gradients of inputs and errors from fold and read; it receives those of the weights.
    """
    to_inputs, to_errors = gradients.grad_inputs, gradients.grad_errors

    def grad_input_vjp(name: str, gradient: Tensor | None) -> Tensor:
        if gradient is not None:
            accumulate_product(to_errors, name, gradient, weights[name])
            gradients.add_weight(name, gradient, gradients.errors[name])
        return to_errors[name]

    def output_vjp(name: str, gradient: Tensor | None) -> Tensor:
        if gradient is not None:
            accumulate_product(to_inputs, name, gradient, weights[name].mT)
            gradients.add_weight(name, gradients.inputs[name], gradient)
        return to_inputs[name]

    return write_pass_vjp(tape, leaves, grad_input_vjp, output_vjp)


def _anchor_vjp(begins: Tensor | bool, block: _BlockInputGradients, later: Weights) -> tuple[Weights, Weights]:
    """Return the gradients of the carry before a block, and of the anchor before it; changes the first in place.

    later: gradients of the block's anchor from all blocks after it. Rows with a mini-batch that begins here took their
    anchor from the carry; other rows took it from the block before.
    """
    total = {name: x + later[name] if name in later else x for name, x in block.weights.items()}
    total |= {name: x for name, x in later.items() if name not in total}
    if begins is False:
        return block.carry, total
    rest: Weights = {}
    for name, x in total.items():
        if isinstance(begins, Tensor):
            rows = begins[:, None, None]
            x, rest[name] = torch.where(rows, x, 0), torch.where(rows, 0, x)
        block.carry[name][:, : x.shape[1]].add_(x)
    return block.carry, rest


def _transpose(weights: Weights, transposed: dict[str, bool]) -> Weights:
    return {name: x.mT if transposed[name] else x for name, x in weights.items()}


def backward_by_autograd(run: BlockRun, inputs: Inputs, grad_outputs: Iterable[Tensor]) -> list[Tensor | None]:
    """Return the gradients of all inputs, by autograd through the form `dual`; differentiable if enabled."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views cut off the graph between the inputs themselves: a carry may depend on the constants.
        inputs = map_tensors(lambda x: x.view_as(x), inputs)
        wanted = [x for x in tensors(inputs) if x.requires_grad]
        pairs = zip(tensors(_run_as_dual(run, inputs)), grad_outputs, strict=True)
        results, gradients = zip(*((x, gradient) for x, gradient in pairs if x.requires_grad), strict=True)
    found = iter(torch.autograd.grad(results, wanted, gradients, create_graph=create_graph, allow_unused=True))
    return [next(found) if x.requires_grad else None for x in tensors(inputs)]


def _run_as_dual(run: BlockRun, inputs: Inputs) -> Outputs:
    """Run the blocks in the form `dual`, with an autograd graph."""
    shapes = run.rule.memory.shapes(inputs.tokens.k.shape[-1], inputs.tokens.v.shape[-1])
    outs, n = {name: shape[1] for name, shape in shapes.items()}, 1 + run.rule.slots
    outputs, carried = [], Carried(upright_carry(inputs.carry, outs, n), inputs.anchor, None)
    blocks = run.blocks((inputs.tokens, inputs.coefficients))
    for begins, (tokens, coefficients) in zip(run.begins, blocks, strict=True):
        block = Block(0, tokens.k.shape[1], 0, begins, False)
        y, carried, _ = run_block(run.rule, block, tokens, None, coefficients, carried, inputs.constants)
        outputs.append(y)
    return Outputs(torch.stack(outputs, 1), transposed_as(carried.state, inputs.carry, n), carried.anchor)
