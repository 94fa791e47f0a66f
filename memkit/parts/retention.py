"""Retentions (forgetting): what is kept of a weight when a step arrives."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import Tensor

from memkit.registry import register
from memkit.rule import Gate, Gates, Retention, Slots

DECAY = Gate("decay", 0.0, 1.0)


def keep_all(weight: Tensor, step: Tensor, slots: Slots, gates: Gates) -> Tensor:
    """M_t = M_{t-1} + S_t   (Titans eq. 9)."""
    return weight + step


def keep_decayed(weight: Tensor, step: Tensor, slots: Slots, gates: Gates) -> Tensor:
    """M_t = (1 - decay) M_{t-1} + S_t   (Titans eq. 13)."""
    return (1 - gates["decay"]) * weight + step


@register("retention", "none")
def none() -> Retention:
    """Forget nothing."""
    return Retention(name="none", keep=keep_all)


@register("retention", "decay")
def decay(*, per: Literal["head", "key"] = "head") -> Retention:
    """Weight decay: a data-dependent forget gate; gate decay, a number a head or a key channel."""
    return Retention(name="decay", keep=keep_decayed, gates=(replace(DECAY, per=per),))
