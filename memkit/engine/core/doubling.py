"""The product of a block's updates by doubling: spans of 1, 2, 4, ... tokens are joined, all of one length at once.

A loop over tokens, z_t = A_t z_{t-1} + b_t g_t, would give the same numbers in L steps instead of log2(L).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Spans(NamedTuple):
    """Coefficients of neighboring spans `[..., spans, rows, .]`, one or two rows per token."""

    carry: Tensor
    write: Tensor
    last_carry: Tensor
    last_write: Tensor


def multiply_out(transition: Tensor, write: Tensor, observe: Tensor) -> Spans:
    """Coefficients of a block of L tokens, as one span.

    transition `[..., L, n, n]`, write `[..., L, n]`: A_t and b_t. observe `[..., L, rows, n]`: numbers to follow per
    token, as sums over (weight, slots) after it.
    """
    length, n = write.shape[-2:]
    rest = (1 << (length - 1).bit_length()) - length
    if rest:  # fill up with tokens that change nothing
        eye = torch.eye(n, dtype=write.dtype, device=write.device).expand(*write.shape[:-2], rest, n, n)
        transition = torch.cat([transition, eye], -3)
        write = torch.cat([write, write.new_zeros(*write.shape[:-2], rest, n)], -2)
        observe = torch.cat([observe, observe[..., -1:, :, :].expand(*write.shape[:-2], rest, -1, n)], -3)
    spans = Spans(observe @ transition, observe @ write[..., None], transition, write[..., None, :])
    while spans.last_carry.shape[-3] > 1:
        spans = _join(spans)
    return Spans(*(x.squeeze(-3) for x in spans))


def _join(spans: Spans) -> Spans:
    """Join neighboring spans: the state after the left one is the carry of the right one."""
    left = Spans(*(x[..., 0::2, :, :] for x in spans))
    right = Spans(*(x[..., 1::2, :, :] for x in spans))
    across = right.carry @ left.last_write.mT
    top = torch.cat([left.write, torch.zeros_like(left.write)], -1)
    bottom = torch.cat([across, right.write], -1)
    return Spans(
        torch.cat([left.carry, right.carry @ left.last_carry], -2),
        torch.cat([top, bottom], -2),
        right.last_carry @ left.last_carry,
        torch.cat([left.last_write @ right.last_carry.mT, right.last_write], -2),
    )
