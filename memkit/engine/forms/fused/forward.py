"""The sweep over blocks forward, and what it leaves for the sweep back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from memkit.engine.core.coefficients import Coefficients
from memkit.engine.core.rows import Weights
from memkit.engine.forms.blocks import cast
from memkit.engine.forms.fused.compile import Prepare, as_written
from memkit.engine.gradients.adjoint import Asked
from memkit.engine.gradients.pieces import write_pass
from memkit.engine.gradients.products import fold, upright_weight
from memkit.engine.gradients.reading import answered
from memkit.rule import Rule, Tokens
from memkit.state import Tree, map_tensors, merge_trees, tensors, with_tensors


class Given(NamedTuple):
    """What a run of blocks of one length begins with: tokens and coefficients `[N, blocks, ...]`, the rest `[N, ...]`.

    own.weight says what queries see. Carry, anchor and own.last_carry may be of a higher precision than the rest,
    which is that of the products.
    """

    tokens: Tokens
    own: Coefficients
    carry: Weights
    anchor: Weights
    constants: dict[str, Tensor]


class Found(NamedTuple):
    """What it ends with: y `[N, blocks, L, V]`, the carry, and the weights that gradients see."""

    y: Tensor
    carry: Weights
    anchor: Weights


class Kept(NamedTuple):
    """What a block leaves for the sweep back: where it began, and the result of every product."""

    carry: Weights
    anchor: Weights
    outputs: Weights
    backs: Weights
    answers: Weights
    asked: dict[str, Asked]


class Run(NamedTuple):
    """A run of blocks: the rule, which rows begin a mini-batch with each, and how a block's program is prepared."""

    rule: Rule
    begins: tuple[Tensor | bool, ...]
    prepared: Prepare = as_written

    def blocks(self, tree: Tree) -> list[Tree]:
        """A tree of tensors `[N, blocks, ...]` as one for each block.

        What is compiled takes copies: the strides of views say how many blocks there are, and of every other number
        of them torch would make another program.
        """
        parts = ([x if self.prepared is as_written else x.contiguous() for x in y.unbind(1)] for y in tensors(tree))
        return [with_tensors(tree, here) for here in zip(*parts, strict=True)]


def forward(run: Run, given: Given, kept: list[Kept] | None) -> Found:
    """Run the blocks, all tensors detached; `kept` receives what each leaves."""
    outputs, carry, anchor, block = [], given.carry, given.anchor, run.prepared(_block)
    for begins, (here, own) in zip(run.begins, run.blocks((given.tokens, given.own)), strict=True):
        anchor = begun(run.rule, begins, carry, anchor, here)
        y, following, left = block(run.rule, here, own, carry, anchor, given.constants, keep=kept is not None)
        if kept is not None:
            kept.append(left)
        outputs.append(y)
        carry = following
    return Found(torch.stack(outputs, 1), carry, map_tensors(Tensor.contiguous, anchor))


def writes(given: Given) -> bool:
    """Whether gradients flow to anything that a block leaves behind, and not only to what queries read."""
    return any(x.requires_grad for x in tensors(given._replace(tokens=given.tokens._replace(q=given.tokens.k))))


def begun(rule: Rule, begins: Tensor | bool, carry: Weights, anchor: Weights, here: Tokens) -> Weights:
    """The weights that the gradients of a block see."""
    if begins is False:
        return anchor
    shapes = rule.memory.shapes(here.k.shape[-1], here.v.shape[-1])
    fresh = {name: upright_weight(x, *shapes[name]) for name, x in carry.items()}
    return merge_trees(begins, anchor, fresh) if isinstance(begins, Tensor) else fresh


def _block(
    rule: Rule,
    here: Tokens,
    own: Coefficients,
    carry: Weights,
    anchor: Weights,
    constants: dict[str, Tensor],
    *,
    keep: bool,
) -> tuple[Tensor, Weights, Kept | None]:
    """Tape, read and fold; `keep` asks for what the way back needs, which else need not outlive its use."""
    kept = Kept(carry, anchor, {}, {}, {}, {})
    carry, anchor = cast((carry, anchor), here.k.dtype)

    def back(name: str, given: Tensor, error: Tensor) -> Tensor | None:
        return torch.bmm(error, anchor[name].mT) if given.requires_grad else None

    writing = write_pass(rule, here, constants, carry, lambda name, x: torch.bmm(x, anchor[name]), back, graph=False)
    a, r = map_tensors(Tensor.detach, (writing.forward.inputs, writing.errors))
    y, answers, asked = answered(rule, here.q, constants, own.weight, carry, a, r)
    following = {name: fold(own.last_carry, own.last_write, x, a[name], r[name]) for name, x in kept.carry.items()}
    if not keep:
        return y, following, None
    outputs, backs = map_tensors(Tensor.detach, (writing.forward.outputs, writing.backs))
    return y, following, kept._replace(outputs=outputs, backs=backs, answers=answers, asked=asked)
