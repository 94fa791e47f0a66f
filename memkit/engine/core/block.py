"""What the coefficients of a block mean for its matrices: reading through them, and folding them into the state.

Weight and slots of a matrix lie below each other, `[N, n * in, out]`: one product reads them all. A block's
writes are never formed: write s is a_s^T r_s, from its inputs a `[N, S, in]` and errors r `[N, S, out]`. Where a
matrix has more inputs than outputs its carry may be turned, `[N, n * out, in]`, so that what is scaled token by
token is always narrow. With gates per key channel carries have an axis `K`, `[N, K, ...]`, which is the matrix's
`in`, and nothing is turned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memkit.engine.core import coefficients
from memkit.engine.core.channels import AnyCoefficients, AnyEffect, ChannelEffect
from memkit.engine.core.coefficients import Effect
from memkit.engine.core.memory_state import Weights
from memkit.engine.core.rows import Rows, gate_at
from memkit.engine.core.tape import Tape
from memkit.layout import Block
from memkit.rule import Gates, Linear, Rule
from memkit.state import Tree, map_tensors, merge_trees


def stacked(rows: Rows, *, turn: bool = False) -> Weights:
    """Weight and slots of every matrix as one carry; `turn`: those with more inputs than outputs the other way up."""
    found = {}
    for name, weight in rows.weights.items():
        turned = turn and weight.shape[1] > weight.shape[2]
        found[name] = torch.cat([x.mT if turned else x for x in (weight, *rows.slots[name])], 1)
    return found


def parts(carry: Weights, rows: Rows) -> dict[str, tuple[Tensor, ...]]:
    """Views of weight and slots in the carry."""
    found = {}
    for name, x in carry.items():
        width, height = rows.weights[name].shape[1:]
        turned = x.shape[2] != height
        split = x.split(height if turned else width, 1)
        found[name] = tuple(part.mT for part in split) if turned else split
    return found


def unstacked(carry: Weights, rows: Rows) -> tuple[Weights, dict[str, tuple[Tensor, ...]]]:
    """The weights and the slots in the carry."""
    split = parts(carry, rows)
    return {name: p[0] for name, p in split.items()}, {name: tuple(p[1:]) for name, p in split.items()}


def mixed(carry: Tensor, x: Tensor) -> Tensor:
    """x `[N, T, in]` as it meets the carry, `[N, T, n * in]`; carry: the effect `[N, (K,) T, n]`."""
    by_token = carry.unsqueeze(-1) if carry.dim() == 3 else carry.permute(0, 2, 3, 1)  # [N, T, n, 1 or K]
    return (by_token * x.unsqueeze(2)).reshape(*x.shape[:2], by_token.shape[2] * x.shape[2])


def apart(x: Tensor, n: int) -> Tensor:
    """`[..., n * width]` -> `[..., n, width]`; shapes are spelled out, as under vmap nothing is flattened or not."""
    return x.reshape(*x.shape[:-1], n, x.shape[-1] // n)


def met(effect: AnyEffect, x: Tensor) -> Tensor:
    """x `[N, T, in]` as it meets the carry under an effect, `[N, T, n * in]`."""
    return effect.mixed(x) if isinstance(effect, ChannelEffect) else mixed(effect.carry, x)


def heard(effect: AnyEffect, x: Tensor, a: Tensor) -> Tensor:
    """How much x_t hears of write s, (x a^T) * C, `[N, T, S]`."""
    return effect.scores(x, a) if isinstance(effect, ChannelEffect) else (x @ a.mT) * effect.write


def read(effect: AnyEffect, x: Tensor, carry: Tensor, a: Tensor, r: Tensor) -> Tensor:
    """x_t times the matrix that token t sees: P (x Z) + ((x a^T) * C) r, `[N, T, out]`."""
    turned = isinstance(effect, Effect) and is_turned(carry, r.shape[-1])
    return with_product(recalled(effect, x, carry, turned=turned)[0], heard(effect, x, a), r)


def recalled(effect: AnyEffect, x: Tensor, carry: Tensor, *, turned: bool) -> tuple[Tensor, Tensor | None]:
    """What x_t hears of the carry, P (x Z), `[N, T, out]`; of one that is turned also what it found in each part.

    A carry the other way up than it lies is that of the matrices' transposes.
    """
    if isinstance(effect, ChannelEffect) or not turned:
        return met(effect, x) @ carry, None
    found = x @ carry.mT
    return weighted(effect.carry, found), found


def weighted(carry: Tensor, found: Tensor) -> Tensor:
    """Weight and slots together, from what x_t found in each, `[N, T, n * out]`, by the effect `[N, T, n]`."""
    n = carry.shape[-1]
    split = apart(found, n)
    total = carry[..., :1] * split[..., 0, :]
    for i in range(1, n):
        total = torch.addcmul(total, carry[..., i : i + 1], split[..., i, :])
    return total


def before(effect: AnyEffect) -> AnyEffect:
    """Effects on the weights before each token's write instead of after it."""
    return effect._replace(before=True) if isinstance(effect, ChannelEffect) else coefficients.before(effect)


