"""The simplest mixer with a state, for tests of models and of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import Tensor, nn

from memkit import registry
from memkit.checks import divides
from memkit.mixers.base import Mixer, MixerState, no_segment


@dataclass(frozen=True, kw_only=True)
class RunningMeanState(MixerState):
    total: Tensor  # [B, D]
    count: Tensor  # [B]


class RunningMean(Mixer):
    """y_t = W mean(x_1 .. x_t); write=False leaves x out of the mean."""

    state_type = RunningMeanState

    def __init__(self, *, dim: int, heads: int = 1, gain: float = 1.0) -> None:
        super().__init__(dim)
        divides("heads", heads, "dim", dim)
        self.heads, self.gain = heads, gain
        self.out = nn.Linear(dim, dim, bias=False)

    def init_state(self, batch: int) -> RunningMeanState:
        weight = self.out.weight
        return RunningMeanState(
            total=weight.new_zeros(batch, self.dim),
            count=weight.new_zeros(batch),
            segment=no_segment(batch, weight.device),
        )

    def mix(
        self, x: Tensor, state: RunningMeanState, mask: Tensor | None, write: bool
    ) -> tuple[Tensor, RunningMeanState]:
        counted = (x.new_ones(x.shape[:2]) if mask is None else mask.to(x.dtype)) * write
        total = state.total[:, None] + (x * counted[..., None]).cumsum(1)
        count = state.count[:, None] + counted.cumsum(1)
        y = self.gain * self.out(total / count.clamp(min=1)[..., None])
        if not x.shape[1]:
            return y, state
        return y, replace(state, total=total[:, -1], count=count[:, -1])


class Headless(RunningMean):
    """A mixer that knows no heads."""

    def __init__(self, *, dim: int) -> None:
        super().__init__(dim=dim)


@contextmanager
def registered(**mixers: type[Mixer]) -> Iterator[None]:
    """Register mixers for the length of a test, so that the laws over the registry do not meet them."""
    with registry.scratch():
        for name, mixer in mixers.items():
            registry.register("mixer", name)(mixer)
        yield
