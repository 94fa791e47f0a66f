"""A small language model in float64, with weights three times larger than at initialization."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from architectures import LanguageModel
from running_mean import RunningMean

VOCAB, DIM = 11, 8


def model(depth: int = 2, **options: Any) -> LanguageModel:
    """`depth` layers of `RunningMean`."""
    torch.manual_seed(0)
    made = LanguageModel(VOCAB, DIM, [RunningMean(dim=DIM) for _ in range(depth)], **options).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(3)
    return made


def text(batch: int, tokens: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, (batch, tokens), generator=torch.Generator().manual_seed(seed))
