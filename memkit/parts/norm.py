"""Layer norm written out, because torch's fused one has a wrong third derivative.

A write takes the first derivative of the memory, and training the second; a Hessian of the outer loss takes the
third. The plain operations below have all of them.
"""

from __future__ import annotations

from torch import Tensor

EPS = 1e-5


def layer_norm(x: Tensor, eps: float = EPS) -> Tensor:
    """c (mean(c^2) + eps)^(-1/2) with c = x - mean(x), both means over the last axis; x `[..., V]`."""
    centered = x - x.mean(-1, keepdim=True)
    return centered * ((centered * centered).mean(-1, keepdim=True) + eps).rsqrt()
