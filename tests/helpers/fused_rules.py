"""Rules whose blocks the fused form runs, one of each kind."""

from __future__ import annotations

from dataclasses import replace

import torch

import memkit
from small_memory import titans

RULES = {
    "mlp": titans(),
    "residual, before": titans(residual=True, read="before"),
    "swiglu": replace(titans(), memory=memkit.build("memory", "gated_mlp")),
    "matrix": titans(depth=1),
    "huber": memkit.build("rule", "yaad", mini_batch=4),
}


def assert_near(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
