"""One row of memories with times of their own, one token after the other: TNT and Nested Learning's bank.

V_{(k+1) C_G} = V_{k C_G} - sum_{t in chunk k} eta_t grad L(f(V_{k C_G}, k_t), v_t)    (TNT 5)
W_t = W_init where t = 0 mod S, else the rule's update                                 (TNT 6)
o_t = f(V_{t - t mod C_G}, q_t) + sum_i f(W^i_t, P^i_t q_t),  P_t = sum k k^T          (TNT 7)
y_t = Agg(M^(f_k)(x_t), ..., M^(f_1)(x_t))                                             (Nested Learning 74)
theta_{i+1} = theta_i - sum_{t = i - C .. i} eta_t grad if i = 0 mod C, else theta_i   (71)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from literal_memory import Memory


class Local(Memory):
    """A memory that begins anew every `shard` tokens, asked in terms of the keys since then, or since the chunk."""

    def __init__(self, mixer: Any, shard: int, span: Literal["shard", "chunk", "none"], mini_batch: int) -> None:
        self.shard, self.span = shard, span
        super().__init__(mixer.memory, mini_batch)

    def restart(self) -> None:
        super().restart()
        self.forget_keys()

    def forget_keys(self) -> None:
        width = self.layer.width
        self.sums = [torch.zeros(width, width, dtype=self.layer.out.weight.dtype) for _ in self.heads]

    def token(self, x: Tensor, write: bool = True) -> Tensor:
        y = super().token(x, write)
        if self.written == self.shard:
            self.restart()
        elif self.span == "chunk" and self.written % self.mini_batch == 0:
            self.forget_keys()
        return y

    def asked(self, head: int, q: Tensor, k: Tensor, write: bool) -> Tensor:
        """P q, with the token's own key in P where it is written."""
        if write:
            self.sums[head] = self.sums[head] + torch.outer(k, k)
        return q if self.span == "none" else self.sums[head] @ q

    def held(self) -> list[Tensor]:
        """The same as of any memory, and P."""
        return [*super().held(), *([] if self.span == "none" else self.sums)]


class Together:
    """Memories side by side, each of which writes the persistent tokens too."""

    def __init__(self, parts: Sequence[Memory]) -> None:
        self.parts = parts

    def begin(self, tokens: Tensor) -> None:
        for part in self.parts:
            part.begin(tokens)

    def held(self) -> list[Tensor]:
        return [x for part in self.parts for x in part.held()]


class TNT(Together):
    """A global memory that is read as it was at the chunk's start, and local ones, added up (5-7)."""

    def __init__(
        self,
        mixer: Any,
        chunk: int,
        shards: Sequence[int],
        span: Literal["shard", "chunk", "none"],
        mini_batches: Sequence[int],
    ) -> None:
        self.whole = Memory(mixer.whole, every=chunk, before=True)
        given = zip(mixer.parts, shards, mini_batches, strict=True)
        self.locals = [Local(part, shard, span, mini_batch) for part, shard, mini_batch in given]
        super().__init__([self.whole, *self.locals])

    def token(self, x: Tensor, write: bool = True) -> Tensor:
        y = self.whole.token(x, write)
        for local in self.locals:
            y = y + local.token(x, write)
        return y


class Bank(Together):
    """Memories that write once in C tokens each, weighed channel by channel (71, 74)."""

    def __init__(self, mixer: Any, levels: Sequence[int]) -> None:
        super().__init__([Memory(layer, every=level) for layer, level in zip(mixer.memories, levels, strict=True)])
        self.weights = mixer.weights

    def token(self, x: Tensor, write: bool = True) -> Tensor:
        y = torch.zeros_like(x)
        for weights, part in zip(self.weights, self.parts, strict=True):
            y = y + weights * part.token(x, write)
        return y
