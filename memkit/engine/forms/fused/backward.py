"""The sweep back over blocks: every block's gradients, from those of what it made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from memkit.engine.core.coefficients import Coefficients
from memkit.engine.core.rows import Weights
from memkit.engine.forms.dual import Carried, run_block
from memkit.engine.forms.fused.forward import Found, Given, Kept, Run
from memkit.engine.gradients.adjoint import Slopes, add_product, fold_back
from memkit.engine.gradients.pieces import Sums, Writing, arrived_at, written_again
from memkit.engine.gradients.products import is_transposed, transposed_as, upright_carry
from memkit.engine.gradients.reading import read_back
from memkit.layout import Block
from memkit.rule import Rule, Tokens
from memkit.state import map_tensors, tensors, with_tensors


def backward(run: Run, given: Given, kept: tuple[Kept, ...], slope: Found) -> Given:
    """The slopes of what a run of blocks was given, from those of what it found."""
    turned = {name: is_transposed(x, slope.anchor[name].shape[2]) for name, x in given.carry.items() if slope.anchor}
    carry, anchor = slope.carry, _turn(slope.anchor, turned)
    # Of all blocks together, so that a sum in the precision of products would stand still before its end.
    wide = torch.promote_types(given.tokens.k.dtype, torch.float32)
    constants = map_tensors(lambda x: torch.zeros_like(x, dtype=wide), given.constants)
    found = []
    here = run.blocks((given.tokens, given.own, slope.y))
    block_back = run.prepared(_block_back)
    for j in reversed(range(len(kept))):
        tokens, own, y = here[j]
        back = block_back(run.rule, tokens, own, kept[j], given.constants, y, carry)
        carry, anchor = _anchored(run.begins[j], back, anchor)
        constants = {name: x + back.constants[name] for name, x in constants.items()}
        found.append((back.tokens, back.own))
    tokens, own = with_tensors(found[0], [torch.stack(x[::-1], 1) for x in zip(*map(tensors, found), strict=True)])
    anchor = _turn(anchor, turned)
    anchor = {name: anchor[name] if name in anchor else torch.zeros_like(x) for name, x in given.anchor.items()}
    return Given(tokens, own, carry, anchor, constants)


class _Back(NamedTuple):
    """The slopes of all that a block was given; weights: of those that its gradients saw."""

    tokens: Tokens
    own: Coefficients
    constants: dict[str, Tensor]
    carry: Weights
    weights: Weights


def _block_back(
    rule: Rule,
    here: Tokens,
    own: Coefficients,
    kept: Kept,
    constants: dict[str, Tensor],
    slope: Tensor,
    following: Weights,
) -> _Back:
    """Back through fold, read and tape, from the slopes of y and of what follows."""
    here, constants = map_tensors(lambda x: x.detach().requires_grad_(), (here, constants))
    writing = written_again(rule, here, constants, kept.outputs, kept.backs)
    to = Slopes(own, *map_tensors(Tensor.detach, (writing.forward.inputs, writing.errors)))
    for name, x in kept.carry.items():
        fold_back(name, x, following[name], to)
    low, weights = map_tensors(lambda x: x.to(here.k.dtype), (kept.carry, kept.anchor))
    read = read_back(rule, here.q, constants, low, kept.answers, kept.asked, slope, to)
    wrote = _write_back(writing, [here.k, here.v, *here.gates.values(), *constants.values()], weights, to)

    def of(leaf: Tensor) -> Tensor:
        arrived = arrived_at(leaf, (read, wrote))
        return torch.zeros_like(leaf) if arrived is None else arrived

    tokens, constants = map_tensors(of, (here, constants))
    return _Back(tokens, to.own(), constants, to.of_carry, to.of_weights)


def _write_back(writing: Writing, leaves: Iterable[Tensor], weights: Weights, to: Slopes) -> Sums:
    """Go back through the tape: from the errors to the outputs, then from the outputs to the keys."""
    inputs, outputs, _ = writing.forward
    sums = Sums([*outputs.values(), *writing.backs.values(), *leaves])
    for name in outputs:
        arrived = sums.of(writing.backs[name]) if name in writing.backs else None
        if arrived is not None:
            add_product(to.of_errors, name, arrived, weights[name])
            to.add_weight(name, arrived, to.errors[name])
        sums.pull(writing.errors[name], to.of_errors[name])
    for name in reversed(outputs):
        arrived = sums.of(outputs[name])
        if arrived is not None:
            add_product(to.of_inputs, name, arrived, weights[name].mT)
            to.add_weight(name, to.inputs[name], arrived)
        sums.pull(inputs[name], to.of_inputs[name])
    return sums


def _anchored(begins: Tensor | bool, back: _Back, later: Weights) -> tuple[Weights, Weights]:
    """The slopes of the carry, and of the weights that gradients saw before, which rows that do not begin go on with.

    later: those of the block's weights from the blocks after it.
    """
    total = {name: x + later[name] if name in later else x for name, x in back.weights.items()}
    total |= {name: x for name, x in later.items() if name not in total}
    if begins is False:
        return back.carry, total
    rest: Weights = {}
    for name, x in total.items():
        if isinstance(begins, Tensor):
            begun = begins[:, None, None]
            x, rest[name] = torch.where(begun, x, 0), torch.where(begun, 0, x)
        back.carry[name][:, : x.shape[1]].add_(x)
    return back.carry, rest


def _turn(weights: Weights, turned: dict[str, bool]) -> Weights:
    return {name: x.mT if turned[name] else x for name, x in weights.items()}


def back_through(run: Run, given: Given, arriving: Iterable[Tensor]) -> list[Tensor | None]:
    """The slopes of all that is given, with a graph if that is wanted."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, because what is given may depend on each other out there, as a carry on the constants of all runs.
        given = map_tensors(lambda x: x.view_as(x), given)
        wanted = [x for x in tensors(given) if x.requires_grad]
        made = tensors(_as_dual(run, given))
        pairs = [(x, slope) for x, slope in zip(made, arriving, strict=True) if x.requires_grad]
        results, slopes = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(results, wanted, slopes, create_graph=again, allow_unused=True))
    return [next(found) if x.requires_grad else None for x in tensors(given)]


def _as_dual(run: Run, given: Given) -> Found:
    """The same blocks in the form `dual`, with their graph."""
    shapes = run.rule.memory.shapes(given.tokens.k.shape[-1], given.tokens.v.shape[-1])
    outs, n = {name: shape[1] for name, shape in shapes.items()}, 1 + run.rule.slots
    outputs, carried = [], Carried(upright_carry(given.carry, outs, n), given.anchor, None)
    for begins, (here, own) in zip(run.begins, run.blocks((given.tokens, given.own)), strict=True):
        block = Block(0, here.k.shape[1], 0, begins, False)
        y, carried, _ = run_block(run.rule, block, here, None, own, carried, given.constants)
        outputs.append(y)
    return Found(torch.stack(outputs, 1), transposed_as(carried.state, given.carry, n), carried.anchor)
