"""A state keeps alive its own numbers only, and no storage of a longer call."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import memkit
from memkit.mixers.specs import mixer_config
from memkit.state import tensors

OPTIONS: dict[str, dict[str, Any]] = {"sliding_window": {"window": 8}, "mag": {"window": 8}, "mal": {"window": 8}}
GROWING = ("full_attention",)  # its state is all tokens, by design


def addressed(state: Any) -> int:
    """Bytes of all storages that a state's tensors lie in."""
    storages = [x.untyped_storage() for x in tensors(state)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.mark.parametrize("name", [name for name in memkit.names("mixer") if name not in GROWING])
@torch.no_grad()
def test_memory_of_a_state_does_not_depend_on_the_length_of_the_call(name: str) -> None:
    torch.manual_seed(0)
    mixer = mixer_config({"name": name, **OPTIONS.get(name, {})}, 8, 2).build()
    short, long = (addressed(mixer(torch.randn(1, tokens, 8))[1]) for tokens in (320, 576))
    assert short == long
