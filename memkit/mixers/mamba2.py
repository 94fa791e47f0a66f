"""Mamba-2 (Dao, Gu, arXiv 2405.21060) as a layer: its recurrence is the rule `mamba2`, run by the engine.

Chunked training and stepping are therefore one definition, and so are masks, cuts and documents. The mamba-ssm
package answers the same question where it is installed with CUDA.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memkit.checks import divides, positive
from memkit.engine import MemoryState, retrieve, state_from
from memkit.mixers.backends import SCAN, Scan, check_backend, mamba2_scan
from memkit.mixers.base import Mixer, MixerState, no_segment
from memkit.mixers.conv import ShortConv
from memkit.registry import register
from memkit.rules.mamba2 import mamba2 as mamba2_rule


@dataclass(frozen=True, kw_only=True)
class Mamba2State(MixerState):
    """tail `[B, conv - 1, C]`: the convolution's last inputs; memory: the recurrent state `[B, H, state, P]`."""

    tail: Tensor
    memory: MemoryState


@register("mixer", "mamba2")
class Mamba2(Mixer):
    """State-space duality: a matrix per head, with decay, written by dt B x, read by C.

    dim: width D; expand: inner width over D; heads: inner heads, each of width expand x D / heads;
    state: width of B and C, shared by the heads; conv: width of the causal convolution, 0 for none.
    backend: "torch", the engine, exact in float32; "mamba_ssm", products in half precision, for CUDA in bf16 or fp16;
    "auto", mamba_ssm for the calls it can take.
    Raises `ValueError` for sizes that do not fit, and for a backend that is unknown or not available.
    """

    state_type = Mamba2State

    def __init__(
        self, *, dim: int, heads: int = 4, state: int = 64, expand: int = 2, conv: int = 4, backend: str = "auto"
    ) -> None:
        for name, value in (("dim", dim), ("state", state), ("expand", expand)):
            positive(name, value)
        divides("heads", heads, "expand x dim", expand * dim)
        check_backend(backend, SCAN)
        super().__init__(dim)
        self.backend = backend
        self.rule = mamba2_rule()
        self.heads, self.inner, self.state = heads, expand * dim, state
        self.project = nn.Linear(dim, 2 * self.inner + 2 * state + heads, bias=False)
        self.conv = ShortConv(self.inner + 2 * state, conv)
        # The paper's ranges: A in 1..16, step dt in 0.001..0.1, both spread evenly over the heads' logarithms.
        self.log_a = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        step = torch.empty(heads).uniform_(math.log(1e-3), math.log(1e-1)).exp()
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
        self.skip = nn.Parameter(torch.ones(heads))
        self.norm = nn.RMSNorm(self.inner, eps=1e-6)
        self.out = nn.Linear(self.inner, dim, bias=False)
        self._start_as_recall()

    @torch.no_grad()
    def _start_as_recall(self) -> None:
        """Start B (writes) equal to C (reads), with B looking back: see `NeuralMemory`.

        The published layer starts them independently, and stayed at guessing for 700 steps of recall.
        """
        _, _, b, c, _ = self.project.weight.split([self.inner, self.inner, self.state, self.state, self.heads])
        c.copy_(b)
        self.conv.look_back(slice(self.inner, self.inner + self.state), 1)

    def init_state(self, batch: int) -> Mamba2State:
        """Return zeros."""
        like = self.project.weight
        width = self.inner // self.heads
        zeros = like.new_zeros(self.heads, self.state, width, dtype=torch.promote_types(like.dtype, torch.float32))
        return Mamba2State(
            segment=no_segment(batch, like.device),
            tail=self.conv.init_tail(batch, like),
            memory=state_from(self.rule, {"w1": zeros}, {}, batch, self.state, width),
        )

    def mix(self, x: Tensor, state: Mamba2State, mask: Tensor | None, write: bool) -> tuple[Tensor, Mamba2State]:
        """Map one piece of a document; see `Mixer`."""
        gate, xbc, step = self.project(x).split([self.inner, self.inner + 2 * self.state, self.heads], -1)
        xbc, tail = self.conv(xbc, state.tail, mask)
        value, key, query = F.silu(xbc).split([self.inner, self.state, self.state], -1)
        v, memory = value.unflatten(-1, (self.heads, -1)), state.memory
        if write:
            full = torch.promote_types(step.dtype, torch.float32)
            dt, decay = F.softplus(step.to(full) + self.dt_bias.to(full)), self.log_a.to(full).exp()
            call = Scan(self.rule, query, key, v, dt, decay, self.skip, memory, mask, gate.dtype)
            y, memory = mamba2_scan(call, self.backend)
        else:
            q = query.unsqueeze(2).expand(-1, -1, self.heads, -1)
            y = retrieve(self.rule, memory, q) + self.skip[:, None] * v
        return self.out(self.norm(y.flatten(2) * F.silu(gate))), replace(state, tail=tail, memory=memory)
