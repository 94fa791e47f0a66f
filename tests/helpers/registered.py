"""All registered components, and further rules, at the sizes of the laws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

import memkit
from memkit.mixers.specs import mixer_config
from memkit.parts.optimizer import momentum
from memkit.parts.retention import decay
from memkit.rule import Rule, at_decayed, at_lookahead

DIM, HEADS, VOCAB = 8, 2, 7
DEEP = {"name": "titans", "mini_batch": 4, "expansion": 2}
MATRIX = {"name": "titans", "mini_batch": 4, "depth": 1}


def titans(**options: Any) -> Rule:
    return memkit.build("rule", "titans", **options)


ONLINE, MATRIX_RULE = titans(depth=1, mini_batch=1), titans(depth=1, mini_batch=3)

SMALL: dict[str, dict[str, Any]] = {
    "ttt_mlp": {"mini_batch": 3, "expansion": 2},
    "yaad": {"mini_batch": 3, "expansion": 2},
    "moneta": {"mini_batch": 3, "expansion": 2},
    "memora": {"mini_batch": 3, "expansion": 2},
    "omega": {"mini_batch": 3, "expansion": 2, "window": 3},
    "atlas": {"mini_batch": 3, "expansion": 2, "window": 3, "degree": 2},
    "lact": {"update_every": 3},
}
"""Options that bring mini-batches, writes and windows down to the length that laws are tried at."""

RULES = {name: memkit.build("rule", name, **SMALL.get(name, {})) for name in memkit.names("rule")} | {
    "titans online": ONLINE,
    "titans matrix": MATRIX_RULE,
    "titans deep online": titans(depth=2, expansion=2, mini_batch=1),
    "titans depth 3": titans(depth=3, expansion=2, mini_batch=4, activation="gelu"),
    "titans read before": titans(mini_batch=3, read="before", activation="relu"),
    "titans residual": titans(mini_batch=4, expansion=2, residual=True),
    "titans without momentum and decay": titans(mini_batch=4, optimizer="gradient_descent", retention="none"),
    "titans limited": titans(mini_batch=4, expansion=2, surprise_limit=0.5),
    "titans lookahead": replace(MATRIX_RULE, point=at_lookahead),
    "titans decay first": replace(MATRIX_RULE, point=at_decayed),
    "titans effective": replace(MATRIX_RULE, effective=torch.tanh),
    "titans effective before": replace(MATRIX_RULE, effective=torch.tanh, read="before"),
    "ttt_linear": memkit.build("rule", "ttt_linear", mini_batch=4),
    "delta_product not gated": memkit.build("rule", "delta_product", pairs=3, gated=False),
    "kda with momentum": replace(memkit.build("rule", "kda"), optimizer=momentum(), read="before"),
    "titans by channel": replace(MATRIX_RULE, retention=decay(per="key")),
    "titans window": replace(MATRIX_RULE, window=3),
    "every third": replace(ONLINE, update_every=3),
}

MIXERS: dict[str, dict[str, Any]] = {
    "neural_memory": {"rule": DEEP},
    "sliding_window": {"window": 3},
    "persistent": {"mixer": {"name": "neural_memory", "rule": MATRIX}, "tokens": 2},
    "mac": {"rule": MATRIX, "segment": 4},
    "mag": {"rule": MATRIX, "window": 3},
    "mal": {"rule": MATRIX, "window": 3},
    "local_memory": {"rule": DEEP, "shard": 5},
    "bank": {"rule": [MATRIX, MATRIX, {**DEEP, "surprise_limit": 0.5}], "levels": [1, 3, 4]},
    "tnt": {"rule": MATRIX, "local": [MATRIX, {**MATRIX, "mini_batch": 1}], "chunk": 3, "shards": [4, 6]},
}
"""Options that bring windows, segments and mini-batches down to the length that laws are tried at."""

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "hybrid": {"pattern": ["mamba2", {"name": "neural_memory", "rule": MATRIX}]},
    "lmm": {"rule": MATRIX, "persistent": 2},
    "mac": {"rule": DEEP, "persistent": 2, "segment": 4},
    "mag": {"rule": MATRIX, "persistent": 2, "window": 3},
    "mal": {"rule": MATRIX, "persistent": 2, "window": 3},
    "sliding_window": {"window": 3},
    "bank": {"rule": MATRIX, "levels": [1, 3], "persistent": 2, "depth": 1},
    "tnt": {"rule": MATRIX, "chunk": 3, "shards": [8], "span": "chunk", "persistent": 2, "depth": 1},
}


def mixer(name: str) -> Callable[[], Any]:
    return mixer_config({"name": name, **MIXERS.get(name, {})}, DIM, HEADS).build


def architecture(name: str) -> Callable[[], Any]:
    options = {"dim": DIM, "heads": HEADS, "depth": 2, "vocab_size": VOCAB, **ARCHITECTURES.get(name, {})}
    return partial(memkit.build, "architecture", name, **options)
