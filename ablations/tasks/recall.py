"""Multi-query associative recall, with the generator of Zoology (arXiv 2312.04927)."""

from __future__ import annotations

import torch
from torch import Tensor

from ablations.tasks.base import IGNORE, Batch, Metric, Task, Yardstick, bits, correct
from memkit.checks import positive
from memkit.registry import register

POWER = 0.01  # a in p(x) ~ a x^(a - 1), the distribution of the gaps; published value
HELD_OUT_SEED = 0x5EED  # a training step has this seed with probability 2^-32
HELD_OUT_ROWS = 512


@register("task", "recall")
class RecallTask(Task):
    """Recall the value of a key seen once: multi-query associative recall (MQAR).

    A row begins `k v k v ...`, each key once and each value once: keys from the first half of the
    vocabulary without 0, values from the second half. Each key is asked for once more later; the gaps
    before the questions are drawn without replacement from p(x) ~ a x^(a-1), a = 0.01, so most questions
    come soon and some late. The target, the key's value, stands at the question's own position; all other
    positions have no loss and hold 0, or random tokens with `random_non_queries`.

    The defaults are the smallest published setting (64 tokens, 4 pairs, zeros between the questions). Only the
    vocabulary is smaller than Zoology's 8,192: a model must see each key and value often before it learns
    to bind them. With 64 this takes hundreds of steps instead of tens of thousands, and the 31 keys and 32
    values still make more than 10^11 different rows, too many to memorize.

    Raises `ValueError` when `4 * pairs > length`, as in Zoology, or when the vocabulary has too few keys.
    """

    def __init__(
        self, *, length: int = 64, pairs: int = 4, vocab_size: int = 64, random_non_queries: bool = False
    ) -> None:
        positive("pairs", pairs)
        if 4 * pairs > length:
            raise ValueError(
                f"task 'recall': {pairs} pairs do not fit into length {length}: the pairs and their questions "
                f"need 4 * pairs <= length. Use length={4 * pairs} or more, or pairs={length // 4} or fewer."
            )
        if pairs >= vocab_size // 2:
            raise ValueError(
                f"task 'recall': vocab_size {vocab_size} has {max(vocab_size // 2 - 1, 0)} keys, fewer than the "
                f"{pairs} pairs. Use vocab_size={2 * (pairs + 1)} or more."
            )
        self.length, self.pairs, self.vocab_size = length, pairs, vocab_size
        self.random_non_queries = random_non_queries
        self.metrics = (
            Metric("accuracy", "share of questions answered", "higher", correct, solved=0.9),
            Metric("loss", "bits per answer", "lower", bits),
        )
        self.yardstick = Yardstick(
            "guessing among the row's values",
            1 / pairs,
            "a model above that has learned something about the pairs",
        )
        rows = self.batch(torch.Generator().manual_seed(HELD_OUT_SEED), HELD_OUT_ROWS)
        self._held_out = [Batch(*parts) for parts in zip(rows.ids.split(64), rows.targets.split(64), strict=True)]

    def batch(self, generator: torch.Generator, size: int) -> Batch:
        """Draw `size` rows: ids and targets `[size, length]`."""
        half, context = self.vocab_size // 2, 2 * self.pairs
        keys = 1 + _draw(torch.zeros(size, half - 1), self.pairs, generator)
        values = half + _draw(torch.zeros(size, self.vocab_size - half), self.pairs, generator)
        places = (self.length - context) // 2
        law = (POWER - 1) * torch.arange(1, places + 1).log()
        asked = context + 2 * _draw(law.expand(size, -1), self.pairs, generator)
        ids = torch.zeros(size, self.length, dtype=torch.long)
        ids[:, 0:context:2], ids[:, 1:context:2] = keys, values
        ids.scatter_(1, asked, keys)
        if self.random_non_queries:
            noise = torch.randint(self.vocab_size, ids.shape, generator=generator)
            ids = torch.where(ids == 0, noise, ids)
        targets = torch.full_like(ids, IGNORE).scatter_(1, asked, values)
        return Batch(ids, targets)

    def held_out(self) -> list[Batch]:
        """Return 512 rows, which depend on the options alone."""
        return self._held_out


def _draw(log_weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` indices per row without replacement, in the order drawn: `[B, N]` -> `[B, count]`.

    The largest of log-weights plus Gumbel noise have exactly the distribution of successive draws.
    """
    noise = torch.empty(log_weights.shape).exponential_(generator=generator)
    return (log_weights - noise.log()).topk(count, 1).indices
