"""Numbers beyond the range of floats: located by token, row, layer and head, and reported."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import memkit
from ablations.settings import TrainConfig
from ablations.train import begin, train
from memkit import DivergedError, find_divergence
from memkit.divergence import GenerationDivergedError
from memkit.state import tensors

VOCAB, TOKENS = 16, 40
ARCHITECTURES = {"lmm": {}, "mac": {"segment": 8}, "mag": {"window": 8}, "mal": {"window": 8}}


def model(name: str = "lmm", wild: float = 14.0) -> Any:
    """Two layers of two heads, of which head 1 of layer 1 learns e^wild times too fast."""
    torch.manual_seed(0)
    made = memkit.build("architecture", name, vocab_size=VOCAB, dim=16, depth=2, heads=2, **ARCHITECTURES[name])
    with torch.no_grad():
        for key, parameter in made.named_parameters():
            if key.startswith("blocks.1") and key.endswith("lr_scale"):
                parameter[1] += wild
    return made


def text(batch: int = 2) -> Tensor:
    return torch.randint(VOCAB, (batch, TOKENS), generator=torch.Generator().manual_seed(0))


def finite(tree: Any) -> bool:
    return all(bool(x.isfinite().all()) for x in tensors(tree) if x.is_floating_point())


def first_bad_token(made: Any, ids: Tensor) -> tuple[int, int]:
    """Token and row, found the long way: one token after the other."""
    state = made.init_state(len(ids))
    for token in range(ids.shape[1]):
        logits, state = made(ids[:, token : token + 1], state)
        for row in range(len(ids)):
            if not finite((logits[row], state.select([row]))):
                return token, row
    raise AssertionError("nothing diverged")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_place_is_found_in_every_architecture(name: str) -> None:
    made, ids = model(name), text()
    found = find_divergence(made, ids)
    assert found is not None
    assert (found.token, found.row) == first_bad_token(made, ids)
    assert (found.layer, found.head) == (1, 1)
    assert str(found).startswith("layer 1 (blocks.1.mixer")
    assert str(found).endswith(f", head 1, diverged at token {found.token} of row {found.row}")
    with torch.no_grad():
        before = made(ids[:, : found.token])[1]
    assert finite(before)
    assert all(torch.equal(a, b) for a, b in zip(tensors(found.state), tensors(before), strict=True))


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    assert find_divergence(model(wild=0.0), text()) is None
    assert find_divergence(model(), text()[:, :0]) is None


def test_masked_tokens_count_but_are_not_to_blame() -> None:
    made, ids = model(), text(1)
    alone = find_divergence(made, ids)
    assert alone is not None and alone.token is not None
    padded = torch.cat([ids[:, :5], ids], 1)
    mask = torch.arange(TOKENS + 5)[None] >= 5
    found = find_divergence(made, padded, mask=mask)
    assert found is not None and found.token == alone.token + 5


def test_a_mixer_alone_is_searched_like_a_model() -> None:
    mixer = model().mixers[1]
    found = find_divergence(mixer, torch.randn(2, TOKENS, 16))
    assert found is not None and found.token is not None
    assert (found.layer, found.head) == (0, 1)


def test_a_weight_or_state_that_is_broken_already_is_named() -> None:
    made, ids = model(wild=0.0), text()
    state = made(ids[:, :3])[1]
    mixed = state.layers[1]
    weights = {name: weight.clone() for name, weight in mixed.memory.weights.items()}
    weights["w2"][1, 0, 2, 3] = math.inf
    broken = replace(state, layers=(state.layers[0], replace(mixed, memory=replace(mixed.memory, weights=weights))))
    found = find_divergence(made, ids, broken)
    assert str(found) == "before the first token the state's layers.1.memory.weights.w2, head 0, is not finite"
    with torch.no_grad():
        made.blocks[0].mixer_norm.weight[2] = math.nan
    assert str(find_divergence(made, ids)) == "the parameter blocks.0.mixer_norm.weight is not finite"


def test_what_lies_between_the_layers_is_told_apart_from_them() -> None:
    made = model(wild=0.0)
    with torch.no_grad():
        made.blocks[0].feed_forward[1].out.weight.fill_(1e38)
    found = find_divergence(made, text())
    assert found is not None and (found.token, found.layer, found.head) == (0, None, None)
    assert str(found) == "a part between the layers, or the head, diverged at token 0 of row 0"


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 3}])
@pytest.mark.parametrize("prompt", [4, TOKENS])
def test_generation_says_where_and_loses_nothing(options: dict[str, Any], prompt: int) -> None:
    made, ids = model(), text()[:, :prompt]
    draw = {**options, "generator": torch.Generator().manual_seed(0)}
    with pytest.raises(
        DivergedError, match=r"head 1, diverged at token \d+ of row \d. Of a memory, surprise_limit"
    ) as e:
        made.generate(ids, max_new_tokens=TOKENS, **draw)
    error = e.value
    assert isinstance(error, GenerationDivergedError) and error.where is not None and error.where.token is not None
    kept = error.ids.shape[1]
    assert kept == error.where.token + 1
    assert torch.equal(error.ids[:, :prompt], ids[:, :kept])
    assert first_bad_token(made, error.ids)[0] == kept - 1
    assert finite(error.state) and finite(made(error.ids[:, :-1])[0])
    with pytest.raises(DivergedError, match="diverged at token 0"):
        made.generate(error.ids[:, -1:], state=error.state, max_new_tokens=1)
    if prompt < kept:  # what was drawn is what a shorter call draws
        draw["generator"] = torch.Generator().manual_seed(0)
        assert torch.equal(made.generate(ids, max_new_tokens=kept - prompt, **draw)[0], error.ids)


def test_a_prompt_that_is_only_read_is_looked_at_too() -> None:
    with pytest.raises(DivergedError, match="layer 1"):
        model().generate(text(), max_new_tokens=0)


def test_generation_under_a_mask() -> None:
    mask = torch.tensor([[False, True, True], [True, True, True]])
    with pytest.raises(DivergedError, match="layer 1"):
        model().generate(text()[:, :3], mask=mask, max_new_tokens=TOKENS)


def test_training_says_where_and_keeps_what_was_computed() -> None:
    settings = TrainConfig(steps=4, batch=3, eval_every=2, lr=1e-3)
    task = memkit.build("task", {"name": "recall", "length": 32, "pairs": 3, "vocab_size": VOCAB})
    training = begin(model(wild=0.0), settings)
    train(training, task, settings.model_copy(update={"steps": 2}))
    with torch.no_grad():
        training.model.blocks[1].mixer.inner.gates.lr_scale[1] += 20  # type: ignore[union-attr, index]
    with pytest.raises(DivergedError) as e:
        train(training, task, settings, name="lmm")
    assert re.match(
        r"lmm diverged at step 3 of 4: loss nan, gradient norm nan\. First, layer 1 \(blocks.1.mixer\), head 1, "
        r"diverged at token \d+ of row \d\. A smaller lr, .* may help\. Of a memory, surprise_limit=1.0 bounds",
        str(e.value),
    )
    assert [row.step for row in training.history] == [2]
    assert training.step == 2 and all(finite(parameter.detach()) for parameter in training.model.parameters())


def test_held_out_rows_that_alone_diverge_are_searched_too() -> None:
    settings = TrainConfig(steps=1, batch=3)
    task = memkit.build("task", {"name": "recall", "length": 32, "pairs": 3, "vocab_size": VOCAB})
    training = begin(model(wild=0.0), settings)

    def break_a_head(step: int, loss: float) -> None:
        with torch.no_grad():
            training.model.blocks[1].mixer.inner.gates.lr_scale[1] += 20  # type: ignore[union-attr, index]

    message = r"at step 1 of 1: held-out \{'accuracy': .*nan\}\. First, layer 1 \(blocks.1.mixer\), head 1, diverged"
    with pytest.raises(DivergedError, match=message):
        train(training, task, settings, on_step=break_a_head)
    assert training.step == 1 and training.history == []


def test_training_whose_gradient_alone_is_not_finite_says_so() -> None:
    settings = TrainConfig(steps=2, batch=3)
    task = memkit.build("task", {"name": "recall", "length": 32, "pairs": 3, "vocab_size": VOCAB})
    training = begin(model(wild=0.0), settings)
    training.model.embedding.weight.register_hook(lambda gradient: gradient * math.inf)  # type: ignore[union-attr]
    with pytest.raises(DivergedError, match="gradient norm (nan|inf). The forward pass, run again, is finite. A"):
        train(training, task, settings)
