"""TNT (arXiv 2511.07343): a global memory of large chunks, and local memories reset at every shard.

    V_{(k+1) C_G} = V_{k C_G} - sum_{t in chunk k} eta_t grad L(f(V_{k C_G}, k_t), v_t)              (5)
    o_t = f(V_{t - t mod C_G}, q_t) + sum_i f(W^i_t, P^i_t q_t)                                      (7, appendix E)

The global memory takes few large steps; all shards of a local memory run in parallel. So none of them is slow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from architectures.language_model import LanguageModel
from architectures.uniform import uniform_model
from memkit.checks import positive
from memkit.mixers.base import Mixer, MixerState
from memkit.mixers.local_memory import LocalMemory, Span
from memkit.mixers.neural_memory import NeuralMemory
from memkit.mixers.runs import Products, RunSpec, recompute_of
from memkit.mixers.specs import RuleSpec, every_so_often, one_each
from memkit.registry import register, takes_options_of

CHUNK = 64
SHARDS = (64,)


@dataclass(frozen=True, kw_only=True)
class TNTState(MixerState):
    """The states of the global memory and of the local ones."""

    whole: Any
    parts: tuple[Any, ...]


@register("mixer", "tnt")
@takes_options_of(NeuralMemory)
class TNT(Mixer):
    """The sum of a global memory of all earlier chunks and of local memories of this shard.

    chunk: C_G, tokens per write of the global memory; its reads see the weights at the chunk's start, so its rule is
    the given one with `update_every` = C_G and read="before". shards: S, one local memory for each; C_L is the
    `mini_batch` of its rule, and stage 2 of the paper is further training with a smaller one. span: the keys that
    local queries are projected on; see `local_memory`. rule: of the global memory, and of the local ones unless
    `local` names one for all or a list of one for each. products, run: as for `neural_memory`, for
    local memories only, as the global one has no mini-batches; but a run's `recompute` is for all. Other options as for
    `neural_memory`, for all memories.

    Each memory has projections, gates and an output norm of its own; (7) writes one q, k and v for all.
    Raises `ValueError` for a chunk below 1, without shards, for another number of local rules than of shards, and for
    any error of a memory.
    """

    state_type = TNTState

    def __init__(
        self,
        *,
        dim: int,
        heads: int = 4,
        chunk: int = CHUNK,
        shards: Sequence[int] = SHARDS,
        span: Span = "shard",
        rule: RuleSpec = "titans",
        local: RuleSpec | list[RuleSpec] | None = None,
        products: Products | None = None,
        run: RunSpec | None = None,
        **memory: Any,
    ) -> None:
        positive("chunk", chunk)
        if not shards:
            raise ValueError(f"tnt needs at least one local memory, such as shards={list(SHARDS)}.")
        super().__init__(dim)
        coarse = replace(every_so_often(rule, chunk), read="before")
        # `recompute` is the one option of a run that the global memory takes too.
        again: dict[str, Any] = {} if run is None else {"recompute": recompute_of(run)}
        self.whole = NeuralMemory(dim=dim, heads=heads, rule=coarse, **memory | again)
        rules = one_each(rule if local is None else local, len(shards), "shards")
        self.parts = nn.ModuleList(
            LocalMemory(dim=dim, heads=heads, shard=shard, span=span, rule=one, products=products, run=run, **memory)
            for shard, one in zip(shards, rules, strict=True)
        )

    def init_state(self, batch: int) -> TNTState:
        """Return every memory at its start."""
        return self._state(self.whole.init_state(batch), [part.init_state(batch) for part in self._parts])

    def begin(self, tokens: Tensor) -> TNTState:
        """Write persistent tokens to every memory, as tokens of the first shard."""
        return self._state(self.whole.begin(tokens), [part.begin(tokens) for part in self._parts])

    def mix(self, x: Tensor, state: TNTState, mask: Tensor | None, write: bool) -> tuple[Tensor, TNTState]:
        """Map one piece of a document; see `Mixer`."""
        y, whole = self.whole(x, state.whole, mask=mask, write=write)
        states = []
        for part, held in zip(self._parts, state.parts, strict=True):
            local, held = part(x, held, mask=mask, write=write)
            y = y + local  # (7)
            states.append(held)
        return y, replace(state, whole=whole, parts=tuple(states))

    @property
    def _parts(self) -> list[LocalMemory]:
        return list(self.parts)  # type: ignore[arg-type]

    @staticmethod
    def _state(whole: Any, parts: list[Any]) -> TNTState:
        return TNTState(segment=whole.segment, whole=whole, parts=tuple(parts))


@register("architecture", "tnt")
@takes_options_of(uniform_model, TNT)
def tnt(**options: Any) -> LanguageModel:
    """A global memory, and local ones reset at every shard, in every layer.

    persistent: learned tokens in front of every layer, 0 for none. feed_forward: width of each SwiGLU in multiples of
    dim. checkpoint: compute layers again in the backward pass instead of keeping them. Others: as for the mixer `tnt`.
    """
    return uniform_model(TNT, **options)
