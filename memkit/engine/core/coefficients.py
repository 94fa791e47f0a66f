"""The coefficients of the fast forms, read off the update by feeding it scalars.

A linear update acts on the vector z = (weight, slots) of each matrix entry as z_t = A_t z_{t-1} + b_t g_t,
with the same scalars A_t, b_t for every entry, or for every entry of a key channel's row. `probe` asks the
update for them with units; `unroll` multiplies them out over a block. Only products and sums: gates of
exactly 0 and 1 are legal, and nothing is divided by a product of gates, which reaches 1e-29 in 64 tokens.

Shapes: `[..., L]` is a block of L tokens of a row. Steps with gates per key channel have an axis K after that of the
tokens; `channels` multiplies those out.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from memkit.rule import Rule, Slots, Tokens, at_weights


class Steps(NamedTuple):
    """What each token does: A `[N, L, (K,) n, n]`, b `[N, L, (K,) n]`, and the gradient's point as a sum over z_{t-1}.

    point `[N, L, (K,) n]`, or None where it is the weight itself.
    """

    transition: Tensor
    write: Tensor
    point: Tensor | None

    @property
    def per_key(self) -> bool:
        """Whether every key channel has numbers of its own."""
        return self.write.dim() == 4

    def cut(self, lengths: list[int]) -> list[Steps]:
        """Parts of these lengths, one after the other."""
        point = [None] * len(lengths) if self.point is None else self.point.split(lengths, 1)
        pieces = zip(self.transition.split(lengths, 1), self.write.split(lengths, 1), point, strict=True)
        return [Steps(*piece) for piece in pieces]

    def blocks(self, count: int, length: int) -> Steps:
        """Blocks as an axis before their tokens: `[N, count, length, .]`."""
        shape = (count, length)
        point = None if self.point is None else self.point.unflatten(1, shape)
        return Steps(self.transition.unflatten(1, shape), self.write.unflatten(1, shape), point)


class Effect(NamedTuple):
    """What some numbers owe to what came before them, one number a token.

    carry `[..., L, n]`: to the (weight, slots) that the block began with; write `[..., L, L]`: to each write.
    """

    carry: Tensor
    write: Tensor


class Coefficients(NamedTuple):
    """What a block of L tokens does, for n = 1 + slots numbers per weight entry.

    weight: effects on the weight after each token's write. point: on what each token's gradient sees, if asked for.
    last_carry `[..., n, n]`, last_write `[..., L, n]`: on (weight, slots) after the last token.
    """

    weight: Effect
    point: Effect | None
    last_carry: Tensor
    last_write: Tensor


def probe(rule: Rule, tokens: Tokens, valid: Tensor | None) -> Steps:
    """Feed the update and the gradient point units, at the gates of tokens `[N, L, ...]`.

    At an invalid token A is the identity and b is 0: it never was.
    """
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
        there = valid.view(*valid.shape, *[1] * (like.dim() - 2))
        eye = torch.eye(n, dtype=like.dtype, device=like.device)
        transition = torch.where(there[..., None, None], transition, eye)
        write = torch.where(there[..., None], write, zero[..., None])
    return Steps(transition, write, torch.stack(seen, -1) if seen else None)


def unroll(steps: Steps, *, point: bool = False) -> Coefficients:
    """Multiply a block out by doubling: spans of 1, 2, 4, ... tokens are joined.

    Every token has one or two rows: the weight after it, and, if `point` asks for it and it is not the weight,
    the point of the next token's gradient.
    """
    length, n = steps.write.shape[-2:]
    ahead = steps.point if point else None
    rows = [_first_unit(steps.write)]
    if ahead is not None:
        rows.append(torch.cat([ahead[..., 1:, :], torch.zeros_like(ahead[..., :1, :])], -2))
    observe = torch.stack(rows, -2)
    whole = _joined(steps.transition, steps.write, observe)
    m = observe.shape[-2]
    carry = whole.carry.unflatten(-2, (-1, m))[..., :length, :, :].unbind(-2)
    write = whole.write[..., :length].unflatten(-2, (-1, m))[..., :length, :, :].unbind(-2)
    weight, next_point = Effect(carry[0], write[0]), Effect(carry[-1], write[-1])
    seen = None
    if point:
        first = _first_unit(steps.write[..., :1, :]) if ahead is None else ahead[..., :1, :]
        seen = before(next_point, first)
    return Coefficients(weight, seen, whole.last_carry, whole.last_write[..., :length, :])


def before(effect: Effect, first: Tensor | None = None) -> Effect:
    """Effects on the number before each token instead of after it; `first` `[..., 1, n]` is the carried one itself."""
    if first is None:
        first = _first_unit(effect.carry[..., :1, :])
    return Effect(
        torch.cat([first, effect.carry[..., :-1, :]], -2),
        torch.cat([torch.zeros_like(effect.write[..., :1, :]), effect.write[..., :-1, :]], -2),
    )


class _Spans(NamedTuple):
    """Coefficients of neighbouring spans `[..., spans, rows, .]`, several rows a token."""

    carry: Tensor
    write: Tensor
    last_carry: Tensor
    last_write: Tensor


def _joined(transition: Tensor, write: Tensor, observe: Tensor) -> _Spans:
    length, n = write.shape[-2:]
    rest = (1 << (length - 1).bit_length()) - length
    if rest:  # tokens that do nothing change nothing
        eye = torch.eye(n, dtype=write.dtype, device=write.device).expand(*write.shape[:-2], rest, n, n)
        transition = torch.cat([transition, eye], -3)
        write = torch.cat([write, write.new_zeros(*write.shape[:-2], rest, n)], -2)
        observe = torch.cat([observe, observe[..., -1:, :, :].expand(*write.shape[:-2], rest, -1, n)], -3)
    spans = _Spans(observe @ transition, observe @ write[..., None], transition, write[..., None, :])
    while spans.last_carry.shape[-3] > 1:
        spans = _join(spans)
    return _Spans(*(x.squeeze(-3) for x in spans))


def _join(spans: _Spans) -> _Spans:
    """Join neighbouring spans: what the left one leaves behind is what the right one carries."""
    left = _Spans(*(x[..., 0::2, :, :] for x in spans))
    right = _Spans(*(x[..., 1::2, :, :] for x in spans))
    across = right.carry @ left.last_write.mT
    top = torch.cat([left.write, torch.zeros_like(left.write)], -1)
    bottom = torch.cat([across, right.write], -1)
    return _Spans(
        torch.cat([left.carry, right.carry @ left.last_carry], -2),
        torch.cat([top, bottom], -2),
        right.last_carry @ left.last_carry,
        torch.cat([left.last_write @ right.last_carry.mT, right.last_write], -2),
    )


def _first_unit(like: Tensor) -> Tensor:
    """The row that reads the weight off (weight, slots), in the shape of `like` `[..., n]`."""
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)[0].expand_as(like)


def of_blocks(steps: Steps, lengths: list[int], *, point: bool = False) -> Iterator[Coefficients]:
    """Coefficients of every block; neighbouring blocks of one length are computed at once, as they see no weights."""
    for _, run in runs(steps, lengths):
        yield from _unbound(unroll(run, point=point))


def runs(steps: Steps, lengths: list[int]) -> Iterator[tuple[int, Steps]]:
    """Neighbouring blocks of one length, as many as there are, with an axis of their own."""
    runs = [(len(list(group)), length) for length, group in groupby(lengths)]
    for run, some in zip(runs, steps.cut([count * length for count, length in runs]), strict=True):
        yield run[0], some.blocks(*run)


def _unbound(run: Coefficients) -> Iterator[Coefficients]:
    """The blocks `[..., blocks, ., .]` one by one."""
    effects = [run.weight] if run.point is None else [run.weight, run.point]
    flat = [*(x for effect in effects for x in effect), run.last_carry, run.last_write]
    for own in zip(*(x.unbind(-3) for x in flat), strict=True):
        point = None if run.point is None else Effect(own[2], own[3])
        yield Coefficients(Effect(own[0], own[1]), point, own[-2], own[-1])
