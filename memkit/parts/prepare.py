"""Changes of tokens before the memory: feature maps, and several steps per token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from memkit.rule import Tokens


def positive_features(tokens: Tokens) -> Tokens:
    """elu(x) + 1 of queries and keys (Katharopoulos et al., arXiv 2006.16236, eq. 7)."""
    return tokens._replace(q=F.elu(tokens.q) + 1, k=F.elu(tokens.k) + 1)


def one_after_the_other(steps: Sequence[Tensor]) -> Tensor:
    """The n steps of every token, each `[B, T, H, ...]`, as `[B, n T, H, ...]`."""
    return torch.stack(list(steps), 2).flatten(1, 2)
