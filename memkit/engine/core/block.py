"""One block of tokens: read through its coefficients, and fold its writes into the state.

A carry holds weight and slots of a matrix, one below the other, `[N, n * in, out]` with n = 1 + slots: one product
reads them all. Writes are never formed: write s is a_s^T r_s, from its input a `[N, S, in]` and error r `[N, S, out]`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memkit.engine.core.channels import AnyCoefficients, AnyEffect
from memkit.engine.core.coefficients import scale
from memkit.engine.core.rows import Rows, Weights, gate_at
from memkit.engine.core.tape import Tape
from memkit.layout import Block
from memkit.rule import Gates, Linear, Rule, at_weights, identity
from memkit.state import merge_trees

Parts = dict[str, tuple[Tensor, ...]]
"""Name -> (weight, slots...), each `[N, in, out]`."""


def stack(rows: Rows) -> Weights:
    """Name -> carry `[N, n * in, out]`."""
    return {name: torch.cat([weight, *rows.slots[name]], 1) for name, weight in rows.weights.items()}


def parts(carry: Weights, n: int) -> Parts:
    """Views of weight and slots in carries `[N, n * in, out]`."""
    return {name: x.chunk(n, 1) for name, x in carry.items()}


def unstack(split: Parts) -> tuple[Weights, dict[str, tuple[Tensor, ...]]]:
    """Weights by name, and slots by name."""
    return {name: x[0] for name, x in split.items()}, {name: x[1:] for name, x in split.items()}


def gradient_weights(rule: Rule, block: Block, split: Parts, anchor: Weights, gates: Gates) -> Weights:
    """Weights `[N, in, out]` at which the block's gradients are taken: new in rows that begin a mini-batch here."""
    if block.begins is False:
        return anchor
    first = gate_at(rule, gates, 0) if rule.point is not at_weights else {}
    fresh = {name: rule.effective(rule.point(x[0], x[1:], first)) for name, x in split.items()}
    return merge_trees(block.begins, anchor, fresh) if isinstance(block.begins, Tensor) else fresh


def weights_in_use(rule: Rule, block: Block, raw: Weights, anchor: Weights) -> Weights:
    """Weights at which the query of the block's last token reads: `raw`, after its write, or under `effective` others.

    Those are the mini-batch's, `anchor`, and the next ones in rows where the token completes the mini-batch.
    """
    if rule.effective is identity:
        return raw
    if rule.read == "before" or block.completes is False:
        return anchor
    following = {name: rule.effective(weight) for name, weight in raw.items()}
    return merge_trees(block.completes, anchor, following) if isinstance(block.completes, Tensor) else following


def for_queries(rule: Rule, effect: AnyEffect) -> AnyEffect:
    """Effects on the weights that queries see: after each token's write, or before it."""
    return effect if rule.read == "after" else effect.before_writes()


def read(effect: AnyEffect, x: Tensor, carry: Tensor, a: Tensor, r: Tensor) -> Tensor:
    """x_t `[N, T, in]` times the matrix that token t sees: P (x Z) + ((x a^T) * C) r, `[N, T, out]`."""
    return torch.baddbmm(effect.scale_input(x) @ carry, effect.scores(x, a), r)


def reader(effect: AnyEffect, carry: Weights, tape: Tape) -> Linear:
    """Meaning of `linear(name, x)` while queries are read: x times the weight that each query sees."""
    return lambda name, x: read(effect, x, carry[name], tape.inputs[name], tape.errors[name])


def fold(last_carry: Tensor, last_write: Tensor, carry: Tensor, a: Tensor, r: Tensor) -> Tensor:
    """m numbers per entry after the block (n: weight and slots), `[N, m * in, out]`: decayed carry and all writes.

    last_carry `[N, (K,) m, n]`, last_write `[N, (K,) S, m]`. Products may be in a lower precision than the carry.
    """
    return decay_carry(last_carry, carry) + (scale(last_write, a).mT @ r).to(carry.dtype)


def fold_all(carry: Weights, own: AnyCoefficients, tape: Tape) -> Weights:
    """Name -> carry after the block."""
    return {
        name: fold(own.last_carry, own.last_write, x, tape.inputs[name], tape.errors[name]) for name, x in carry.items()
    }


def decay_carry(last_carry: Tensor, carry: Tensor, out: Tensor | None = None) -> Tensor:
    """Remainder of the carry, `[N, m * in, out]`; last_carry `[N, (K,) m, n]`; out: memory to write it to, or None."""
    m, n = last_carry.shape[-2:]
    rows, width, height = carry.shape[0], carry.shape[1] // n, carry.shape[2]
    split = carry.reshape(rows, n, width, height)
    if last_carry.dim() == 4:  # a number for every key channel
        return (last_carry @ split.transpose(1, 2)).transpose(1, 2).reshape(rows, m * width, height)
    by_part = last_carry[..., None, None]  # a sum over n: no matrix product this narrow is fast
    total = torch.mul(
        by_part[:, :, 0], split[:, None, 0], out=None if out is None else out.view(rows, m, width, height)
    )
    for i in range(1, n):
        total.addcmul_(by_part[:, :, i], split[:, None, i])
    return total.reshape(rows, m * width, height)
