"""The page on how it works is right: its code runs, and equals the definition for other rules than the one shown."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import memkit
from memkit.rule import Rule
from pages import PAGES, blocks

TOLERANCE = 1e-12
MOST_LINES = 50  # of the five steps and the loop: the idea fits on one screen


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """The names that the page's program leaves behind; its own comparison has passed."""
    names: dict[str, Any] = {"__name__": "how_it_works"}
    for block in blocks(PAGES / "how_it_works.md", "python"):
        exec(compile(block, "how_it_works.md", "exec"), names)
    return names


def drawn(tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """q, k `[1, T, 1, 6]`, v `[1, T, 1, 5]` and gates `[1, T, 1]`, among them exact zeros."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(1, tokens, 1, *shape, generator=generator, dtype=torch.float64)

    q, k = (torch.nn.functional.normalize(draw(6) - 0.5, dim=-1) for _ in range(2))
    gates = {"lr": 0.2 * draw(), "momentum": 0.9 * draw(), "decay": 0.02 * draw()}
    gates["momentum"][:, 3::9], gates["decay"][:, 5::12], gates["decay"][:, 35:36] = 0, 0, 1
    return q, k, draw(5), gates


def distance(left: Tensor, right: Tensor) -> float:
    return float((left - right).abs().max())


@pytest.mark.parametrize(
    "rule",
    [
        memkit.build("rule", "titans", depth=2),
        memkit.build("rule", "titans", depth=3, expansion=2, activation="gelu"),
        memkit.build("rule", "titans", depth=1),
        memkit.build("rule", "titans", optimizer="heavy_ball", mini_batch=5),
        memkit.build("rule", "titans", depth=3, mini_batch=1),
    ],
    ids=["MLP 2", "MLP 3", "matrix", "another optimizer", "online"],
)
def test_it_is_the_definition(rule: Rule, page: dict[str, Any]) -> None:
    start = memkit.init_state(rule, batch=1, heads=1, key_dim=6, value_dim=5, dtype=torch.float64)
    _, state = memkit.memorize(rule, *drawn(rule.mini_batch, seed=1), start, form="scan")
    q, k, v, gates = drawn(40, seed=2)
    y, end = memkit.memorize(rule, q, k, v, gates, state, form="scan")

    weights = {name: weight[0, 0] for name, weight in state.weights.items()}
    slots = {name: slot[0, 0] for name, (slot,) in state.slots.items()}
    assert all(slot.abs().max() > 1e-3 for slot in slots.values())  # so that carried slots count
    one = {name: gate[0, :, 0] for name, gate in gates.items()}
    found, weights, slots = page["dual"](rule, weights, slots, q[0, :, 0], k[0, :, 0], v[0, :, 0], one)

    assert 1e-2 < float(y.abs().max()) < 10
    assert distance(found, y[0, :, 0]) < TOLERANCE
    for name in end.weights:
        assert distance(weights[name], end.weights[name][0, 0]) < TOLERANCE
        assert distance(slots[name], end.slots[name][0][0, 0]) < TOLERANCE


def test_a_wrong_effect_is_seen(page: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    unroll = page["unroll"]
    monkeypatch.setitem(page, "unroll", lambda A, b: unroll(A, 1.01 * b))
    with pytest.raises(AssertionError):
        test_it_is_the_definition(memkit.build("rule", "titans"), page)


def test_it_is_short() -> None:
    code = [line for block in blocks(PAGES / "how_it_works.md", "python")[:-1] for line in block.splitlines()]
    assert len([line for line in code if line.strip()]) <= MOST_LINES
