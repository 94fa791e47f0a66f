"""Rotary position embedding, exact at any position."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_WHOLE_TURN = 2**64  # int64 arithmetic wraps here, and so does an angle after a whole turn


class Rotary(nn.Module):
    """Rotate queries and keys by their positions (RoFormer, eq. 34; the pairs are channels i and i + K/2).

    Pair i turns by `base ** (-2 i / K)` radians a token, so that q . k depends on positions only through
    their difference.

    Angles are fixed-point fractions of a turn: position times frequency in int64, whose overflow drops
    whole turns and nothing else. A float32 angle is off by 0.1 radian at position 2^21; here differences of
    angles are exact at every position, no float64 is needed on the device, and casting a module to bf16
    leaves the frequencies alone.

    Raises `ValueError` for an odd or empty `head_dim`, or a `base` below 1.
    """

    turns: Tensor  # [K/2] int64, fractions of a turn per token

    def __init__(self, head_dim: int, base: float = 10000.0) -> None:
        super().__init__()
        if head_dim < 2 or head_dim % 2:
            raise ValueError(f"rotary positions turn channels in pairs: head_dim = {head_dim} must be even.")
        if base < 1:
            raise ValueError(f"rotary base = {base} must be at least 1 (10000 is usual).")
        frequencies = [base ** (-2 * i / head_dim) for i in range(head_dim // 2)]
        turns = [round(frequency / (2 * math.pi) * _WHOLE_TURN) for frequency in frequencies]
        self.register_buffer("turns", torch.tensor(turns, dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """Rotate x `[B, H, T, K]` by integer positions `[B, T]` (or `[1, T]`); the dtype of x stays."""
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        fraction = position[:, None, :, None] * self.turns  # wraps into -1/2 .. 1/2 of a turn
        angle = fraction.to(wide) * (2 * math.pi / _WHOLE_TURN)
        cos, sin = angle.cos(), angle.sin()
        first, second = x.to(wide).chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
