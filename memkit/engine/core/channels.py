"""Coefficients for gates per key channel. They are never written out: products are cut between write and token.

With a number for every key channel, the effects of a block's writes on its tokens are L x L numbers per channel. But
the score of x_t and write s is their sum over channels, and each effect is a product, to be cut anywhere between s
and t:

    sum_k x_tk C_k[t, s] a_sk = sum_k (x_tk A_t ... A_{m+1})_k (A_m ... A_{s+1} b_s a_sk)_k        s <= m < t

So, with m the middle of the smallest span of 2, 4, 8, ... tokens around both, all pairs with one m are one product of
two matrices. Both factors are products of the update's own numbers: nothing is divided by a product of
gates, and gates of exactly 0 and 1 are legal.

Small matrices lie in front, `[n, n, N, ...]`, n = 1 + slots, and channels last.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from operator import add
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from memkit.engine.core.coefficients import Coefficients, Effect, Steps
from memkit.state import map_tensors, tensors


class Halves(NamedTuple):
    """Spans to be joined, right and left of their middles, `[..., N, spans, half, K]`.

    ahead `[n, n, ...]`: from the middle to after each token on the right. behind `[n, 1, ...]`: from each write on
    the left to the middle.
    """

    ahead: Tensor
    behind: Tensor


class Spans(NamedTuple):
    """A block of L tokens: every joint, from spans of one token upwards, and the whole.

    own `[n, 1, N, L, K]`: each write's effect just after it. carry `[n, n, N, L, K]`: from the block's beginning to
    after each token. left `[n, 1, N, L, K]`: from each write to the block's end. tokens: how many of the L there are.
    """

    own: Tensor
    joints: tuple[Halves, ...]
    carry: Tensor
    left: Tensor
    tokens: int


class ChannelEffect(NamedTuple):
    """Dependence of a number on the block's past, per token and key channel; methods as those of `Effect`.

    observe `[1, n, N, L, K]`: the number as a sum over (weight, slots); None for the weight itself. before: over those
    before the token's write, not after it.
    """

    spans: Spans
    observe: Tensor | None
    before: bool = False

    def scale_input(self, x: Tensor) -> Tensor:
        """x `[N, L, K]` times P, to be multiplied with a carry: `[N, L, n * K]`."""
        seen, carry = self._observed(x), self.spans.carry[..., : self.spans.tokens, :]
        if self.before:
            met = torch.cat([seen[..., :1, :], _times(seen[..., 1:, :], carry[..., :-1, :])], -2)
        else:
            met = _times(seen, carry)
        return torch.cat(met[0].unbind(0), -1)

    def scores(self, x: Tensor, a: Tensor) -> Tensor:
        """Weight of write s in the answer to x_t, `[N, L, L]`; x, a `[N, L, K]`."""
        spans, seen = self.spans, self._observed(x)
        if self.before:
            seen = seen[..., 1:, :]
        seen, a = (_padded(y, spans.own.shape[-2] - y.shape[-2]) for y in (seen, a))
        found = (_times(seen, spans.own)[0, 0] * a).sum(-1)[..., None, None]
        for ahead, behind in spans.joints:
            half = ahead.shape[-2]
            right = seen.unflatten(-2, (-1, 2, half))[..., 1, :, :]
            left = a.unflatten(-2, (-1, 2, half))[..., 0, :, :]
            found = _joined(found, _inner(_times(right, ahead)[0], (behind * left)[:, 0]))
        found = found[:, 0, : spans.tokens - self.before, : spans.tokens]
        return F.pad(found, (0, 0, 1, 0)) if self.before else found

    def before_writes(self) -> ChannelEffect:
        """Effects on the number before each token's write."""
        return self._replace(before=True)

    def _observed(self, x: Tensor) -> Tensor:
        """x times `observe`, `[1, n, N, L, K]`."""
        if self.observe is not None:
            return x * self.observe
        slots = len(self.spans.own) - 1
        return torch.stack([x, *[torch.zeros_like(x)] * slots])[None] if slots else x[None, None]


