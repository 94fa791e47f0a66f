"""The coefficients of the dual form, read off the update by feeding it scalars.

A linear update acts on the vector z = (weight, slots) of each matrix entry as z_t = A_t z_{t-1} + b_t g_t,
with the same scalars A_t, b_t for every entry. `probe` asks the update for them with units; `unroll`
multiplies them out over a block. Only products and sums: gates of exactly 0 and 1 are legal, and
nothing is divided by a product of gates, which reaches 1e-29 in 64 tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from memkit.rule import Gates, Rule


class Coefficients(NamedTuple):
    """What a block of L tokens does, for n = 1 + slots numbers per weight entry.

    weight_carry `[..., L, n]`: effect of the carried (weight, slots) on the weight after each token.
    weight_write `[..., L, L]`: effect of write s on the weight after token t; lower triangular.
    last_carry `[..., n, n]`, last_write `[..., L, n]`: the same for (weight, slots) after the last token.
    """

    weight_carry: Tensor
    weight_write: Tensor
    last_carry: Tensor
    last_write: Tensor


def probe(rule: Rule, gates: Gates, valid: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return A `[..., n, n]` and b `[..., n]` of every token; `like` `[...]` gives shape, dtype and device.

    At an invalid token A is the identity and b is 0: it never was.
    """
    one, zero = torch.ones_like(like), torch.zeros_like(like)
    n = 1 + len(rule.init_slots(zero))
    columns = []
    for unit in range(n + 1):  # weight, slots..., gradient
        weight, *slots = (one if unit == i else zero for i in range(n))
        new_weight, new_slots = rule.update(one if unit == n else zero, weight, tuple(slots), gates)
        columns.append(torch.stack([new_weight, *new_slots], -1))
    transition, write = torch.stack(columns[:n], -1), columns[n]
    if valid is not None:
        transition = torch.where(valid[..., None, None], transition, torch.eye(n, dtype=like.dtype, device=like.device))
        write = torch.where(valid[..., None], write, zero[..., None])
    return transition, write


def unroll(transition: Tensor, write: Tensor) -> Coefficients:
    """Multiply A `[..., L, n, n]` and b `[..., L, n]` out by doubling: spans of 1, 2, 4, ... tokens are joined."""
    length, n = write.shape[-2:]
    spans = 1 << (length - 1).bit_length()
    if spans > length:  # tokens that do nothing change nothing
        rest = spans - length
        eye = torch.eye(n, dtype=write.dtype, device=write.device).expand(*write.shape[:-2], rest, n, n)
        transition = torch.cat([transition, eye], -3)
        write = torch.cat([write, write.new_zeros(*write.shape[:-2], rest, n)], -2)
    whole = Coefficients(transition[..., :1, :], write[..., :1, None], transition, write[..., None, :])
    while whole.last_carry.shape[-3] > 1:
        whole = _join(whole)
    carry, steps, last_carry, last_write = (x.squeeze(-3) for x in whole)
    return Coefficients(carry[..., :length, :], steps[..., :length, :length], last_carry, last_write[..., :length, :])


def _join(spans: Coefficients) -> Coefficients:
    """Join neighbouring spans: what the left one leaves behind is what the right one carries."""
    left = Coefficients(*(x[..., 0::2, :, :] for x in spans))
    right = Coefficients(*(x[..., 1::2, :, :] for x in spans))
    across = right.weight_carry @ left.last_write.mT
    top = torch.cat([left.weight_write, torch.zeros_like(left.weight_write)], -1)
    bottom = torch.cat([across, right.weight_write], -1)
    return Coefficients(
        torch.cat([left.weight_carry, right.weight_carry @ left.last_carry], -2),
        torch.cat([top, bottom], -2),
        right.last_carry @ left.last_carry,
        torch.cat([left.last_write @ right.last_carry.mT, right.last_write], -2),
    )


def before(own: Coefficients) -> Coefficients:
    """The same block seen before each token's own write: shift by one token."""
    n = own.weight_carry.shape[-1]
    first = torch.eye(n, dtype=own.weight_carry.dtype, device=own.weight_carry.device)[0]
    first = first.expand(*own.weight_carry.shape[:-2], 1, n)
    return own._replace(
        weight_carry=torch.cat([first, own.weight_carry[..., :-1, :]], -2),
        weight_write=torch.cat([torch.zeros_like(own.weight_write[..., :1, :]), own.weight_write[..., :-1, :]], -2),
    )
