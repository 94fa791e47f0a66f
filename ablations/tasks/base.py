"""What a task is: batches to train on, held-out batches, and metrics that average over targets."""

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

IGNORE = -100  # a target that carries no loss


@dataclass(frozen=True)
class Batch:
    """Token ids `[B, T]` int64 and targets `[B, T]` int64; a target of `IGNORE` carries no loss."""

    ids: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> Batch:
        """Move both tensors."""
        return Batch(self.ids.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Metric:
    """A mean over targets.

    per_target maps logits `[N, vocab]` and targets `[N]` to one number a target `[N]`. solved: the value from which
    on the task counts as solved, if there is one; reports say when each run first reached it.
    """

    name: str
    unit: str
    direction: Literal["lower", "higher"]  # which is better
    per_target: Callable[[Tensor, Tensor], Tensor]
    solved: float | None = None


@dataclass(frozen=True)
class Yardstick:
    """A value of the first metric that needs no model worth its name; reports draw it as a line.

    label: what reaches the value, as "guessing". means: what is so of a model that does better, for the sentence that
    a report begins with.
    """

    label: str
    value: float
    means: str = ""


class Task(ABC):
    """A source of batches that is deterministic: the same options and generator give the same tokens.

    Attributes: `vocab_size`; `length`, the tokens of a row; `metrics`, the first of which is the headline.
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
        """The rows that are never trained on: the same ones on every call."""

    def fingerprint(self) -> str:
        """A digest of the task's held-out rows and a training batch: equal tokens, equal digest."""
        digest = hashlib.sha256()
        for batch in (self.batch(torch.Generator().manual_seed(0), 64), *self.held_out()):
            digest.update(batch.ids.numpy().tobytes())
            digest.update(batch.targets.numpy().tobytes())
        return digest.hexdigest()[:16]


def bits(logits: Tensor, targets: Tensor) -> Tensor:
    """Bits to encode each target `[N]` with the model's prediction `[N, vocab]`."""
    return F.cross_entropy(logits, targets, reduction="none") / math.log(2)


def correct(logits: Tensor, targets: Tensor) -> Tensor:
    """1 where the likeliest token is the target, else 0."""
    return (logits.argmax(-1) == targets).to(logits.dtype)