class ChannelCoefficients(NamedTuple):
    """Fields as those of `Coefficients`; last_carry `[N, K, n, n]`, last_write `[N, K, L, n]`."""

    weight: ChannelEffect
    point: ChannelEffect | None
    last_carry: Tensor
    last_write: Tensor

    def apart(self, count: int) -> Iterator[ChannelCoefficients]:
        """Coefficients of each of a row's `count` blocks."""

        def unbound(x: Tensor, axis: int) -> tuple[Tensor, ...]:  # at once, as slices have costly backward passes
            return x.unflatten(axis, (-1, count)).unbind(axis + 1)

        effects = [unbound(x, 2) for x in tensors((self.weight, self.point))]
        last_carry, last_write = unbound(self.last_carry, 0), unbound(self.last_write, 0)
        for j in range(count):
            own = iter([x[j] for x in effects])
            weight, point = map_tensors(lambda x, own=own: next(own), (self.weight, self.point))
            yield ChannelCoefficients(weight, point, last_carry[j], last_write[j])


AnyEffect = Effect | ChannelEffect
AnyCoefficients = Coefficients | ChannelCoefficients


def unroll(steps: Steps, *, point: bool = False) -> ChannelCoefficients:
    """Multiply blocks out: steps `[N, (blocks,) L, K, .]` -> coefficients whose `N` counts blocks too."""
    transition, write, ahead = (_channels_last(x, n) for x, n in zip(steps, (2, 1, 1), strict=True))
    if transition is None or write is None:
        raise RuntimeError("steps without a transition or a write.")
    spans = _spans(transition, write[:, None])
    weight = ChannelEffect(spans, None)
    seen = ChannelEffect(spans, None if ahead is None else ahead[None], before=True) if point else None
    last_carry = spans.carry[..., -1, :].movedim((0, 1), (-2, -1))
    last_write = spans.left[:, 0, :, : spans.tokens].movedim((0, -1), (-1, 1))
    return ChannelCoefficients(weight, seen, last_carry, last_write)


def _channels_last(x: Tensor | None, small: int) -> Tensor | None:
    """`[N, (blocks,) L, K, small axes]` -> `[small axes, N, L, K]`."""
    if x is None:
        return None
    return x.movedim(tuple(range(-small, 0)), tuple(range(small))).flatten(small, -3)


def _spans(transition: Tensor, write: Tensor) -> Spans:
    """Join neighboring spans until there is one."""
    length = write.shape[-2]
    rest = (1 << (length - 1).bit_length()) - length
    if rest:  # fill up with tokens that change nothing
        eye = torch.eye(len(write), dtype=write.dtype, device=write.device)
        eye = eye.view(*eye.shape, 1, 1, 1).expand(*transition.shape[:-2], rest, transition.shape[-1])
        transition, write = torch.cat([transition, eye], -2), _padded(write, rest)
    ahead, behind, joints = transition.unsqueeze(-2), write.unsqueeze(-2), []
    while ahead.shape[-3] > 1:
        first, second = ahead[..., 0::2, :, :], ahead[..., 1::2, :, :]
        older, newer = behind[..., 0::2, :, :], behind[..., 1::2, :, :]
        joints.append(Halves(second, older))
        ahead = torch.cat([first, _times(second, first[..., -1:, :])], -2)
        behind = torch.cat([_times(second[..., -1:, :], older), newer], -2)
    return Spans(write, tuple(joints), ahead.squeeze(-3), behind.squeeze(-3), length)


def _padded(x: Tensor, rest: int) -> Tensor:
    """x `[..., L, K]` and `rest` tokens of zeros."""
    return F.pad(x, (0, 0, 0, rest)) if rest else x


def _times(a: Tensor, b: Tensor) -> Tensor:
    """Small matrices `[m, n, ...]` times `[n, p, ...]`, elementwise in the other axes."""
    return reduce(add, (a[:, j, None] * b[None, j] for j in range(len(b))))


def _inner(rows: Tensor, columns: Tensor) -> Tensor:
    """Sums over n and channels of rows `[n, ..., t, K]` and columns `[n, ..., s, K]`: `[..., t, s]`."""
    return reduce(add, (x @ y.mT for x, y in zip(rows, columns, strict=True)))


def _joined(found: Tensor, across: Tensor) -> Tensor:
    """Scores of joined spans from those of each and those across."""
    first, second = found[:, 0::2], found[:, 1::2]
    return torch.cat([F.pad(first, (0, across.shape[-1])), torch.cat([across, second], -1)], -2)
