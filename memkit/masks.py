"""Masks and documents, for every component: one check with one set of words, one way to blank."""

from __future__ import annotations

import torch
from torch import Tensor


def check_masks(mask: Tensor | None, segment_ids: Tensor | None, batch: int, tokens: int) -> None:
    """Raise `ValueError` unless the mask is boolean and segment_ids are integers, both `[B, T]`."""
    for name, x in (("mask", mask), ("segment_ids", segment_ids)):
        if x is not None and not isinstance(x, Tensor):
            raise ValueError(f"{name} must be a tensor; got {type(x).__name__}.")
        if x is not None and x.shape != (batch, tokens):
            raise ValueError(f"{name} must be [B, T] = {(batch, tokens)}; got {tuple(x.shape)}.")
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean (True = a real token); got {mask.dtype}. Use mask.bool().")
    if segment_ids is not None and (
        segment_ids.is_floating_point() or segment_ids.is_complex() or segment_ids.dtype == torch.bool
    ):
        raise ValueError(f"segment_ids must be integers; got {segment_ids.dtype}.")


def blank(x: Tensor, mask: Tensor | None) -> Tensor:
    """Zero x `[B, T, ...]` at masked tokens; a NaN there leaves no trace, in the gradient either."""
    if mask is None:
        return x
    return torch.where(mask.view(*mask.shape, *[1] * (x.dim() - 2)), x, torch.zeros((), dtype=x.dtype, device=x.device))
