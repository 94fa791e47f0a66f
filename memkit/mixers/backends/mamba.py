"""Mamba-2's state-space scan by the mamba-ssm package, where it is installed with CUDA.

Written from the package's documented conventions (2.2) and tested with a stand-in that follows them; on a
GPU it has not been measured here.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor

from memkit.mixers.backends.probes import require_cuda, why_not


def mamba_ssm_available() -> bool:
    """Whether `ssd` can run here: the package imports, has the op, and there is a CUDA device."""
    return why_not(_probe) is None


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    initial_states: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Run Mamba-2's recurrence (Dao and Gu 2024, SSD) in chunks, with the package's Triton kernels.

        state_t = exp(dt_t A) state_{t-1} + dt_t x_t B_t^T,   y_t = state_t C_t + D x_t

    x `[B, T, H, V]`, T >= 1; dt `[B, T, H]`, positive: softplus and bias are already applied; A `[H]`,
    negative; B, C `[B, T, G, K]` with G dividing H; D `[H]`, `[H, V]` or None;
    initial_states `[B, H, V, K]` or None for zeros; chunk_size, a power of two, does not change the answer.
    Returns y `[B, T, H, V]` and the final states `[B, H, V, K]`. Differentiable in every tensor.

    Raises `ValueError` where mamba-ssm cannot run; see `mamba_ssm_available`.
    """
    reason = why_not(_probe)
    if reason is not None:
        raise ValueError(
            f"mamba-ssm is not available here: {reason}. It needs a CUDA device and "
            "`pip install -e '.[mamba]'`; the mixer's torch form runs everywhere."
        )
    return _library().mamba_chunk_scan_combined(
        x, dt, A, B, C, chunk_size, D=D, initial_states=initial_states, return_final_states=True
    )


def _library() -> Any:
    return importlib.import_module("mamba_ssm.ops.triton.ssd_combined")


def _probe() -> None:
    _library().mamba_chunk_scan_combined  # noqa: B018  an older package lacks the op
    require_cuda()
