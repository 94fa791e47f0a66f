"""Rules that the fused form fits, one of each kind."""

from __future__ import annotations

from dataclasses import replace

import memkit
from small_memory import titans

RULES = {
    "mlp": titans(),
    "residual, before": titans(residual=True, read="before"),
    "swiglu": replace(titans(), memory=memkit.build("memory", "gated_mlp")),
    "matrix": titans(depth=1),
    "huber": memkit.build("rule", "yaad", mini_batch=4),
}
