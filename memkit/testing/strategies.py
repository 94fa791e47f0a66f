"""Problems for the laws of rules: Hypothesis draws small integers and one seed.

The seed gives the tensors (`torch.Generator`). So drawing is fast, and a failing problem shrinks well and is one line
of small numbers, to type in again:

    RuleProblem(tokens=3, seed=7).tokens_for(rule)

To write a law of your own:

    def my_law(rule, problem):
        'Its equation.'
        y, state = problem.engine.memorize(rule, *problem.tokens_for(rule), problem.state_for(rule))
        same("y", y, expected)                      # memkit.testing.same, same_trees: float64, to rounding

    @given(rule_problems(rule))                     # hypothesis.given; it shrinks a failure
    def test_my_law(problem):
        my_law(rule, problem)

or try it like memkit's own, with `check_rule(rule, laws=[Law("my law", my_law)])`. `mixer_problems` and
`model_problems` are the problems of mixers and language models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from hypothesis import strategies as st
from torch import Tensor

import memkit
from memkit.engine import MemoryState, exact_forms, gate_shape
from memkit.rule import Gate, Rule, Tokens
from memkit.state import map_tensors
from memkit.testing.replay import Replayable

OPEN_RANGE = 0.1
"""Range of draws above the lower bound of a gate without an upper one (a step size)."""
LONGEST_PREFIX = 20
LONG_STREAM = 300
"""Tokens of the streams that compare single precision with double; a profile may have another number."""
MaskKind = Literal["anywhere", "left"]


@dataclass(frozen=True)
class Engine:
    """The functions to run a rule with: memkit's own, or others with the same laws."""

    memorize: Callable[..., tuple[Tensor, MemoryState]] = memkit.memorize
    retrieve: Callable[..., Tensor] = memkit.retrieve


ENGINE = Engine()


@dataclass(frozen=True, kw_only=True, repr=False)
class RuleProblem(Replayable):
    """A small problem for a rule: sizes, a past, and a seed. The defaults are the smallest problem.

    prefix: tokens already memorized, to fill slots and offset; ragged: their number differs between rows. corners:
    some gates are exactly 0 or 1. gain: multiple of the weights at initialization. cuts: two places in 0..tokens.
    form: the form under test, in laws about one form. stream: tokens of a long stream.
    """

    batch: int = 1
    tokens: int = 2
    heads: int = 1
    key_dim: int = 2
    value_dim: int = 2
    prefix: int = 0
    ragged: bool = False
    corners: bool = False
    gain: int = 1
    cuts: tuple[int, int] = (0, 0)
    block_size: int = 1
    form: str = "auto"
    stream: int = LONG_STREAM
    seed: int = 0
    engine: Engine = field(default=ENGINE, repr=False)

    def generator(self, stream: int) -> torch.Generator:
        """Random numbers of this problem; every use has its own `stream`."""
        return torch.Generator().manual_seed(1000 * self.seed + stream)

    def tokens_for(self, rule: Rule, length: int | None = None, stream: int = 1) -> Tokens:
        """Tokens with unit keys and gates inside their declared ranges; float64."""
        g = self.generator(stream)
        shape = (self.batch, self.tokens if length is None else length, self.heads)
        q = torch.randn(*shape, self.key_dim, generator=g, dtype=torch.float64)
        k = torch.randn(*shape, rule.pairs, self.key_dim, generator=g, dtype=torch.float64)
        v = torch.randn(*shape, rule.pairs * self.value_dim, generator=g, dtype=torch.float64)
        k = (k / k.norm(dim=-1, keepdim=True)).flatten(-2)
        shapes = {name: gate_shape(rule, gate, k, v) for name, gate in rule.gates.items()}
        gates = {name: draw_gate(gate, shapes[name], g, self.corners) for name, gate in rule.gates.items()}
        return Tokens(q, k, v, gates)

    def fresh_state(self, rule: Rule) -> MemoryState:
        """The start of a document: every row and head has its own weights, multiplied by `gain`, and constants."""
        g = self.generator(2)
        state = memkit.init_state(
            rule,
            batch=self.batch,
            heads=self.heads,
            key_dim=self.key_dim,
            value_dim=self.value_dim,
            dtype=torch.float64,
        )

        def noise(x: Tensor) -> Tensor:
            return torch.randn(x.shape, generator=g, dtype=x.dtype)

        initial = {name: self.gain * noise(w) / w.shape[-2] ** 0.5 for name, w in state.initial.items()}
        constants = {name: c + 0.3 * noise(c) for name, c in state.constants.items()}
        everywhere = torch.ones(self.batch, dtype=torch.bool)
        return replace(state, initial=initial, constants=constants).reset(everywhere, rule)

    def state_for(self, rule: Rule) -> MemoryState:
        """The state after the prefix: weights, slots, offset and window in use."""
        state = self.fresh_state(rule)
        if not self.prefix:
            return state
        tokens = self.tokens_for(rule, self.prefix, stream=3)
        mask = self.mask(length=self.prefix, stream=4) if self.ragged else None
        return self.engine.memorize(rule, *tokens, state, mask=mask)[1].detach()

    def mask(self, kind: MaskKind = "anywhere", length: int | None = None, stream: int = 5) -> Tensor:
        """`[B, T]`: holes anywhere, or padding on the left."""
        return draw_mask(kind, self.batch, self.tokens if length is None else length, self.generator(stream))

    def segment_ids(self) -> Tensor:
        """`[B, T]`: documents of random lengths. Ids are reused: a change of the id starts a document."""
        return draw_segments(self.batch, self.tokens, self.generator(6))


