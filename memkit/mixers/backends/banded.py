"""The question to every attention backend, and the definition of a backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor


class Call(Protocol):
    """Any question to backends: q gives the device, dtype the precision of products."""

    @property
    def q(self) -> Tensor:
        """The queries."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of products."""
        ...


Asked = TypeVar("Asked", bound=Call)


@dataclass(frozen=True)
class Banded:
    """Causal attention of T queries to a band of keys and to a prefix visible to all.

    q `[B, H, T, K]`, T >= 1. k, v `[B, H, C + T, K]`: the keys of C cached tokens, then the queries' own.
    prefix_k, prefix_v `[B, H, P, K]`. Query t sees the prefix and key slot s iff

        s <= C + t,   C + t - s < window (None: no bound),   s >= first

    `first` counts the empty cache slots: an int if all rows share it (known without the device), else `[B]`.
    With a window, C = window - 1, so the cache holds every key that a query may see. Scores are divided by sqrt(K).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    prefix_k: Tensor
    prefix_v: Tensor
    window: int | None
    first: int | Tensor

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the queries."""
        return self.q.dtype

    @property
    def cached(self) -> int:
        """C, the key slots before the first query's own."""
        return self.k.shape[2] - self.q.shape[2]

    def dense(self) -> Banded:
        """Return the same question without the empty slots, if all rows share their number; else unchanged."""
        if not isinstance(self.first, int):
            return self
        return replace(self, k=self.k[:, :, self.first :], v=self.v[:, :, self.first :], first=0)

    def with_prefix(self) -> tuple[Tensor, Tensor]:
        """Return keys and values `[B, H, P + C + T, K]` with the prefix in front."""
        return torch.cat([self.prefix_k, self.k], 2), torch.cat([self.prefix_v, self.v], 2)


@dataclass(frozen=True)
class Backend(Generic[Asked]):
    """A way to answer a kind of call: a function, a probe to run, and the needs of the function.

    `probe()` raises ImportError, OSError, RuntimeError or AttributeError if the backend cannot work here.
    Each of `needs` returns None for a suitable call, else the reason against it. `remedy` names the condition for the
    probe to pass.
    """

    name: str
    run: Callable[[Asked], Any]
    probe: Callable[[], None]
    needs: tuple[Callable[[Asked], str | None], ...]
    remedy: str = ""

    def refusal(self, call: Asked) -> str | None:
        """Return the reason against this backend for a call, or None."""
        return next((reason for need in self.needs if (reason := need(call))), None)


def on_cuda(call: Call) -> str | None:
    """Require CUDA tensors."""
    return None if call.q.is_cuda else f"the tensors are on {call.q.device.type}, the kernel is for cuda"


def in_half_precision(call: Call) -> str | None:
    """Require bf16 or fp16."""
    halves = (torch.bfloat16, torch.float16)
    return None if call.dtype in halves else f"the kernel takes bfloat16 and float16, not {call.dtype}"


def cache_known_to_host(call: Banded) -> str | None:
    """Require one int for the number of empty cache slots: a kernel without a mask needs them cut off."""
    if isinstance(call.first, int):
        return None
    return "rows hold different numbers of cached tokens (after a mask, a reset or a merge)"


def head_dim_in_eights(call: Banded) -> str | None:
    """Require a head width divisible by 8, up to 256."""
    width = call.q.shape[-1]
    return None if width % 8 == 0 and width <= 256 else f"head width {width} is not a multiple of 8 up to 256"
