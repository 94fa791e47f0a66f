"""Mixers held to literal references: a law for each, besides those that every mixer keeps.

The laws of mixers cannot tell one right mixer from another. These can: the same parameters, run by plain loops that
were written from the papers' equations, give the same outputs, memories and gradients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from hypothesis import strategies as st
from torch import Tensor

import memkit
from literal_levels import TNT, Bank
from literal_mamba2 import Mamba2
from literal_memory import Memory
from literal_titans import Context, Gate, Layer
from memkit.mixers.base import Mixer
from memkit.state import Tree, tensors
from memkit.testing import MIXER_LAWS, Law, MixerProblem, mixer_problems
from memkit.testing.component import Component
from memkit.testing.laws.sequences import memories
from memkit.testing.results_and_gradients import ResultsAndGradients, agree, functional, gradients
from memkit.testing.strategies import draw_segments

DIM, HEADS = 8, 2
Options = Mapping[str, Any]


class Row(Protocol):
    """A literal reference: one document of one row."""

    def begin(self, tokens: Tensor) -> None:
        """Start with persistent tokens `[P, D]`."""
        ...

    def token(self, x: Tensor, write: bool = True) -> Tensor:
        """y of the next token x `[D]`."""
        ...

    def held(self) -> list[Tensor]:
        """All that the memories hold, in the order of the mixer's state, head by head."""
        ...


def literal(mixer: Any, spec: Options) -> Row:
    """The reference with a mixer's parameters. spec: the mixer's name and options; nothing else says what it does."""
    if spec["name"] == "persistent":
        row = literal(mixer.inner, spec["mixer"])
        row.begin(mixer.tokens)
        return row
    return ROWS[spec["name"]](mixer, spec)


def _mini_batch(spec: Options) -> int:
    return spec["rule"]["mini_batch"]


def _tnt(mixer: Any, spec: Options) -> Row:
    local = spec.get("local", spec["rule"])
    rules = local if isinstance(local, list) else [local] * len(spec["shards"])
    span = spec.get("span", "shard")
    return TNT(mixer, spec["chunk"], spec["shards"], span, [rule["mini_batch"] for rule in rules])


ROWS: dict[str, Callable[[Any, Options], Row]] = {
    "neural_memory": lambda mixer, spec: Memory(mixer, _mini_batch(spec)),
    "mac": lambda mixer, spec: Context(mixer, spec["segment"], _mini_batch(spec)),
    "mag": lambda mixer, spec: Gate(mixer, spec["window"], _mini_batch(spec)),
    "mal": lambda mixer, spec: Layer(mixer, spec["window"], _mini_batch(spec)),
    "tnt": _tnt,
    "bank": lambda mixer, spec: Bank(mixer, spec["levels"]),
    "mamba2": lambda mixer, spec: Mamba2(mixer, spec["state"]),
}


@dataclass(frozen=True, kw_only=True, repr=False)
class LiteralProblem(MixerProblem):
    """A problem of `prefix` + `tokens` tokens in four calls, cut after the prefix and at the `cuts`.

    masked: whether tokens are masked. packed: whether rows are several documents. Of the four calls the third does
    not write unless the problem is to `write`.
    """

    masked: bool = False
    packed: bool = False

    @property
    def length(self) -> int:
        """All tokens."""
        return self.prefix + self.tokens

    @property
    def calls(self) -> list[tuple[slice, bool]]:
        """The tokens of each call, and whether it writes."""
        places = [0, self.prefix, *(self.prefix + cut for cut in self.cuts), self.length]
        parts = [slice(*pair) for pair in zip(places, places[1:], strict=False)]
        return list(zip(parts, (True, True, self.write, True), strict=True))


@st.composite
def literal_problems(draw: st.DrawFn) -> LiteralProblem:
    """Any problem of a mixer, masked or not, packed or not."""
    drawn = draw(mixer_problems())
    given = {field.name: getattr(drawn, field.name) for field in dataclasses.fields(drawn)}
    return LiteralProblem(**given, masked=draw(st.booleans()), packed=draw(st.booleans()))


def hold_to_literal(component: Any, problem: LiteralProblem, spec: Options) -> None:
    """Outputs, what memories hold at the end, and gradients of x and of every parameter are those of the loops."""
    component = problem.enlarged(component)
    x = problem.inputs(component, problem.length)
    mask = problem.mask(length=problem.length) if problem.masked else None
    ids = draw_segments(problem.batch, problem.length, problem.generator(6)) if problem.packed else None
    x = (x if mask is None else problem.spoiled(x, mask)).requires_grad_()
    leaves = {"x": x, **dict(component.named_parameters())}
    results = (
        _by_mixer(component, problem, x, mask, ids),
        _by_loops(partial(literal, component, spec), problem, x, mask, ids),
    )
    agree(*(ResultsAndGradients(result, gradients(functional(result), leaves)) for result in results))