def pick(tokens: Tokens, rows: slice, where: slice | Tensor) -> Tokens:
    """Select rows, and tokens of them by slice or indices."""
    return map_tensors(lambda x: x[rows][:, where], tokens)


def mixed(mask: Tensor, tokens: Tokens, others: Tokens) -> Tokens:
    """`tokens` if `mask` `[B, T]` is true, else `others`."""

    def mix(x: Tensor, y: Tensor) -> Tensor:
        return torch.where(mask.view(*mask.shape, *[1] * (x.dim() - 2)), x, y)

    gates = {name: mix(gate, others.gates[name]) for name, gate in tokens.gates.items()}
    return Tokens(mix(tokens.q, others.q), mix(tokens.k, others.k), mix(tokens.v, others.v), gates)


def draw_gate(gate: Gate, shape: tuple[int, ...], generator: torch.Generator, corners: bool) -> Tensor:
    """Uniform in the gate's range; with `corners`, every fourth value is an end of the range."""
    bounded = math.isfinite(gate.high)
    width = gate.high - gate.low if bounded else OPEN_RANGE
    place, which = (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    if corners:
        place = torch.where(which < 0.25, (place.round() if bounded else 0.0), place)
    return gate.low + width * place


def draw_mask(kind: MaskKind, batch: int, tokens: int, generator: torch.Generator) -> Tensor:
    """`[B, T]` bool: three of five tokens are real, or any number of tokens pad the row on the left."""
    if kind == "left":
        padding = torch.randint(0, tokens + 1, (batch, 1), generator=generator)
        return torch.arange(tokens) >= padding
    return torch.rand(batch, tokens, generator=generator) < 0.6


def draw_segments(batch: int, tokens: int, generator: torch.Generator) -> Tensor:
    """`[B, T]` document ids 0, 1, 2, 0, ...; about every third token starts a document."""
    starts = torch.rand(batch, tokens, generator=generator) < 0.35
    return starts.long().cumsum(1) % 3


def documents(row_ids: Tensor, row_mask: Tensor) -> list[Tensor]:
    """Token indices of each document of a row, without masked tokens: ids `[T]`, mask `[T]`."""
    real = row_mask.nonzero()[:, 0]
    ids = row_ids[real]
    changes = (ids[1:] != ids[:-1]).nonzero()[:, 0] + 1
    return list(torch.tensor_split(real, changes)) if len(real) else []


def fitting_sizes(rule: Rule) -> list[tuple[int, int]]:
    """The widths (K, V) from 2 to 4 accepted by the rule."""
    fitting, refusal = [], None
    for key_dim in range(2, 5):
        for value_dim in range(2, 5):
            try:
                memkit.init_state(rule, batch=1, heads=1, key_dim=key_dim, value_dim=value_dim)
                fitting.append((key_dim, value_dim))
            except ValueError as error:
                refusal = error
    if not fitting:
        raise ValueError(f"rule {rule.name!r} accepts no widths K, V in 2..4, where its laws are tried: {refusal}")
    return fitting


def forms(rule: Rule) -> list[str]:
    """The exact forms of a rule, `scan` first, without "auto"; all must give the same answer."""
    return sorted(exact_forms(rule), key=lambda form: form != "scan")


def seeds() -> st.SearchStrategy[int]:
    """The seed of all tensors of a problem."""
    return st.integers(0, 9999)


def rule_problems(rule: Rule, engine: Engine = ENGINE, stream: int = LONG_STREAM) -> st.SearchStrategy[RuleProblem]:
    """Problems for a rule, with long streams of `stream` tokens.

    Raises `ValueError` if the rule accepts none of the widths of problems.
    """
    prefix = min(rule.period + 3, LONGEST_PREFIX)
    definition, *fast = forms(rule)  # failures shrink towards the first fast form
    return _rule_problems(fitting_sizes(rule), [*fast, definition], prefix, engine, stream)


@st.composite
def _rule_problems(
    draw: st.DrawFn, sizes: list[tuple[int, int]], forms: list[str], prefix: int, engine: Engine, stream: int
) -> RuleProblem:
    tokens = draw(st.integers(2, 12))
    key_dim, value_dim = draw(st.sampled_from(sizes))
    return RuleProblem(
        batch=draw(st.integers(1, 3)),
        tokens=tokens,
        heads=draw(st.integers(1, 2)),
        key_dim=key_dim,
        value_dim=value_dim,
        prefix=draw(st.integers(0, prefix)),
        ragged=draw(st.booleans()),
        corners=draw(st.booleans()),
        gain=draw(st.integers(1, 2)),
        cuts=draw(cuts(tokens)),
        block_size=draw(st.integers(1, 8)),
        form=draw(st.sampled_from(forms)),
        stream=stream,
        seed=draw(seeds()),
        engine=engine,
    )


def cuts(tokens: int) -> st.SearchStrategy[tuple[int, int]]:
    """Two places to cut a sequence at, in order; ends and equal places included, for empty calls."""
    return st.tuples(st.integers(0, tokens), st.integers(0, tokens)).map(lambda pair: (min(pair), max(pair)))
