"""A task: batches to train on, held-out batches, and metrics, each a mean over targets."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100  # a target without a loss


@dataclass(frozen=True)
class Batch:
    """Token ids `[B, T]` int64 and targets `[B, T]` int64; a target of `IGNORE` has no loss."""

    ids: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> Batch:
        """Move both tensors."""
        return Batch(self.ids.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Metric:
    """A mean over targets.

    per_target maps logits `[N, vocab]` and targets `[N]` to one number per target `[N]`. solved: the value at which
    the task counts as solved, if any; reports give each run's first step there.
    """

    name: str
    unit: str
    direction: Literal["lower", "higher"]  # the better one
    per_target: Callable[[Tensor, Tensor], Tensor]
    solved: float | None = None


@dataclass(frozen=True)
class Yardstick:
    """A value of the first metric that is easy to reach; reports draw it as a line.

    label: a method with this value, such as "guessing". means: the conclusion about a better model, for the first
    sentence of a report.
    """

    label: str
    value: float
    means: str = ""


class Task(ABC):
    """A deterministic source of batches: the same options and generator give the same tokens.

    Attributes: `vocab_size`; `length`, the tokens per row; `metrics`, the headline first; `yardstick`.
    """

    vocab_size: int
    length: int
    metrics: tuple[Metric, ...]
    yardstick: Yardstick

    @abstractmethod
    def batch(self, generator: torch.Generator, size: int) -> Batch:
        """Draw `size` training rows."""

    @abstractmethod
    def held_out(self) -> list[Batch]:
        """Return the rows for evaluation, never trained on: the same on every call."""

    def fingerprint(self) -> str:
        """Return a digest of the held-out rows and a training batch: equal tokens give equal digests."""
        digest = hashlib.sha256()
        for batch in (self.batch(torch.Generator().manual_seed(0), 64), *self.held_out()):
            digest.update(batch.ids.numpy().tobytes())
            digest.update(batch.targets.numpy().tobytes())
        return digest.hexdigest()[:16]


def bits(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the bits `[N]` to encode each target with the model's prediction `[N, vocab]`."""
    return F.cross_entropy(logits, targets, reduction="none") / math.log(2)


def correct(logits: Tensor, targets: Tensor) -> Tensor:
    """Return `[N]`: 1 if the likeliest token is the target, else 0."""
    return (logits.argmax(-1) == targets).to(logits.dtype)
