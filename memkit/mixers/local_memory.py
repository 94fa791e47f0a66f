"""The local memory of TNT (arXiv 2511.07343): reset at every shard, so that shards train in parallel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from memkit.checks import divides, positive
from memkit.engine import MemoryState, Run, retrieve, state_from
from memkit.mixers.base import Mixer, MixerState
from memkit.mixers.neural_memory import NeuralMemory
from memkit.mixers.shards import in_shards
from memkit.parts.memory import linear
from memkit.parts.objective import dot
from memkit.parts.optimizer import gradient_descent
from memkit.parts.retention import none
from memkit.registry import nearest, register, takes_options_of
from memkit.rule import Rule, Tokens

SPAN = Rule(name="span", memory=linear(), objective=dot(), optimizer=gradient_descent(), retention=none(), mini_batch=1)
"""P_t = P_{t-1} + k k^T, read as P_t q_t: the q-k projection is linear attention of keys to themselves."""

Span = Literal["shard", "chunk", "none"]
SPANS = ("shard", "chunk", "none")


@dataclass(frozen=True, kw_only=True)
class LocalMemoryState(MixerState):
    """State of a local memory.

    tail `[B, conv - 1, C]`: the convolution's last inputs; memory: the memory in the running shard; span: the sum of
    k k^T, None without a projection. offset `[B]`: valid tokens in the running shard; phase: the same as an integer if
    all rows are known to agree, else None.
    """

    tail: Tensor
    memory: MemoryState
    span: MemoryState | None
    offset: Tensor
    phase: int | None


@register("mixer", "local_memory")
@takes_options_of(NeuralMemory)
class LocalMemory(Mixer):
    """A neural memory reset to its learned initial weights every `shard` tokens (TNT eq. 6, 7).

        W_t = W_init if t = 0 mod S, else the rule's update               (6)
        y_t = f(W_t, P_t q_t),  P_t = sum_{s <= t} k_s k_s^T / ||k_s||^2  (7)

    which projects queries on the keys (l2-normalized, so ||k_s|| = 1). Symbols: S = `shard`; C, the local chunk, is the
    rule's `mini_batch` (or `update_every`).

    span: the keys in the sum P_t. "shard": those since the reset, so that every write can be recalled; "chunk", to the
    letter of (7): those since the last multiple of C; "none": no P_t.
    Other options as for `neural_memory`. Raises `ValueError` for a shard below 1, an unknown span, "chunk" with a C
    that does not divide the shard, and a span with a rule of several keys per token.
    """

    state_type = LocalMemoryState

    def __init__(self, *, dim: int, heads: int = 4, shard: int = 64, span: Span = "shard", **memory: Any) -> None:
        positive("shard", shard)
        super().__init__(dim)
        self.memory = NeuralMemory(dim=dim, heads=heads, **memory)
        _check_span(span, shard, self.memory.rule)
        self.shard, self.span = shard, span
        self.projected = self.memory.rule.period if span == "chunk" else shard

    def init_state(self, batch: int) -> LocalMemoryState:
        """Return the learned initial weights at the start of a shard."""
        start, inner = self.memory.init_state(batch), self.memory
        some = next(iter(start.memory.weights.values()))
        zeros = {"w1": some.new_zeros(inner.heads, inner.width, inner.width)}
        return LocalMemoryState(
            segment=start.segment,
            tail=start.tail,
            memory=start.memory,
            span=None if self.span == "none" else state_from(SPAN, zeros, {}, batch, inner.width, inner.width),
            offset=torch.zeros_like(start.segment),
            phase=0,
        )

    def mix(
        self, x: Tensor, state: LocalMemoryState, mask: Tensor | None, write: bool
    ) -> tuple[Tensor, LocalMemoryState]:
        """Map one piece of a document; see `Mixer`. Without a write, the shard does not advance either."""
        return self.memory.recomputed(self._mix, x, state, mask, write) if x.shape[1] else (x, state)

    def _mix(
        self, x: Tensor, state: LocalMemoryState, mask: Tensor | None, write: bool
    ) -> tuple[Tensor, LocalMemoryState]:
        q, k, v, tail = self.memory.project(x, state.tail, mask)
        state = replace(state, tail=tail)
        y, state = self._learn(x, Tokens(q, k, v, {}), state, mask) if write else (self._read(q, state), state)
        return self.memory.read_out(x, y), state

    def _read(self, q: Tensor, state: LocalMemoryState) -> Tensor:
        q = q if state.span is None else retrieve(SPAN, state.span, q)
        return retrieve(self.memory.rule, state.memory, q)

    def _learn(
        self, x: Tensor, tokens: Tokens, state: LocalMemoryState, mask: Tensor | None
    ) -> tuple[Tensor, LocalMemoryState]:
        where, q, span = (mask, state.offset, state.phase), tokens.q, state.span
        if span is not None:
            one = {"lr": torch.ones_like(q[..., 0])}
            q, span = in_shards(SPAN, self.projected, Tokens(q, tokens.k, tokens.k, one), span, *where, Run())
        tokens = Tokens(q, tokens.k, tokens.v, self.memory.gates(x))
        y, memory = in_shards(self.memory.rule, self.shard, tokens, state.memory, *where, self.memory.run)
        counted = x.shape[1] if mask is None else mask.sum(1)
        known = mask is None and state.phase is not None
        phase = (state.phase + x.shape[1]) % self.shard if known else None  # type: ignore[operator]
        offset = (state.offset + counted) % self.shard
        return y, replace(state, memory=memory, span=span, offset=offset, phase=phase)


def _check_span(span: str, shard: int, rule: Rule) -> None:
    """Raise `ValueError` unless the span is known and fits the shard and the rule."""
    if span not in SPANS:
        raise ValueError(f"unknown span {span!r}. {nearest(span, SPANS)}")
    if span == "chunk":
        divides("the chunk of the local rule", rule.period, "shard", shard)
    if span != "none" and rule.pairs > 1:
        raise ValueError(
            f"rule {rule.name!r} brings {rule.pairs} keys per token, and the projection of queries takes one. "
            "Use span='none', or another rule."
        )
