"""Mamba-2's recurrence by the mamba-ssm package (version 2.2 on): CUDA, bf16 and fp16.

Written from the package's documented conventions and tested with a stand-in of its signature; it has not been
measured on a GPU here.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from memkit.autograd import once_differentiable
from memkit.engine import MemoryState
from memkit.masks import blank
from memkit.mixers.backends.banded import Backend, in_half_precision, on_cuda
from memkit.mixers.backends.probes import require_cuda
from memkit.mixers.backends.scan import Scan

CHUNK = 256  # tokens per chunk, as in the package's own layer; a power of two, and any gives the same numbers


def run(call: Scan) -> tuple[Tensor, MemoryState]:
    """Return y `[B, T, H, V]` and the state after the last token, in the dtype it had.

    Products are in half precision, sums and the state in float32. Gradients flow once: differentiating them again
    raises `RuntimeError`.
    """
    q, k, v = (x.to(call.dtype) for x in (call.q, call.k, call.v))
    start = call.memory.weights["w1"]
    dt = blank(call.dt, call.mask)  # a step of 0 neither decays the state nor writes to it
    y, end = ssd(v, dt, -call.decay, k.unsqueeze(2), q.unsqueeze(2), D=call.skip, initial_states=start.mT)
    phase = None if call.mask is not None else call.memory.phase
    return y.to(call.v.dtype), replace(call.memory, weights={"w1": end.mT.to(start.dtype)}, phase=phase)


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    initial_states: Tensor | None = None,
    chunk_size: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Call the package's chunked scan (Dao and Gu 2024, SSD), whose names these are.

        state_t = exp(dt_t A) state_{t-1} + dt_t x_t B_t^T,   y_t = state_t C_t + D x_t

    x `[B, T, H, V]`, T >= 1; dt `[B, T, H]`, softplus and bias already applied; A `[H]`, negative; B, C
    `[B, T, G, K]` with G dividing H; D `[H]`, `[H, V]` or None; initial_states `[B, H, V, K]` or None for zeros.
    Returns y `[B, T, H, V]` and the final states `[B, H, V, K]`, differentiable once in every tensor.
    """
    x, dt, A, B, C, D, initial_states = _Once.apply(x, dt, A, B, C, D, initial_states)  # type: ignore[misc]
    return _library().mamba_chunk_scan_combined(
        x, dt, A, B, C, chunk_size, D=D, initial_states=initial_states, return_final_states=True
    )


class _Once(torch.autograd.Function):
    """Pass tensors through to the kernel, and refuse to differentiate their gradients, which it would leave out."""

    @staticmethod
    def forward(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(*given)
        return tuple(None if x is None else x.view_as(x) for x in given)

    @staticmethod
    @once_differentiable("the scan by mamba-ssm", "backend='torch'")
    def backward(ctx: Any, saved: tuple[Tensor | None, ...], *arriving: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return arriving


def _library() -> Any:
    return importlib.import_module("mamba_ssm.ops.triton.ssd_combined")


def _probe() -> None:
    _library().mamba_chunk_scan_combined  # noqa: B018  an older package lacks the op
    require_cuda()


def _in_any_order(call: Scan) -> str | None:
    return "its gradients are sums in no fixed order" if torch.are_deterministic_algorithms_enabled() else None


def _not_compiled(call: Scan) -> str | None:
    return "torch.compile does not look into the kernel" if torch.compiler.is_compiling() else None


BACKEND = Backend(
    "mamba_ssm",
    run,
    _probe,
    needs=(on_cuda, in_half_precision, _in_any_order, _not_compiled),
    remedy="a CUDA device and `pip install -e '.[mamba]'`",
)
