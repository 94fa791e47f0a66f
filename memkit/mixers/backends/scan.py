"""Mamba-2's recurrence as a question to backends, and the engine's answer: exact on every device and dtype."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memkit.engine import MemoryState, memorize
from memkit.mixers.backends.banded import Backend
from memkit.rule import Rule


@dataclass(frozen=True)
class Scan:
    """The recurrence of the rule `mamba2`, from a state on, with a skip connection (Dao, Gu, arXiv 2405.21060).

        h_t = exp(-dt_t A) h_{t-1} + dt_t B_t x_t^T,   y_t = C_t^T h_t + D x_t

    q `[B, T, K]`: C; k `[B, T, K]`: B, shared by the heads; v `[B, T, H, V]`: x. dt `[B, T, H]` and decay `[H]`, A,
    both positive; skip `[H]`: D. mask `[B, T]`: False skips a token, whose output has no meaning.
    dtype: of the layer's projections, for kernels to multiply in.
    """

    rule: Rule
    q: Tensor
    k: Tensor
    v: Tensor
    dt: Tensor
    decay: Tensor
    skip: Tensor
    memory: MemoryState
    mask: Tensor | None
    dtype: torch.dtype


def run(call: Scan) -> tuple[Tensor, MemoryState]:
    """Return y `[B, T, H, V]` and the state after the last token."""
    gates = {"lr": call.dt, "decay": -torch.expm1(-call.dt * call.decay)}
    q, k = (z.unsqueeze(2).expand(-1, -1, call.v.shape[2], -1) for z in (call.q, call.k))
    y, memory = memorize(call.rule, q, k, call.v, gates, call.memory, mask=call.mask)
    return y + call.skip[:, None] * call.v, memory


def _always_there() -> None:
    pass


BACKEND = Backend("torch", run, _always_there, needs=())
