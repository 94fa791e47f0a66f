"""Coefficients of a block, found by feeding the update ones and zeros.

A linear update acts on the vector z = (weight, slots) of each matrix entry as z_t = A_t z_{t-1} + b_t g_t, with the
same numbers A_t, b_t for every entry, or for every entry of a key channel. `probe` asks the update for them; `unroll`
multiplies them out over a block. There are only products and sums: gates of exactly 0 and 1 are legal, and nothing is
divided by a product of gates, which reaches 1e-29 in 64 tokens.

Shapes: `[..., L]` is a block of L tokens of a row, n = 1 + slots. Gates per key channel add an axis K after the tokens;
`channels` multiplies those out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from memkit.engine.core.doubling import multiply_out
from memkit.rule import Rule, Slots, Tokens, at_weights


class Steps(NamedTuple):
    """One update per token: A `[N, L, (K,) n, n]`, b `[N, L, (K,) n]`, and the gradient's point as a sum over z_{t-1}.

    point `[N, L, (K,) n]`, or None for the weight itself.
    """

    transition: Tensor
    write: Tensor
    point: Tensor | None

    @property
    def per_key(self) -> bool:
        """True if every key channel has numbers of its own."""
        return self.write.dim() == 4

    def cut(self, lengths: list[int]) -> list[Steps]:
        """Parts of these lengths, in order."""
        point = [None] * len(lengths) if self.point is None else self.point.split(lengths, 1)
        parts = zip(self.transition.split(lengths, 1), self.write.split(lengths, 1), point, strict=True)
        return [Steps(*part) for part in parts]

    def blocks(self, count: int, length: int) -> Steps:
        """Blocks as an axis before their tokens: `[N, count, length, .]`."""
        shape = (count, length)
        point = None if self.point is None else self.point.unflatten(1, shape)
        return Steps(self.transition.unflatten(1, shape), self.write.unflatten(1, shape), point)


class Effect(NamedTuple):
    """Dependence of a number on the block's past, per token.

    carry `[..., L, n]`: on (weight, slots) at the block's start, P; write `[..., L, L]`: on each write, C.
    """

    carry: Tensor
    write: Tensor

    def scale_input(self, x: Tensor) -> Tensor:
        """x `[N, L, in]` times P, to be multiplied with a carry: `[N, L, n * in]`."""
        return scale(self.carry, x)

    def scores(self, x: Tensor, a: Tensor) -> Tensor:
        """Weight of write s in the answer to x_t, (x a^T) * C, `[N, L, S]`."""
        return (x @ a.mT) * self.write

    def before_writes(self, first: Tensor | None = None) -> Effect:
        """The effects one token earlier, before each write; first `[..., 1, n]`: the first row, None for the weight."""
        if first is None:
            first = _first_unit(self.carry[..., :1, :])
        none = torch.zeros_like(self.write[..., :1, :])
        return Effect(torch.cat([first, self.carry[..., :-1, :]], -2), torch.cat([none, self.write[..., :-1, :]], -2))


class Coefficients(NamedTuple):
    """Coefficients of a block of L tokens, for n = 1 + slots numbers per weight entry.

    weight: effects on the weight after each token's write. point: on the point of each token's gradient, if asked for.
    last_carry `[..., n, n]`, last_write `[..., L, n]`: on (weight, slots) after the last token.
    """

    weight: Effect
    point: Effect | None
    last_carry: Tensor
    last_write: Tensor


def scale(numbers: Tensor, x: Tensor) -> Tensor:
    """x `[N, T, in]`, once per number: `[N, T, m * in]`; numbers `[N, (K,) T, m]`."""
    each = numbers.unsqueeze(-1) if numbers.dim() == 3 else numbers.permute(0, 2, 3, 1)  # [N, T, m, 1 or K]
    return (each * x.unsqueeze(2)).reshape(*x.shape[:2], each.shape[2] * x.shape[2])


def probe(rule: Rule, tokens: Tokens, valid: Tensor | None) -> Steps:
    """Feed units to update and gradient point, at gates `[N, L, ...]`; `valid` `[N, L]` False: A = identity, b = 0."""
    per_key = any(gate.per == "key" for gate in rule.weight_gates)
    like = tokens.k if per_key else tokens.k[..., 0]
    gates = {
        gate.name: tokens.gates[gate.name].unsqueeze(-1) if per_key and gate.per != "key" else tokens.gates[gate.name]
        for gate in rule.weight_gates
    }
    one, zero = torch.ones_like(like), torch.zeros_like(like)
    n = 1 + rule.slots
    columns, seen = [], []
    for unit in range(n + 1):  # weight, slots..., gradient
        weight, *rest = (one if unit == i else zero for i in range(n))
        slots: Slots = tuple(rest)
        new_weight, new_slots = rule.update(one if unit == n else zero, weight, slots, gates)
        columns.append(torch.stack([new_weight, *new_slots], -1))
        if unit < n and rule.point is not at_weights:
            seen.append(rule.point(weight, slots, gates).expand_as(like))
    transition, write = torch.stack(columns[:n], -1), columns[n]
    if valid is not None:
        exists = valid.view(*valid.shape, *[1] * (like.dim() - 2))
        eye = torch.eye(n, dtype=like.dtype, device=like.device)
        transition = torch.where(exists[..., None, None], transition, eye)
        write = torch.where(exists[..., None], write, zero[..., None])
    return Steps(transition, write, torch.stack(seen, -1) if seen else None)


def unroll(steps: Steps, *, point: bool = False) -> Coefficients:
    """Multiply a block out, steps `[..., L, .]`.

    Every token observes one or two numbers: the weight after it and, if `point` asks for it and it is not the weight,
    the point of the next token's gradient.
    """
    length, n = steps.write.shape[-2:]
    ahead = steps.point if point else None
    rows = [_first_unit(steps.write)]
    if ahead is not None:
        rows.append(torch.cat([ahead[..., 1:, :], torch.zeros_like(ahead[..., :1, :])], -2))
    observe = torch.stack(rows, -2)
    whole = multiply_out(steps.transition, steps.write, observe)
    m = observe.shape[-2]
    carry = whole.carry.unflatten(-2, (-1, m))[..., :length, :, :].unbind(-2)
    write = whole.write[..., :length].unflatten(-2, (-1, m))[..., :length, :, :].unbind(-2)
    weight, next_point = Effect(carry[0], write[0]), Effect(carry[-1], write[-1])  # of one row: the weight is the point
    seen = None
    if point:
        first = _first_unit(steps.write[..., :1, :]) if ahead is None else ahead[..., :1, :]
        seen = next_point.before_writes(first)
    return Coefficients(weight, seen, whole.last_carry, whole.last_write[..., :length, :])


def _first_unit(like: Tensor) -> Tensor:
    """The row (1, 0, ...) that picks the weight out of (weight, slots), in the shape of `like` `[..., n]`."""
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)[0].expand_as(like)
