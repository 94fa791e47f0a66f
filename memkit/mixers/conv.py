"""The short causal convolution in front of queries, keys and values."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memkit.alignment import align, pick
from memkit.autograd import without_autocast

FAST = (torch.float32, torch.bfloat16)
"""Dtypes with a fast convolution on a CPU; others are faster as sums of taps."""


class ShortConv(nn.Module):
    """Depthwise causal convolution over the last `width` tokens (Titans 4.4; width 4 as in Mamba-2 and MIRAS).

    Width 0 leaves the convolution out. It starts near the identity, which learns sooner than torch's default.
    """

    def __init__(self, channels: int, width: int = 4) -> None:
        super().__init__()
        if width < 0:
            raise ValueError(f"a convolution's width counts tokens, so it must be >= 0 (0: none); got {width}.")
        self.channels, self.width = channels, width
        if width:
            taps = 0.1 * torch.randn(width, channels)
            taps[-1] += 1.0
            self.taps = nn.Parameter(taps)

    @torch.no_grad()
    def look_back(self, channels: slice, heads: int) -> None:
        """Start some channels 0 to 1 tokens back, spread evenly over each head's channels."""
        if self.width > 1:
            taps = self.taps[:, channels]
            back = torch.linspace(0, 1, taps.shape[1] // heads).repeat(heads)
            taps[-1] -= back
            taps[-2] += back

    def init_tail(self, batch: int, like: Tensor) -> Tensor:
        """Return the inputs before the first token: zeros `[B, width - 1, C]`, with dtype and device of `like`."""
        return like.new_zeros(batch, max(self.width - 1, 0), self.channels)

    def forward(self, x: Tensor, tail: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map x `[B, T, C]` and the last width - 1 valid inputs `tail` -> (y, the tail after x).

        Raises `ValueError` for the tail of another convolution.
        """
        wanted = (max(self.width - 1, 0), self.channels)
        if tail.shape[1:] != wanted:
            raise ValueError(
                f"the state is of a layer of another size: its convolution keeps {tuple(tail.shape[1:])} numbers per "
                f"row (tokens, channels), and this layer's {wanted}. "
                "Use a state that this layer returned, or its init_state(batch)."
            )
        if not self.width:
            return x, tail
        if mask is None:
            y, line = self._convolve(x, tail)
            tail = line[:, line.shape[1] - tail.shape[1] :]
            return y, tail.clone(memory_format=torch.contiguous_format)  # a view would keep all of a long call alive
        # Valid tokens close ranks first: masked ones leave no trace.
        count = mask.sum(1)
        ranks = align(mask, torch.zeros_like(count), x.shape[1])
        y, line = self._convolve(ranks.to_slots(x), tail)
        latest = count[:, None] + torch.arange(tail.shape[1], device=x.device)
        return ranks.to_tokens(y), pick(line, latest)

    def _convolve(self, x: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        line = torch.cat([tail.to(x.dtype), x], 1)
        return (by_library if has_library(line, self.taps) else by_sums)(line, self.taps), line


def by_sums(line: Tensor, taps: Tensor) -> Tensor:
    """Return sum_i taps_i line_{t + i} `[B, T, C]`, of line `[B, T + width - 1, C]` and taps `[width, C]`."""
    length = line.shape[1] - len(taps) + 1
    first, *rest = taps
    y = first * line[:, :length]
    for i, tap in enumerate(rest, 1):
        y = torch.addcmul(y, tap, line[:, i : i + length])
    return y


def by_library(line: Tensor, taps: Tensor) -> Tensor:
    """Return the same by torch's convolution of images with one row, in the layout of channels last."""
    dtype = torch.promote_types(line.dtype, taps.dtype)
    rows, kernel = line.to(dtype).mT.unsqueeze(2), taps.to(dtype).mT[:, None, None]
    with without_autocast(line):
        return F.conv2d(rows, kernel, groups=taps.shape[1]).squeeze(2).mT


def has_library(line: Tensor, taps: Tensor) -> bool:
    """Return whether torch has a fast convolution here: on a CPU, in some dtypes; compiled code is fused anyway.

    A single token is faster as a sum.
    """
    if torch.compiler.is_compiling() or line.device.type != "cpu" or line.dtype not in FAST:
        return False
    return line.shape[0] > 0 and line.shape[1] > len(taps) and torch.backends.mkldnn.is_available()
