"""Rules of matrix memories inside the mixer that makes their queries, keys, values and gates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import memkit
from memkit.rule import as_given

HERE = Path(__file__).parent
# No gate, gates with and without defaults, gates per pair and per key channel, several pairs and steps a token.
NAMES = ("linear_attention", "retnet", "gla", "delta_net", "delta_product", "kda", "rwkv7", "ttt_linear")


def test_every_registered_rule_has_a_textbook() -> None:
    """`test_recurrence` holds Titans to numpy, and the `test_textbook` files the others to plain loops."""
    books = [*HERE.glob("test_textbook*.py"), HERE / "test_recurrence.py"]
    text = "\n".join(book.read_text(encoding="utf-8") for book in books)
    assert [
        name for name in memkit.names("rule") if f'"rule", "{name}"' not in text and f'build("{name}"' not in text
    ] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_rule_by_name_makes_a_mixer_whose_every_parameter_learns(name: str) -> None:
    torch.manual_seed(0)
    mixer = memkit.build("mixer", "neural_memory", dim=8, heads=2, rule=name)
    x = torch.randn(2, 20, 8)
    y, _ = mixer(x, mixer.init_state(2))
    y.square().sum().backward()
    idle = [key for key, p in mixer.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert idle == []


def test_gates_per_pair_need_a_step_for_each() -> None:
    rule = memkit.build("rule", "delta_product")
    with pytest.raises(ValueError, match=r"the gates \['lr'\] are per pair, and a write meets one number"):
        replace(rule, prepare=as_given)
