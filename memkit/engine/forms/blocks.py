"""Shared by the forms that run blocks: their layout, their dtype, and when `auto` may take them."""

from __future__ import annotations

import torch

from memkit.engine.core.obstacles import online
from memkit.engine.form import Place
from memkit.layout import Layout, lay_out, without_periods
from memkit.rule import Rule
from memkit.state import Tree, map_tensors


def layout(rule: Rule, place: Place, block_size: int) -> Layout:
    """Blocks within a mini-batch; of any length where the gradient does not see the weights."""
    if not rule.sees_weights:
        return without_periods(place.mask, place.tokens, block_size)
    return lay_out(rule.period, *place, block_size)


def why_blocks(rule: Rule) -> str:
    """Which tokens of a rule run at once, and why."""
    if not rule.sees_weights:
        return "its gradient does not see the weights, so blocks of any size run at once."
    return (
        f"every mini-batch of {rule.mini_batch} tokens runs at once, because its gradients see the same weights. A "
        "larger mini_batch is faster, and another rule."
    )


def in_parallel(rule: Rule) -> bool:
    """True if several tokens of a block run at once; no form does better with an online Omega rule."""
    return not online(rule) or rule.window > 1


def cast(tree: Tree, dtype: torch.dtype | None) -> Tree:
    """A tree of tensors in another dtype; None leaves it."""
    return tree if dtype is None else map_tensors(lambda x: x.to(dtype), tree)
