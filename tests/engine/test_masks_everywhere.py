"""Masks and documents where the laws' small problems do not reach.

Laws hold every registered component to masked tokens, left padding and packed documents, with a few tokens and one set
of options each. Here are options that change what happens under a mask (every form of the engine, convolutions,
windows shorter than the call, persistent tokens around anything), and models in use: prompts padded on the left,
documents across many calls, rows chosen from a state whose rows have read different numbers of tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import memkit
from compare import GRADIENTS, near
from memkit.mixers.specs import mixer_config
from memkit.rule import Rule
from memkit.testing import MixerProblem, same_trees
from memkit.testing.laws import sequence_masks as laws
from registered import DIM, HEADS, VOCAB, architecture

MATRIX = {"name": "titans", "depth": 1, "mini_batch": 4}
ONLINE: Rule = memkit.build("rule", "titans", depth=1, mini_batch=1)
DEEP = {"name": "titans", "expansion": 2, "mini_batch": 1, "surprise_limit": 0.5}
ARCHITECTURES = memkit.names("architecture")

LAYERS: dict[str, dict[str, Any]] = {
    "dual, read before": {"name": "neural_memory", "rule": {**MATRIX, "read": "before"}},
    "solve": {"name": "neural_memory", "rule": ONLINE, "conv": 9},
    "iterate": {"name": "neural_memory", "rule": DEEP},
    "write": {"name": "neural_memory", "rule": replace(ONLINE, update_every=5)},
    "omega": {"name": "neural_memory", "rule": replace(ONLINE, mini_batch=3, window=4)},
    "window shorter than a block": {"name": "sliding_window", "window": 5, "conv": 3},
    "window longer than the call": {"name": "sliding_window", "window": 60},
    "everything, convolved": {"name": "full_attention", "conv": 4},
    "mamba2 without convolution": {"name": "mamba2", "state": 4, "conv": 0},
    "mac, a segment a token": {"name": "mac", "rule": MATRIX, "segment": 1},
    "mac, writes across segments": {"name": "mac", "rule": replace(ONLINE, update_every=7), "segment": 5},
    "mal, online": {"name": "mal", "rule": DEEP, "window": 5},
    "tnt by chunks": {"name": "tnt", "rule": MATRIX, "shards": [8, 12], "chunk": 5, "span": "chunk"},
    "persistent attention": {"name": "persistent", "tokens": 3, "mixer": {"name": "sliding_window", "window": 5}},
    "persistent mac": {"name": "persistent", "tokens": 3, "mixer": {"name": "mac", "rule": MATRIX, "segment": 5}},
    "persistent tnt": {"name": "persistent", "tokens": 3, "mixer": {"name": "tnt", "rule": MATRIX, "shards": [8]}},
    "persistent mamba2": {"name": "persistent", "tokens": 3, "mixer": {"name": "mamba2", "state": 4}},
}
HOLES = MixerProblem(batch=2, tokens=37, prefix=6, cuts=(9, 20), gain=1, seed=3)
DOCUMENTS = replace(HOLES, tokens=16, cuts=(6, 11))
LAWS = ((laws.masked_token, HOLES), (laws.left_padding, HOLES), (laws.documents_apart, DOCUMENTS))


@pytest.mark.parametrize(("law", "problem"), LAWS, ids=[law.__name__ for law, _ in LAWS])
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str, law: Callable[[Any, MixerProblem], None], problem: MixerProblem) -> None:
    law(problem.build(mixer_config(LAYERS[name], DIM, HEADS).build), problem)


@pytest.mark.parametrize(
    "name", sorted(LAYERS.keys() - {"everything, convolved"})
)  # whose cache has a slot for every token
@torch.no_grad()
def test_masked_tokens_leave_no_trace_in_the_state(name: str) -> None:
    layer = HOLES.build(mixer_config(LAYERS[name], DIM, HEADS).build)
    x, real = HOLES.inputs(layer), HOLES.mask()
    state = HOLES.state_after_prefix(layer)
    _, together = layer(HOLES.spoiled(x, real), state, mask=real)
    for b in range(HOLES.batch):
        row = slice(b, b + 1)
        _, alone = layer(x[row, real[b]], state.select(row))
        same_trees(f"state of row {b}", together.select(row), alone)


def model(name: str) -> Any:
    """A model in float64 whose weights are larger than at initialization."""
    return HOLES.enlarged(HOLES.build(architecture(name)))


def text(batch: int, tokens: int) -> Tensor:
    return torch.randint(VOCAB, (batch, tokens), generator=HOLES.generator(1))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_prompts_padded_on_the_left_go_on_as_they_would_alone(name: str) -> None:
    made, ids, lengths = model(name), text(3, 14), (14, 6, 1)
    real = torch.stack([torch.arange(14) >= 14 - length for length in lengths])
    together, _ = made.generate(ids.masked_fill(~real, -5), max_new_tokens=8, mask=real)
    for b, length in enumerate(lengths):
        alone, _ = made.generate(ids[b : b + 1, 14 - length :], max_new_tokens=8)
        assert torch.equal(together[b, 14 - length :], alone[0])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_documents_across_calls_are_documents_apart(name: str) -> None:
    made, ids, g = model(name), text(2, 16), HOLES.generator(2)
    real = (torch.rand(16, 2, generator=g) < 0.75).T  # not contiguous
    real[:, 9:12] = False
    named = (torch.rand(2, 16, generator=g) < 0.15).int().cumsum(1, dtype=torch.int32)
    unread = {"mask": real, "segment_ids": named.masked_fill(~real, -9)}
    state, outputs = None, []
    for part in (slice(0, 5), slice(5, 5), slice(5, 6), slice(6, 9), slice(9, 12), slice(12, 16)):
        here = {key: value[:, part] for key, value in unread.items()}
        y, state = made(ids.masked_fill(~real, 999)[:, part], state, **here)
        outputs.append(y)
    together = torch.cat(outputs, 1)
    apart = torch.zeros_like(together)
    for b in range(2):
        for document in named[b].unique():
            places = ((named[b] == document) & real[b]).nonzero()[:, 0]
            if len(places):
                apart = apart.index_put((torch.tensor(b), places), made(ids[b : b + 1, places])[0][0])
    near(together, apart)
    weights = list(made.parameters())
    grads = [torch.autograd.grad(y.square().sum(), weights) for y in (together, apart)]
    near(*grads, tolerance=GRADIENTS)


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_a_call_of_masked_tokens_is_no_call(name: str) -> None:
    made, ids = model(name), text(2, 12)
    _, state = made(ids[:, :5], segment_ids=torch.full((2, 5), 4))
    nothing = {"mask": torch.zeros(2, 3, dtype=torch.bool), "segment_ids": torch.full((2, 3), 9)}
    y, after = made(ids[:, 5:8], state, **nothing)
    assert not y.any()
    for document in (4, 5):  # the same one, and a new one
        rest = {"segment_ids": torch.full((2, 4), document)}
        near(made(ids[:, 8:], after, **rest)[0], made(ids[:, 8:], state, **rest)[0])


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_rows_of_a_ragged_state_may_be_chosen_and_started_afresh(name: str) -> None:
    made, ids, later = model(name), text(3, 9), text(4, 4)
    real = torch.rand(3, 9, generator=HOLES.generator(3)) < 0.6
    _, state = made(ids, mask=real)
    chosen, afresh = [2, 0, 1, 2], [False, True, False, False]
    y, _ = made(later, made.reset(state.select(chosen), torch.tensor(afresh)))
    for row, (b, new) in enumerate(zip(chosen, afresh, strict=True)):
        before = ids[b][real[b]][:0] if new else ids[b][real[b]]
        near(y[row], made(torch.cat([before, later[row]])[None])[0][0, -4:])
