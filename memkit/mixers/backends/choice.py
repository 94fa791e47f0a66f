"""The choice of a backend, by name or automatically, at run time, by probes that run."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memkit.engine import MemoryState
from memkit.mixers.backends import flash, flex, mamba, memory_efficient, scan, sdpa
from memkit.mixers.backends.banded import Backend, Banded, Call
from memkit.mixers.backends.probes import why_not
from memkit.mixers.backends.scan import Scan
from memkit.registry import nearest

logger = logging.getLogger("memkit")


class Choice(NamedTuple):
    """The backends of one kind of call.

    kind, torch: names in messages, of the kind and of its backend "torch", able to take every call.
    automatic: the backends for `auto` to try before torch.
    """

    kind: str
    torch: str
    backends: dict[str, Backend[Any]]
    automatic: tuple[str, ...]


BACKENDS = {each.name: each for each in (sdpa.BACKEND, flex.BACKEND, flash.BACKEND, memory_efficient.BACKEND)}
AUTOMATIC = ("flash_attn", "xformers")  # not FlexAttention: it compiles anew for new lengths
ATTENTION = Choice("attention", "torch's scaled_dot_product_attention", BACKENDS, AUTOMATIC)
SCAN = Choice("mamba2", "the engine", {each.name: each for each in (scan.BACKEND, mamba.BACKEND)}, ("mamba_ssm",))

_said: set[str] = set()


def check_backend(name: str, choice: Choice = ATTENTION) -> None:
    """Raise `ValueError` unless `name` is `"auto"` or a backend that can run here."""
    if name == "auto":
        return
    if name not in choice.backends:
        raise ValueError(f"unknown {choice.kind} backend {name!r}. {nearest(name, ['auto', *choice.backends])}")
    backend = choice.backends[name]
    reason = why_not(backend.probe)
    if reason is not None:
        raise ValueError(
            f"{choice.kind} backend {name!r} is not available here: {reason}. It needs {backend.remedy}. "
            "Use backend='auto' to take what there is."
        )


def banded_attention(call: Banded, backend: str = "auto") -> Tensor:
    """Answer a call `[B, H, T, K]` by a backend, by name or `"auto"`.

    If the backend cannot take this one call (its dtype, say), torch does, and the log says so once.
    Raises `ValueError` as `check_backend`.
    """
    return _chosen(ATTENTION, call, backend).run(call)


def mamba2_scan(call: Scan, backend: str = "auto") -> tuple[Tensor, MemoryState]:
    """Answer a call by a backend, by name or `"auto"`: y `[B, T, H, V]` and the next state.

    A single token has nothing to scan: the engine steps it. Otherwise as `banded_attention`.
    """
    return _chosen(SCAN, call, backend if call.q.shape[1] > 1 else "torch").run(call)


def _chosen(choice: Choice, call: Call, name: str) -> Backend[Any]:
    check_backend(name, choice)
    reasons = []
    for candidate in choice.automatic if name == "auto" else (name,):
        backend = choice.backends[candidate]
        reason = why_not(backend.probe) or backend.refusal(call)
        if reason is None:
            return backend
        reasons.append(f"{candidate}: {reason}")
    level = logging.INFO if name == "auto" else logging.WARNING  # a named backend was not meant to be replaced
    _say_once(level, f"{choice.kind} runs by {choice.torch} ({'; '.join(reasons)})")
    return choice.backends["torch"]


@torch.compiler.assume_constant_result  # logged while a model is compiled
def _say_once(level: int, message: str) -> None:
    if message not in _said:
        _said.add(message)
        logger.log(level, message)