def for_queries(rule: Rule, effect: AnyEffect) -> AnyEffect:
    """Effects on the weights that queries see: after each token's write, or before it."""
    return effect if rule.read == "after" else before(effect)


def written(last_write: Tensor, a: Tensor) -> Tensor:
    """Inputs `[N, S, in]` as they enter what the block leaves behind, `[N, S, m * in]`; last_write `[N, (K,) S, m]`."""
    return mixed(last_write, a)


def kept(last_carry: Tensor, carry: Tensor, out: Tensor | None = None) -> Tensor:
    """What is left of the carry, `[N, m * in, out]`; last_carry `[N, (K,) m, n]`. out: memory that may be used."""
    m, n = last_carry.shape[-2:]
    rows, width, height = carry.shape[0], carry.shape[1] // n, carry.shape[2]
    split = carry.reshape(rows, n, width, height)
    if last_carry.dim() == 3:
        by_part = last_carry[..., None, None]  # [N, m, n, 1, 1]: a sum over n, as no product this narrow is fast
        into = None if out is None else out.view(rows, m, width, height)
        total = torch.mul(by_part[:, :, 0], split[:, None, 0], out=into)
        for i in range(1, n):
            total.addcmul_(by_part[:, :, i], split[:, None, i])
        return total.reshape(rows, m * width, height)
    by_key = last_carry @ split.transpose(1, 2)  # [N, K, m, out]
    return by_key.transpose(1, 2).reshape(rows, m * width, height)


def fold(
    last_carry: Tensor, last_write: Tensor, carry: Tensor, a: Tensor, r: Tensor, out: Tensor | None = None
) -> Tensor:
    """What m numbers an entry are after the block, `[N, m * in, out]`: (weight, slots), or some sum of them.

    out: memory that may be used, where no gradient is wanted.
    """
    if is_turned(carry, r.shape[-1]):
        a, r = r, a
    return with_product(kept(last_carry, carry, out), written(last_write, a).mT, r)


def with_product(total: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """total + x y; a compiler makes the sum on its way to what comes next, as its sums in place begin with a copy."""
    return total + x.bmm(y).to(total.dtype) if torch.compiler.is_compiling() else plus_product(total, x, y)


def plus_product(total: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """total + x y, in the place of the total, which is no longer needed.

    A product may have a lower precision than the sum that it enters.
    """
    return total.baddbmm_(x, y) if total.dtype == x.dtype else total.add_(x.bmm(y).to(total.dtype))


def turn_back(carry: Tensor, width: int, height: int) -> Tensor:
    """A view of the weight in a carry, `[N, width, height]`, whichever way up it lies."""
    return carry[:, :height].mT if is_turned(carry, height) else carry[:, :width]


def is_turned(carry: Tensor, width: int) -> bool:
    """Whether a carry is `[N, n * out, in]`, for a matrix whose `out` is `width`."""
    return carry.shape[2] != width


def lowered(tree: Tree, products: torch.dtype | None) -> Tree:
    """A tree of tensors in the dtype of products, if that is another one."""
    return tree if products is None else map_tensors(lambda x: x.to(products), tree)


def begin(rule: Rule, block: Block, carry: Weights, anchor: Weights, rows: Rows, gates: Gates) -> Weights:
    """The weights that gradients of this block see: new ones for rows whose mini-batch begins here."""
    if block.begins is False:
        return anchor
    first = gate_at(rule, gates, 0)
    fresh = {
        name: rule.effective(rule.point(weight, tuple(slots), first))
        for name, (weight, *slots) in parts(carry, rows).items()
    }
    return merge_trees(block.begins, anchor, fresh) if isinstance(block.begins, Tensor) else fresh


def reader(effect: AnyEffect, carry: Weights, tape: Tape) -> Linear:
    """What `linear` means when a query is read: x times the weight that the query sees."""
    return lambda name, x: read(effect, x, carry[name], tape.inputs[name], tape.errors[name])


def after(carry: Weights, own: AnyCoefficients, tape: Tape, spare: Weights | None = None) -> Weights:
    """(Weight, slots) after the block, in the spare memory if there is some: new memory costs more than the sums."""
    into = spare or {}
    return {
        name: fold(own.last_carry, own.last_write, x, tape.inputs[name], tape.errors[name], into.get(name))
        for name, x in carry.items()
    }
