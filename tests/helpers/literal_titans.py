"""One row of the three Titans, one token after the other, from eq. 21-31 of arXiv 2501.00663.

    h_t = M*_{t-1}(q_t)      (21)    y = SW-Attn([p] || x)     (27)    y = M([p] || x)    (30)
    S~ = [p] || h || S       (22)    o = y (x) M([p] || x)     (28)    o = SW-Attn(y)     (31)
    y = Attn(S~)             (23)
    M_t = M_{t-1}(y_t)       (24)
    o = y (x) M*_t(y_t)      (25)

y (x) m is RMS(y) sigmoid(RMS(m)) + RMS(m) sigmoid(RMS(y)). Residual connections of 4.4: the layer around adds x.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from literal_attention import Attention, Pair, attend, rotated, split
from literal_memory import Convolution, Memory, Weights, rms_norm, silu


def gated(gating: Any, core: Tensor, memory: Tensor) -> Tensor:
    """y (x) m."""
    y, m = rms_norm(core, gating.norm_core.weight), rms_norm(memory, gating.norm_memory.weight)
    return y * torch.sigmoid(m) + m * torch.sigmoid(y)


class Context:
    """Memory as a context: token i of a segment sees h_j and x_j for j <= i only, all at slot j of the segment."""

    def __init__(self, mixer: Any, segment: int, mini_batch: int) -> None:
        self.mixer, self.segment, self.slot = mixer, segment, 0
        self.memory = Memory(mixer.memory, mini_batch)
        self.asking = Convolution(mixer.recalling.conv)
        self.persistent: list[Pair] = []
        self.context: list[Pair] = []
        self.start: list[Weights] = []

    def begin(self, tokens: Tensor) -> None:
        """The persistent tokens have no position, and the memory does not read them."""
        self.persistent = [self.pair(token) for token in tokens]

    def token(self, x: Tensor, write: bool = True) -> Tensor:
        if self.slot == 0:
            self.context, self.start = [], [head.weights for head in self.memory.heads]
        query = silu(self.asking.token(self.mixer.recalling.linear.weight @ x))
        recalled = self.memory.recall(x, query, self.start)  # (21)
        for k, v in (self.pair(recalled), self.pair(x)):  # (22)
            self.context.append((rotated(k, self.slot), v))
        q = rotated(split(self.mixer.to_q.weight @ x, self.mixer.heads), self.slot)
        y = self.mixer.to_out.weight @ attend(q, self.persistent + self.context)  # (23)
        read = self.memory.token(rms_norm(x + y, self.mixer.norm.weight), write)  # (24)
        self.slot = (self.slot + 1) % self.segment
        return gated(self.mixer.gating, y, read)  # (25)

    def pair(self, x: Tensor) -> Pair:
        k, v = (split(z, self.mixer.heads) for z in (self.mixer.to_kv.weight @ x).chunk(2))
        return k, v

    def held(self) -> list[Tensor]:
        return self.memory.held()


class Branches:
    """Attention over a window, and a memory; both begin with the persistent tokens (26, 29)."""

    def __init__(self, mixer: Any, window: int, mini_batch: int) -> None:
        self.mixer, self.memory = mixer, Memory(mixer.memory, mini_batch)
        self.attention = Attention(mixer.attention, window)

    def held(self) -> list[Tensor]:
        return self.memory.held()


class Gate(Branches):
    """Memory as a gate."""

    def begin(self, tokens: Tensor) -> None:
        """The attention sees the persistent tokens from everywhere; the memory has written them."""
        self.attention.begin(tokens)
        self.memory.begin(tokens)

    def token(self, x: Tensor, write: bool = True) -> Tensor:
        return gated(self.mixer.gating, self.attention.token(x), self.memory.token(x, write))  # (27), (28)


class Layer(Branches):
    """Memory as a layer."""

    def begin(self, tokens: Tensor) -> None:
        """The persistent tokens pass through both as the document's first."""
        for token in tokens:
            self.token(token)

    def token(self, x: Tensor, write: bool = True) -> Tensor:
        y = self.memory.token(x, write)  # (30)
        return y + self.attention.token(rms_norm(x + y, self.mixer.norm.weight))  # (31)
