"""States that do not belong to a layer are refused with reasons; batches without rows are allowed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import memkit
from memkit.mixers.specs import mixer_config
from memkit.rule import Gate
from registered import DIM, HEADS, RULES, VOCAB, architecture, mixer
from running_mean import RunningMean

MIXERS, ARCHITECTURES = memkit.names("mixer"), memkit.names("architecture")
MATRIX = {"name": "titans", "depth": 1}


def layer(name: str, dim: int = DIM, **options: Any) -> Any:
    return mixer_config({"name": name, **options}, dim, HEADS).build()


@pytest.mark.parametrize("name", MIXERS)
def test_states_of_other_mixers_are_refused(name: str) -> None:
    made, x = mixer(name)(), torch.zeros(2, 3, DIM)
    for other in (RunningMean(dim=DIM).init_state(2), made.init_state(2).segment, 3):
        with pytest.raises(
            ValueError, match=rf"goes on from its own \w+; got {type(other).__name__}\. Use a state that"
        ):
            made(x, other)
    with pytest.raises(ValueError, match=r"the state has 3 rows and x has 2\. Use state\.select"):
        made(x, made.init_state(3))


@pytest.mark.parametrize("name", MIXERS)
def test_a_state_of_another_width_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="the state"):
        layer(name)(torch.zeros(2, 3, DIM), layer(name, 2 * DIM).init_state(2))


@pytest.mark.parametrize(
    ("name", "one", "other", "message"),
    [
        (
            "sliding_window",
            {"window": 3},
            {"window": 5},
            r"cache is \(2, 4, 4\) a row .* and this layer's is \(2, 2, 4\)",
        ),
        ("full_attention", {}, {"heads": 4}, r"cache is \(4, 0, 2\) a row .* and this layer's is \(2, 0, 4\)"),
        ("mag", {"window": 3}, {"window": 5}, "the state's cache is"),
        ("mac", {"segment": 4}, {"segment": 5}, "of segments of 5 tokens, and this layer's have 4"),
        ("neural_memory", {"conv": 4}, {"conv": 3}, r"convolution keeps \(2, 24\) .*, and this layer's \(3, 24\)"),
        ("neural_memory", {"conv": 0}, {"conv": 0, "rule": MATRIX}, "need weights"),
        ("mamba2", {"conv": 0}, {"conv": 0, "state": 8}, "another size: its convolution keeps"),
        ("persistent", {"mixer": "sliding_window"}, {"mixer": "mamba2"}, "its own AttentionState; got Mamba2State"),
    ],
)
def test_a_state_of_another_size_is_refused(
    name: str, one: dict[str, Any], other: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        layer(name, **one)(torch.zeros(2, 3, DIM), layer(name, **other).init_state(2))


@pytest.mark.parametrize("x", [[[0.0] * DIM], torch.zeros(2, 3, DIM).long()])
def test_inputs_that_are_not_sequences_are_refused(x: Any) -> None:
    with pytest.raises(ValueError, match=r"RunningMean takes a floating-point tensor x \[B, T, D\]; got"):
        RunningMean(dim=DIM)(x)


@pytest.mark.parametrize("name", MIXERS)
def test_counts_below_nought_are_refused(name: str) -> None:
    made = mixer(name)()
    with pytest.raises(ValueError, match="batch must be an integer of at least 0; got -1"):
        made.init_state(-1)
    with pytest.raises(ValueError, match="tokens must be an integer of at least 0; got -1"):
        made.state_bytes(-1)


def test_another_models_state_is_refused_before_any_work() -> None:
    model, other = architecture("mamba2")(), architecture("transformer")()
    model.embedding.register_forward_hook(lambda *_: pytest.fail("worked on bad input"))
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="Mamba2 goes on from its own Mamba2State; got AttentionState"):
            call(torch.zeros(1, 2).long(), state=other.init_state(1))


def gate(gate: Gate, pairs: int) -> Tensor:
    axes = {"head": (), "key": (DIM,), "value": (DIM,), "pair": (pairs,)}
    return torch.zeros(0, 5, HEADS, *axes[gate.per])


@pytest.mark.parametrize("name", RULES)
def test_a_batch_without_rows(name: str) -> None:
    rule = RULES[name]
    state = memkit.init_state(rule, batch=2, heads=HEADS, key_dim=DIM, value_dim=DIM).select([])
    q, kv = torch.zeros(0, 5, HEADS, DIM), torch.zeros(0, 5, HEADS, DIM * rule.pairs)
    gates = {each.name: gate(each, rule.pairs) for each in rule.gates.values()}
    y, state = memkit.memorize(rule, q, kv, kv, gates, state)
    assert y.shape == q.shape
    assert memkit.retrieve(rule, state, q).shape == q.shape
    assert memkit.observe(rule, q, kv, kv, gates, state).surprise.shape == (0, 5, HEADS)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ids_without_rows(name: str) -> None:
    model, ids = architecture(name)(), torch.zeros(0, 5).long()
    logits, state = model(ids)
    assert logits.shape == (0, 5, VOCAB)
    assert model.generate(ids, state=state, max_new_tokens=2)[0].shape == (0, 7)