def _by_mixer(
    component: Any, problem: LiteralProblem, x: Tensor, mask: Tensor | None, ids: Tensor | None
) -> dict[str, Tree]:
    state, outputs = None, []
    for part, write in problem.calls:
        given = {name: y if y is None else y[:, part] for name, y in (("mask", mask), ("segment_ids", ids))}
        y, state = component(x[:, part], state, **given, write=write)
        outputs.append(y)
    return {"y": torch.cat(outputs, 1), "held": tuple(_held(state, b) for b in range(problem.batch))}


def _by_loops(
    begun: Callable[[], Row], problem: LiteralProblem, x: Tensor, mask: Tensor | None, ids: Tensor | None
) -> dict[str, Tree]:
    writes = [write for part, write in problem.calls for _ in range(part.stop - part.start)]
    rows, held = [], []
    for b in range(problem.batch):
        row, document, outputs = begun(), -1, []
        for t, write in enumerate(writes):
            if mask is not None and not mask[b, t]:
                outputs.append(torch.zeros_like(x[b, t]))
                continue
            if ids is not None and document != ids[b, t]:
                row, document = begun(), int(ids[b, t])
            outputs.append(row.token(x[b, t], write))
        rows.append(torch.stack(outputs))
        held.append(tuple(row.held()))
    return {"y": torch.stack(rows), "held": tuple(held)}


def _held(state: Any, row: int) -> tuple[Tensor, ...]:
    """Weights, slots and unfinished writes of every memory, but for what is kept of an earlier time."""
    now = [memory for path, memory in memories("state", state) if not path.endswith("start")]
    trees = [(memory.weights, memory.slots, memory.pending) for memory in now]
    return tuple(x[row, head] for tree in trees for head in range(HEADS) for x in tensors(tree))


MATRIX = {"name": "titans", "depth": 1, "mini_batch": 3}
DEEP = {"name": "titans", "expansion": 2, "mini_batch": 3}


def persistent(name: str, **options: Any) -> dict[str, Any]:
    """A mixer behind two persistent tokens."""
    return {"name": "persistent", "tokens": 2, "mixer": {"name": name, **options}}


SPECS: dict[str, tuple[dict[str, Any], str]] = {
    "neural memory": ({"name": "neural_memory", "rule": MATRIX}, "Titans eq. 11-16, in the layer of section 4.4."),
    "memory as context": (
        persistent("mac", segment=4, rule=MATRIX),
        "Titans eq. 21-25: attention over [p | h | segment], whose y the memory writes and then reads.",
    ),
    "memory as gate": (
        persistent("mag", window=3, rule=MATRIX),
        "Titans eq. 26-28: o = SW-Attn([p] || x) (x) M([p] || x).",
    ),
    "memory as layer": (
        persistent("mal", window=3, rule=MATRIX),
        "Titans eq. 29-31: y = M([p] || x), o = SW-Attn(y), each with its residual connection.",
    ),
    "tnt": (
        persistent("tnt", chunk=3, shards=[5], rule=MATRIX),
        "TNT eq. 5-7: o_t = f(V at the chunk's start, q_t) + sum_i f(W^i_t, P^i_t q_t).",
    ),
    "bank": (
        persistent("bank", levels=[1, 3], rule=MATRIX),
        "Nested Learning eq. 71, 74: a learned sum of memories that write once in C tokens each.",
    ),
    "mamba2": (
        {"name": "mamba2", "state": 3},
        "Mamba-2: h_t = a_t h_{t-1} + dt_t B_t x_t^T, y_t = C_t^T h_t + D x_t, o_t = W RMS(y_t silu(z_t)).",
    ),
}
"""Name of a law -> the mixer that is held to it, and its equation."""


def made(spec: Options) -> Mixer:
    """The mixer of a name and options."""
    return memkit.build("mixer", spec, dim=DIM, heads=HEADS)


def _law(name: str, spec: Options, equation: str) -> Law:
    def check(component: Any, problem: LiteralProblem) -> None:
        hold_to_literal(component, problem, spec)

    check.__doc__ = equation
    return Law(name, check)


LITERAL_LAWS: dict[str, Law] = {name: _law(name, *given) for name, given in SPECS.items()}


def literal_component(law: str, made_by: Callable[[], Mixer]) -> Component:
    """A mixer held to a reference, and to the laws of all mixers besides."""
    laws = {law: LITERAL_LAWS[law], **MIXER_LAWS}
    build = partial(LiteralProblem.build, factory=made_by)
    return Component(law, laws, LiteralProblem, lambda stream: literal_problems(), build, made_by())
