"""Rules beside independent implementations: numbers stored from the torch code of transformers 5, in float32."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import memkit
from peer_tokens import BATCH, HEADS, KEY, VALUE, peer_tokens, slopes

KEPT = json.loads((Path(__file__).parents[1] / "data" / "transformers.json").read_text(encoding="utf-8"))
NEAR = 5e-6
"""Of the largest number: they compute in float32, and keep 6 digits behind the point."""


@pytest.mark.parametrize("name", [name for name in KEPT if name != "made by"])
def test_a_rule_is_what_transformers_computes(name: str) -> None:
    leaves = {key: x.double().requires_grad_() for key, x in peer_tokens().items()}
    rule = memkit.build("rule", name)
    state = memkit.init_state(rule, batch=BATCH, heads=HEADS, key_dim=KEY, value_dim=VALUE, dtype=torch.double)
    state = replace(state, weights={"w1": leaves["state"]})
    keep = leaves["keep_key" if rule.gates["decay"].per == "key" else "keep"]
    gates = {"lr": leaves["lr"], "decay": 1 - keep}
    y, state = memkit.memorize(rule, leaves["q"], leaves["k"], leaves["v"], gates, state, block_size=8)
    after = state.weights["w1"]
    found = {"y": y, "state after": after, **slopes(y, after, leaves)}
    assert found.keys() == KEPT[name].keys()
    for key, x in found.items():
        reference = torch.tensor(KEPT[name][key], dtype=torch.double).view_as(x)
        worst = float((x.detach() - reference).abs().max() / reference.abs().max())
        assert worst <= NEAR, f"{key} differs by {worst:.1e} of the largest"
