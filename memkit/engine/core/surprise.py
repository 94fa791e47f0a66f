"""Surprise: the norm of each token's gradient, observed or limited."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from memkit.rule import Rule


class Observed(NamedTuple):
    """Loss and surprise (gradient norm before any limit) of tokens, `[N, L]` each."""

    loss: Tensor
    surprise: Tensor

    @classmethod
    def join(cls, parts: Sequence[Observed | None]) -> Observed | None:
        """Parts in order as one; None if there are none."""
        some = [part for part in parts if part is not None]
        return cls(*(torch.cat(x, 1) for x in zip(*some, strict=True))) if some else None


def squared_surprise(inputs: dict[str, Tensor], errors: dict[str, Tensor]) -> Tensor:
    """Squared norm of each token's gradient over all weights, `[N, S]`; inputs, errors `[N, S, .]` by name."""
    terms = [inputs[name].square().sum(-1) * errors[name].square().sum(-1) for name in inputs]
    return torch.stack(terms).sum(0)


def limit_errors(rule: Rule, squared: Tensor, errors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Errors scaled down to the rule's `surprise_limit`, if it has one; squared `[N, S]`: squared gradient norms."""
    if rule.surprise_limit is None:
        return errors
    scale = limit_scale(squared, rule.surprise_limit)[..., None]
    return {name: error * scale for name, error in errors.items()}


def limit_scale(squared_norm: Tensor, limit: float) -> Tensor:
    """min(1, limit / norm), with a derivative that is finite at norm 0."""
    return limit * squared_norm.clamp(min=limit**2).rsqrt()
