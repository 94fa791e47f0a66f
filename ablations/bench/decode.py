"""`memkit bench decode`: one token per call, with a state of constant size against a growing cache."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ablations.bench.base import Benchmark, Progress, benchmark
from ablations.bench.crossing import crossing, describe
from ablations.bench.stream import step_by_step
from ablations.bench.systems import OWN, SHAPE, SIZES, YARDSTICK, equal_hidden, system
from ablations.bench.timing import Spread, Times, take_turns
from ablations.report.lines import Lines
from architectures.language_model import LanguageModel
from memkit.mixers.attention import Attention
from memkit.state import tensors

CONTEXTS = (256, 1024, 4096, 16_384, 65_536, 131_072)
REACHED = (256, 16_384)
"""Contexts that the models with a state have read; their states have one size, so their lines go on from there."""
CHUNK, TOKENS, ROUNDS = 4096, 16, 7


class Cached:
    """The transformer with keys and values in a preallocated buffer, written in place.

    The yardstick needs its own decoder, because a mixer's state is a value: it copies its cache at every token.
    """

    def __init__(self, model: LanguageModel, context: int, room: int, dtype: torch.dtype = torch.float32) -> None:
        self.model, self.context = model, context
        mixer = _attention(model)[0]
        shape = (1, mixer.heads, context + room, mixer.dim // mixer.heads)
        self.caches = [(torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)) for _ in model.blocks]

    @torch.no_grad()
    def read(self, ids: Tensor) -> Tensor:
        """ids `[1, T]`, one token per step after `context` tokens -> logits `[1, T, vocab]`."""
        rows = [self.step(token, self.context + i) for i, token in enumerate(ids.split(1, 1))]
        return torch.cat(rows, 1)

    def step(self, token: Tensor, position: int) -> Tensor:
        """One token `[1, 1]` at a position -> its logits `[1, 1, vocab]`."""
        x = self.model.embedding(token)
        for block, mixer, (keys, values) in zip(self.model.blocks, _attention(self.model), self.caches, strict=True):
            x = x + self._attend(mixer, block.mixer_norm(x), keys, values, position)  # type: ignore[operator]
            x = x + block.feed_forward(x)  # type: ignore[operator]
        return F.linear(self.model.norm(x), self.model.embedding.weight)

    @staticmethod
    def _attend(mixer: Attention, x: Tensor, keys: Tensor, values: Tensor, position: int) -> Tensor:
        qkv = torch.cat([mixer.to_q(x), mixer.to_kv(x)], -1).view(1, 1, 3, mixer.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        at = torch.tensor([[position]])
        keys[:, :, position : position + 1] = mixer.rotary(k, at)
        values[:, :, position : position + 1] = v
        seen = slice(0, position + 1)
        y = F.scaled_dot_product_attention(mixer.rotary(q, at), keys[:, :, seen], values[:, :, seen])
        return mixer.to_out(y.transpose(1, 2).flatten(2))


def _attention(model: LanguageModel) -> list[Attention]:
    return [mixer for mixer in model.mixers if isinstance(mixer, Attention)]


@benchmark("decode")
def decode(progress: Progress) -> Benchmark:
    """Time per token against the context, of each architecture and of a transformer with a preallocated cache."""
    hidden = equal_hidden()
    calls = _cached(system(YARDSTICK, hidden[YARDSTICK]))
    names = [name for name in OWN if name != YARDSTICK]
    states = {}
    for name in names:
        more, states[name] = _with_state(name, system(name, hidden[name]).eval(), progress)
        calls |= more
    total, done = (ROUNDS + 1) * len(calls), itertools.count()
    times = take_turns(calls, ROUNDS, lambda what: progress(what, next(done), total))
    us = {what: 1e6 * own.median / TOKENS for what, own in times.items()}
    crossings = {name: _crossing(name, times) for name in names}
    rows = [_row(context, us, names) for context in CONTEXTS]
    rows.append(("faster from", "", *(describe(crossings[name], CONTEXTS) for name in names)))
    rows.append(("state, KiB", f"{_cache_kib(CONTEXTS[-1]):,.0f}", *(f"{states[n] / 1024:,.0f}" for n in names)))
    notes = (
        f"Microseconds per token, one token per call ({SHAPE}; models of as many parameters, one row, no gradients), "
        f"{torch.get_num_threads()} thread(s), medians of {ROUNDS} rounds of {TOKENS} tokens in which all take turns. "
        "The transformer reads a cache of the context's length, filled with random numbers and written in place. "
        f"The others have read {' and '.join(f'{n:,}' for n in REACHED)} tokens; their states have one size, so "
        "their lines go on level, faint and without a mark beyond the last measurement. Faster from: the least context "
        "beyond which a model decodes faster than the transformer, interpolated, over the rounds."
    )
    data = {
        "parameters": system(YARDSTICK, hidden[YARDSTICK]).num_parameters(),
        "us": us,
        "faster_from": {name: vars(spread) for name, spread in crossings.items()},
    }
    return Benchmark("Decoding", ("context", YARDSTICK, *names), tuple(rows), notes, data, plots=(_plot(us, names),))


def call(name: str, context: int) -> str:
    """Name a timed call."""
    return f"{name} after {context:,} tokens"


def _cached(model: LanguageModel) -> dict[str, Callable[[], object]]:
    return {call(YARDSTICK, n): partial(Cached(model, n, TOKENS).read, _ids(TOKENS)) for n in CONTEXTS}


def _with_state(name: str, model: LanguageModel, progress: Progress) -> tuple[dict[str, Callable[[], object]], int]:
    """Decoding from states after `REACHED` tokens, and the bytes of each such state."""
    calls, state, read, sizes = {}, None, 0, set()
    for context in REACHED:
        for part in _ids(context - read).split(CHUNK, 1):
            progress(f"{name} reads {context:,} tokens", 0, 1)
            with torch.no_grad():
                _, state = model(part, state)
        read = context
        sizes.add(tuple(x.shape for x in tensors(state)))
        calls[call(name, context)] = partial(_read, model, _ids(TOKENS), state)
    if len(sizes) > 1 or state is None:
        raise RuntimeError(f"the state of {name} grew from {REACHED[0]} to {REACHED[-1]} tokens.")
    return calls, state.bytes


@torch.no_grad()
def _read(model: LanguageModel, ids: Tensor, state: Any) -> None:
    step_by_step(model, ids, state)


def _ids(tokens: int) -> Tensor:
    return torch.randint(SIZES["vocab_size"], (1, tokens), generator=torch.Generator().manual_seed(tokens))


def _crossing(name: str, times: dict[str, Times]) -> Spread:
    """The crossing of each round: the model's mean over its contexts against the transformer's line."""
    lengths = []
    for i in range(ROUNDS):
        own = sum(times[call(name, n)].seconds[i] for n in REACHED) / len(REACHED)
        yardstick = [times[call(YARDSTICK, n)].seconds[i] for n in CONTEXTS]
        lengths.append(crossing(CONTEXTS, [own] * len(CONTEXTS), yardstick))
    return Spread.of(lengths)


def _row(context: int, us: dict[str, float], names: list[str]) -> tuple[str, ...]:
    own = (f"{us[call(name, context)]:,.0f}" if context in REACHED else "" for name in names)
    return (f"{context:,}", f"{us[call(YARDSTICK, context)]:,.0f}", *own)


def _plot(us: dict[str, float], names: list[str]) -> Lines:
    lines = {YARDSTICK: [[n, us[call(YARDSTICK, n)]] for n in CONTEXTS]}
    lines |= {name: [[n, us[call(name, n)]] for n in REACHED] for name in names}
    beyond = {name: [[CONTEXTS[-1], lines[name][-1][1]]] for name in names}  # the state has one size
    return Lines("Decoding", "tokens of context", "microseconds per token", lines, beyond)


def _cache_kib(context: int) -> float:
    return 2 * SIZES["depth"] * SIZES["dim"] * context * 4 / 1024
