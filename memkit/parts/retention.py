"""Retentions (forgetting): the weight after a step, from the weight before."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from memkit.registry import register
from memkit.rule import Gate, Gates, Retention, Slots

DECAY = Gate("decay", 0.0, 1.0)
THRESHOLD = Gate("threshold", 0.0, math.inf)
NO_NORM = 1e-16
"""Added to squared norms, so that a column of zeros stays zero."""


def keep_all(weight: Tensor, step: Tensor, slots: Slots, gates: Gates) -> Tensor:
    """M_t = M_{t-1} + S_t   (Titans eq. 9)."""
    return weight + step


def keep_decayed(weight: Tensor, step: Tensor, slots: Slots, gates: Gates) -> Tensor:
    """M_t = (1 - decay) M_{t-1} + S_t   (Titans eq. 13)."""
    return torch.addcmul(step, 1 - gates["decay"], weight)  # one pass over the matrix


def keep_sparse(weight: Tensor, step: Tensor, slots: Slots, gates: Gates) -> Tensor:
    """M_t = SoftThreshold((1 - decay) M_{t-1} + S_t)   (MIRAS eq. 22)."""
    moved = keep_decayed(weight, step, slots, gates)
    return moved.sign() * F.relu(moved.abs() - gates["threshold"])


def keep_length(weight: Tensor, step: Tensor, slots: Slots, gates: Gates) -> Tensor:
    """M_t = (M_{t-1} + S_t) scaled column by column to the length it began with   (LaCT eq. 8)."""
    moved = weight + step
    return moved * ((slots[0] + NO_NORM) / (squared_lengths(moved) + NO_NORM)).sqrt()


def squared_lengths(weight: Tensor) -> Tensor:
    """Of each output's column `[..., in, out]`: `[..., 1, out]`."""
    return torch.atleast_2d(weight).square().sum(-2, keepdim=True)


def begin_length(weight: Tensor) -> Slots:
    """One slot: the squared lengths to keep."""
    return (squared_lengths(weight),)


@register("retention", "none")
def none() -> Retention:
    """Forget nothing."""
    return Retention(name="none", keep=keep_all)


@register("retention", "decay")
def decay(*, per: Literal["head", "key"] = "head") -> Retention:
    """Weight decay: a data-dependent forget gate; gate decay, one number per head or per key channel."""
    return Retention(name="decay", keep=keep_decayed, gates=(replace(DECAY, per=per),))


@register("retention", "elastic_net")
def elastic_net() -> Retention:
    """Weight decay, with small entries cut to 0 (MIRAS eq. 22); gates decay, threshold. Not linear."""
    return Retention(name="elastic_net", keep=keep_sparse, gates=(DECAY, THRESHOLD), linear=False)


@register("retention", "normalised")
def normalised() -> Retention:
    """Each output's column keeps its initial length (LaCT eq. 8). Not linear."""
    return Retention(name="normalised", keep=keep_length, init=begin_length, linear=False)
