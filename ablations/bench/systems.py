"""The whole models in benchmarks: each architecture of Titans, and a transformer with as many parameters."""

from __future__ import annotations

from typing import Any

import torch

import memkit
from architectures.language_model import LanguageModel

YARDSTICK = "transformer"
SIZES = {"vocab_size": 256, "dim": 256, "heads": 4, "depth": 2}
RULE = {"name": "titans", "depth": 2, "expansion": 4, "mini_batch": 64}
OWN: dict[str, dict[str, Any]] = {
    YARDSTICK: {},
    "lmm": {"rule": RULE},
    "mac": {"rule": RULE, "segment": 64},
    "mag": {"rule": RULE, "window": 64},
    "mal": {"rule": RULE, "window": 64},
}
SHAPE = "2 layers, dim 256, 4 heads; memory MLP depth 2 x 4, mini-batches, segments and windows of 64; float32"


def system(name: str, hidden: int) -> LanguageModel:
    """Build one model with `hidden` hidden units per feed-forward, from seed 0."""
    torch.manual_seed(0)
    sizes = {**SIZES, **OWN[name], "feed_forward": hidden / SIZES["dim"]}
    return memkit.build("architecture", name, **sizes)


def equal_hidden() -> dict[str, int]:
    """Return each model's hidden units per feed-forward: more for smaller mixers, so that all models are as large."""
    unit = 3 * SIZES["dim"] * SIZES["depth"]  # parameters of one hidden unit, in all layers
    hidden = 8 * round(SIZES["dim"] / 3)  # the usual 8/3 of the width
    count = {name: system(name, hidden).num_parameters() for name in OWN}
    largest = max(count.values())
    return {name: hidden + 8 * round((largest - own) / unit / 8) for name, own in count.items()}
