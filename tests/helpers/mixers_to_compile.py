"""Every mixer at a small size, for tests of compilation and of device synchronization."""

from __future__ import annotations

from typing import Any

import torch

from memkit.mixers.specs import mixer_config

DIM, HEADS, PERIOD = 8, 2, 3
RULE = {"name": "titans", "mini_batch": PERIOD, "expansion": 2}
MATRIX = RULE | {"depth": 1}
OPTIONS: dict[str, dict[str, Any]] = {
    "neural_memory": {"rule": RULE},
    "sliding_window": {"window": 3},
    "persistent": {"mixer": {"name": "neural_memory", "rule": MATRIX}, "tokens": 2},
    "mac": {"rule": MATRIX, "segment": PERIOD},
    "mag": {"rule": MATRIX, "window": 3},
    "mal": {"rule": MATRIX, "window": 3},
    "local_memory": {"rule": MATRIX, "shard": PERIOD},
    "bank": {"rule": MATRIX, "levels": (1, PERIOD)},
    "tnt": {"rule": MATRIX, "chunk": PERIOD, "shards": (PERIOD,)},
}


def mixer(name: str) -> Any:
    torch.manual_seed(0)
    return mixer_config({"name": name, **OPTIONS.get(name, {})}, DIM, HEADS).build().double()
