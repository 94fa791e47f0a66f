"""The neural memory as a layer (Titans 4.4): any rule between projections, gates and an output norm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memkit.checks import divides, positive
from memkit.engine import (
    MemoryState,
    check_products,
    choose,
    in_groups,
    memorize,
    prepared_key_dim,
    retrieve,
    state_from,
)
from memkit.mixers.base import Mixer, MixerState, no_segment
from memkit.mixers.conv import ShortConv
from memkit.mixers.gates import GateProjection
from memkit.mixers.specs import RuleSpec
from memkit.registry import build, register
from memkit.rule import Rule

Products = Literal["bfloat16"]
"""Dtypes for products in a memory's blocks, besides float32."""


@dataclass(frozen=True, kw_only=True)
class NeuralMemoryState(MixerState):
    """tail `[B, conv - 1, C]`: the convolution's last inputs; memory: the memory itself."""

    tail: Tensor
    memory: MemoryState


class Projection(nn.Module):
    """Linear map, short convolution and SiLU: x `[B, T, D]` -> `[B, T, features]` (Titans 4.4)."""

    def __init__(self, dim: int, features: int, conv: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, features, bias=False)
        self.conv = ShortConv(features, conv)

    def init_tail(self, batch: int) -> Tensor:
        """Return the convolution's inputs before the first token."""
        return self.conv.init_tail(batch, self.linear.weight)

    def forward(self, x: Tensor, tail: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Project x; return y and the tail after x."""
        y, tail = self.conv(self.linear(x), tail, mask)
        return F.silu(y), tail


@register("mixer", "neural_memory")
class NeuralMemory(Mixer):
    """A memory that learns while it reads: q, k, v -> `memkit.memorize(rule, ...)` -> norm, gate, projection.

    dim: width D; heads: memories side by side, each with keys and values of width D / heads.
    rule: a name, `{"name": ..., options}` or a Rule. conv: width of the causal convolution, 0 for none.
    surprise_limit: a bound on each token's gradient norm, a departure from the paper to keep deep memories finite
    under any stream; None for the paper. recompute: in training, keep only the layer's inputs, its outputs and the
    state every so many tokens, and run the tokens between again in the backward pass, projections included; gradients
    can then not be differentiated again, and under `torch.compile` everything is kept, as with None.
    products: "bfloat16" for products inside of blocks, for rules that allow it (see `memorize`); the state and its
    sums stay in float32, as everything does with None, under autocast too.
    The memory's initial weights are learned. Raises `ValueError` for sizes that do not fit.
    """

    state_type = NeuralMemoryState

    def __init__(
        self,
        *,
        dim: int,
        heads: int = 4,
        rule: RuleSpec = "titans",
        conv: int = 4,
        surprise_limit: float | None = None,
        recompute: int | None = None,
        products: Products | None = None,
    ) -> None:
        positive("dim", dim)
        if recompute is not None:
            positive("recompute", recompute)
        divides("heads", heads, "dim", dim)
        super().__init__(dim)
        made: Rule = build("rule", rule)
        if surprise_limit is not None:
            made = replace(made, surprise_limit=surprise_limit)
        self.rule, self.heads, self.width, self.recompute = made, heads, dim // heads, recompute
        self.products = _product_dtype(products, made)
        self.qkv = Projection(dim, (1 + 2 * made.pairs) * dim, conv)
        self.gates = GateProjection(dim, heads, self.width, self.width, made)
        self.key_dim = prepared_key_dim(made, self.width, self.width)
        self.initial = nn.ParameterDict(_initial_weights(made, heads, self.key_dim, self.width))
        constants = made.memory.constants(self.key_dim, self.width)
        self.constants = nn.ParameterDict(
            {name: nn.Parameter(value.expand(heads, *value.shape).clone()) for name, value in constants.items()}
        )
        self.norm = nn.RMSNorm(self.width, eps=1e-6)
        self.gate = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self._start_as_recall()

    @torch.no_grad()
    def _start_as_recall(self) -> None:
        """Start as a memory of successors: the token before as the key, the token itself as the value.

        A later query for this value will look like the token before it. So key (of several: the first) and query
        projections start equal, and keys look back. From independent projections the outer loop finds this binding
        late or never: at 64 tokens, 4 pairs, a linear memory recalled 26 % after 500 steps; from this start, 99 %
        after 100.
        """
        q, k = self.qkv.linear.weight[: 2 * self.dim].chunk(2)
        k.copy_(q)
        self.qkv.conv.look_back(slice(self.dim, 2 * self.dim), self.heads)

    def init_state(self, batch: int) -> NeuralMemoryState:
        """Return the learned initial weights, and nothing else, for every row."""
        # A module in half precision still keeps its memory in float32.
        dtype = torch.promote_types(self.out.weight.dtype, torch.float32)
        weights = {name: weight.to(dtype) for name, weight in self.initial.items()}
        constants = {name: value.to(dtype) for name, value in self.constants.items()}
        return NeuralMemoryState(
            segment=no_segment(batch, self.out.weight.device),
            tail=self.qkv.init_tail(batch),
            memory=state_from(self.rule, weights, constants, batch, self.key_dim, self.width),
        )

    def mix(
        self, x: Tensor, state: NeuralMemoryState, mask: Tensor | None, write: bool
    ) -> tuple[Tensor, NeuralMemoryState]:
        """Map one piece of a document; see `Mixer`."""
        return self.recomputed(self._mix, x, state, mask, write)

    def recomputed(
        self, mix: Callable[..., tuple[Tensor, Any]], x: Tensor, state: Any, mask: Tensor | None, write: bool
    ) -> tuple[Tensor, Any]:
        """Run `mix(x, state, mask, write)`, recomputed if this layer is; `mix` uses only this layer's parameters."""
        if self.recompute is None or x.shape[1] == 0 or torch.compiler.is_compiling():
            return mix(x, state, mask, write)
        choose(self.rule, "auto", x.shape[1])  # warns once for all tokens, not per group

        def group(given: Any, state: Any) -> tuple[Tensor, Any]:
            return mix(given[0], state, given[1], write)

        return in_groups(group, (x, mask), state, self.recompute, tuple(self.parameters()))

    def _mix(
        self, x: Tensor, state: NeuralMemoryState, mask: Tensor | None, write: bool
    ) -> tuple[Tensor, NeuralMemoryState]:
        q, k, v, tail = self.project(x, state.tail, mask)
        memory = state.memory
        if write:
            y, memory = memorize(self.rule, q, k, v, self.gates(x), memory, mask=mask, products=self.products)
        else:
            y = retrieve(self.rule, memory, q)
        return self.read_out(x, y), replace(state, tail=tail, memory=memory)

    def project(self, x: Tensor, tail: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Project x `[B, T, D]` to q `[B, T, H, K]`, k, v `[B, T, H, pairs K]`; return them and the next tail."""
        qkv, tail = self.qkv(x, tail, mask)
        # [B, T, H, pairs, K]: a rule may take several pairs of keys and values per token.
        qkv = qkv.unflatten(-1, (-1, self.heads, self.width)).transpose(2, 3)
        pairs = self.rule.pairs
        qk, v = qkv.split([1 + pairs, pairs], 3)
        q, k = unit(qk).split([1, pairs], 3)
        return q.flatten(3), k.flatten(3), v.flatten(3), tail

    def recall(self, x: Tensor, q: Tensor, memory: MemoryState) -> Tensor:
        """Read with the caller's queries q `[B, T, D]`, without a write: `[B, T, D]` (Titans eq. 21)."""
        y = retrieve(self.rule, memory, unit(q.unflatten(-1, (self.heads, self.width))))
        return self.read_out(x, y)

    def read_out(self, x: Tensor, y: Tensor) -> Tensor:
        """Apply norm, gate and output projection to readings y `[B, T, H, V]` (Titans 4.4)."""
        y = self.norm(y.to(x.dtype)).flatten(2)
        return self.out(y * F.silu(self.gate(x)))


def _initial_weights(rule: Rule, heads: int, key_dim: int, value_dim: int) -> dict[str, nn.Parameter]:
    """Return the memory's initial weights, learned from there.

    Readings are normalized, so the first writes must not drown in the initial weights: the last layer starts small, and
    a single matrix at zero. Hidden layers are N(0, 1 / in).
    """
    shapes = rule.memory.shapes(key_dim, value_dim)
    weights = {name: torch.randn(heads, *shape) / shape[0] ** 0.5 for name, shape in shapes.items()}
    last = list(weights)[-1]
    weights[last] *= 0.0 if len(weights) == 1 else 0.1
    return {name: nn.Parameter(weight) for name, weight in weights.items()}


def _product_dtype(products: str | None, rule: Rule) -> torch.dtype | None:
    if products is None:
        return None
    if products != "bfloat16":
        raise ValueError(f"products must be 'bfloat16', or None, which multiplies in float32; got {products!r}.")
    check_products(rule, "auto", torch.bfloat16)
    return torch.bfloat16


def unit(x: Tensor) -> Tensor:
    """Normalize the last axis to length 1, with a finite derivative at 0."""
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()
