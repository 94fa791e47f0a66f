"""Every architecture over 45 tokens, which cross mini-batches, segments and windows, with weights 3 times larger."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import memkit
from compare import near
from registered import VOCAB

TOKENS, SEED = 45, 5
SIZES = {"dim": 16, "heads": 2, "depth": 2, "vocab_size": VOCAB}
OPTIONS: dict[str, dict[str, Any]] = {
    "hybrid": {"pattern": ["neural_memory", {"name": "sliding_window", "window": 12}]},
    "mac": {"segment": 12},
    "mag": {"window": 12},
    "mal": {"window": 12},
    "sliding_window": {"window": 12},
    "bank": {"levels": [1, 8]},
    "tnt": {"chunk": 8, "shards": [20]},
}
ARCHITECTURES = memkit.names("architecture")


@cache
def model(name: str) -> Any:
    """In float64, with the options that models are made with but for windows shorter than the text."""
    torch.manual_seed(SEED)
    made = memkit.build("architecture", name, **SIZES, **OPTIONS.get(name, {})).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(3)
    return made


def text() -> Tensor:
    return torch.randint(VOCAB, (2, TOKENS), generator=torch.Generator().manual_seed(SEED))


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_any_cut_gives_the_same_logits(name: str) -> None:
    made, ids = model(name), text()
    whole, state = made(ids)[0], None
    for t in range(TOKENS):
        near(made(ids[:, t:], state)[0], whole[:, t:])
        y, state = made(ids[:, t : t + 1], state)
        near(y, whole[:, t : t + 1])


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_architectures_are_causal(name: str) -> None:
    made, ids = model(name), text()
    whole = made(ids)[0]
    for t in (7, 12, 31, TOKENS - 1):
        other = ids.clone()
        other[:, t] = (ids[:, t] + 1) % VOCAB
        change = (made(other)[0] - whole).abs()
        assert change[:, :t].max() <= 1e-12 * whole.abs().max()
        assert change[:, t].max() > 1e-3 * whole.abs().max()  # it does read what it is given
