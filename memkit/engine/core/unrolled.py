"""Coefficients of all blocks of a call: they see no weights, so neighbors of one length are unrolled at once."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from memkit.engine.core import channels, coefficients
from memkit.engine.core.channels import AnyCoefficients
from memkit.engine.core.coefficients import Coefficients, Effect, Steps


def unroll_blocks(steps: Steps, lengths: list[int]) -> Iterator[AnyCoefficients]:
    """Coefficients of every block, for gates of any kind."""
    if not steps.per_key:
        yield from unroll_head_blocks(steps, lengths)
        return
    for count, some in equal_blocks(steps, lengths):
        yield from channels.unroll(some).apart(count)


def unroll_head_blocks(steps: Steps, lengths: list[int], *, point: bool = False) -> Iterator[Coefficients]:
    """Coefficients of every block, for gates per head; `point` asks for effects on the gradient's point too."""
    for _, some in equal_blocks(steps, lengths):
        yield from _one_by_one(coefficients.unroll(some, point=point))


def equal_blocks(steps: Steps, lengths: list[int]) -> Iterator[tuple[int, Steps]]:
    """Neighboring blocks of one length: how many, and their steps `[N, count, length, ...]`."""
    groups = [(len(list(group)), length) for length, group in groupby(lengths)]
    for (count, length), some in zip(groups, steps.cut([n * length for n, length in groups]), strict=True):
        yield count, some.blocks(count, length)


def _one_by_one(own: Coefficients) -> Iterator[Coefficients]:
    """Coefficients of each block from those `[..., blocks, ., .]` of all."""
    effects = [own.weight] if own.point is None else [own.weight, own.point]
    flat = [*(x for effect in effects for x in effect), own.last_carry, own.last_write]
    for one in zip(*(x.unbind(-3) for x in flat), strict=True):
        point = None if own.point is None else Effect(one[2], one[3])
        yield Coefficients(Effect(one[0], one[1]), point, one[-2], one[-1])
