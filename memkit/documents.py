"""Packed documents: a change in a row of `segment_ids` starts a new document.

Resets follow from two laws of every component: a sequence may be cut anywhere, and rows are independent. A call is
cut at every change of a document in any row, and the changing rows are reset there. This is exact for every component
and costs one look at `segment_ids` on the host per call.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Piece(NamedTuple):
    """Tokens start..stop of a call, in one document per row."""

    start: int
    stop: int
    resets: Tensor | None  # [B] bool: rows with a new document at `start`; None: no row
    segment: Tensor  # [B] each row's document after the piece


def pieces(mask: Tensor | None, segment_ids: Tensor, last: Tensor) -> list[Piece]:
    """Cut a call with segment_ids `[B, T]` and the rows' last documents `last` `[B]` (-1: none) into pieces.

    Ids of masked tokens do not count. Raises `ValueError` for ids below 0.
    """
    tokens = segment_ids.shape[1]
    if tokens == 0:
        return []
    negative = segment_ids < 0 if mask is None else (segment_ids < 0) & mask
    if bool(negative.any()):  # -1 would read as "no document yet", and the next document would see this one
        raise ValueError(
            f"segment_ids must be at least 0; got {int(segment_ids[negative][0])}. Mark padding with `mask` instead."
        )
    ids = _carry_forward(mask, segment_ids.long(), last)
    before = torch.cat([last[:, None], ids[:, :-1]], 1)
    changes = (ids != before) & (before >= 0)  # leaving "no document yet" needs no reset
    starts = sorted({0, *changes.any(0).nonzero()[:, 0].tolist()})
    found = []
    for start, stop in zip(starts, [*starts[1:], tokens], strict=True):
        resets = changes[:, start]
        found.append(Piece(start, stop, resets if bool(resets.any()) else None, ids[:, stop - 1]))
    return found


def _carry_forward(mask: Tensor | None, ids: Tensor, last: Tensor) -> Tensor:
    """Give masked tokens the id of the last valid token before them."""
    if mask is None:
        return ids
    place = torch.arange(1, ids.shape[1] + 1, device=ids.device)
    latest = torch.where(mask, place, 0).cummax(1).values  # 0: none yet in this call
    return torch.cat([last[:, None], ids], 1).gather(1, latest)
