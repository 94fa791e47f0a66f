"""One row of a Mamba-2 layer (arXiv 2405.21060), one token after the other, head by head.

    z, (x, B, C), dt = W u,    (x, B, C) = silu(conv(x, B, C)),    dt = log(1 + exp(dt + bias)),    a = exp(-dt A)
    h_t = a_t h_{t-1} + dt_t B_t x_t^T,    y_t = C_t^T h_t + D x_t,    o_t = W_out RMS(y_t silu(z_t))

B and C are shared by the heads; dt, A and D are one number per head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import textbook
from literal_memory import Convolution, rms_norm, silu


class Mamba2:
    """state: width of B and C."""

    def __init__(self, mixer: Any, state: int) -> None:
        self.mixer, self.state = mixer, state
        self.heads, self.inner = len(mixer.log_a), len(mixer.norm.weight)
        self.convolution = Convolution(mixer.conv)
        like = mixer.project.weight
        self.h = [like.new_zeros(state, self.inner // self.heads) for _ in range(self.heads)]

    def begin(self, tokens: Tensor) -> None:
        """Persistent tokens are the document's first."""
        for token in tokens:
            self.token(token)

    def token(self, x: Tensor, write: bool = True) -> Tensor:
        z, xbc, raw = (self.mixer.project.weight @ x).split([self.inner, self.inner + 2 * self.state, self.heads])
        values, B, C = silu(self.convolution.token(xbc)).split([self.inner, self.state, self.state])
        dt = torch.log(1 + torch.exp(raw + self.mixer.dt_bias))
        a = torch.exp(-dt * torch.exp(self.mixer.log_a))
        outputs = []
        for head, value in enumerate(values.chunk(self.heads)):
            y, h = textbook.mamba2(
                self.h[head], C[None], B[None], value[None], a=a[head : head + 1], dt=dt[head : head + 1]
            )
            if write:
                self.h[head] = h
            y = y[0] if write else C @ self.h[head]
            outputs.append(y + self.mixer.skip[head] * value)
        return self.mixer.out.weight @ rms_norm(torch.cat(outputs) * silu(z), self.mixer.norm.weight)

    def held(self) -> list[Tensor]:
        return self.h
