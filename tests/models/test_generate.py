"""Generation: its output, its use of a state, and the model left unchanged."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compare import near
from memkit.state import tensors
from small_model import VOCAB, model, text


def test_greedy_generation_is_the_likeliest_token_each_time() -> None:
    made, ids = model(), text(3, 4)
    found, state = made.generate(ids, max_new_tokens=5)
    assert torch.equal(found[:, :4], ids)
    for _ in range(5):
        ids = torch.cat([ids, made(ids)[0][:, -1:].argmax(-1)], 1)
    assert torch.equal(found, ids)
    near(state, made(ids[:, :-1])[1])  # it has read all but the last
    assert not any(x.requires_grad for x in tensors(state))


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"temperature": 0.7, "top_k": 3}])
@pytest.mark.parametrize("first", [0, 1, 4])
def test_generation_goes_on_from_its_state(options: dict[str, Any], first: int) -> None:
    made, ids = model(), text(3, 4)
    draw = lambda: {**options, "generator": torch.Generator().manual_seed(5)}  # noqa: E731
    whole, end = made.generate(ids, max_new_tokens=9, **draw())
    shared = draw()
    start, state = made.generate(ids, max_new_tokens=first, **shared)
    rest, state = made.generate(start[:, -1:], max_new_tokens=9 - first, state=state, **shared)
    assert torch.equal(torch.cat([start, rest[:, 1:]], 1), whole)
    near(state, end)


def test_prompts_of_unequal_lengths_are_padded_on_the_left() -> None:
    made, ids = model(), text(2, 5)
    mask = torch.tensor([[False, False, True, True, True], [True] * 5])
    found, _ = made.generate(ids, max_new_tokens=4, mask=mask)
    for row, start in ((0, 2), (1, 0)):
        alone, _ = made.generate(ids[row : row + 1, start:], max_new_tokens=4)
        assert torch.equal(found[row, 5:], alone[0, 5 - start :])
    _, none = made.generate(ids, max_new_tokens=0, mask=mask)
    near(none, made(ids[:, :-1], mask=mask[:, :-1])[1])


def test_sampling_follows_the_probabilities() -> None:
    made, ids = model(), text(1, 3).expand(20_000, 3)
    options: dict[str, Any] = {"max_new_tokens": 1, "temperature": 2.0}
    logits = made(ids[:1])[0][0, -1].detach() / 2
    for top_k in (None, 1, 4, 99):
        g = torch.Generator().manual_seed(0)
        found = made.generate(ids, top_k=top_k, generator=g, **options)[0][:, -1]
        least = logits.topk(min(top_k or VOCAB, VOCAB)).values[-1]
        expected = torch.where(logits >= least, logits, -torch.inf).softmax(-1)
        frequency = found.bincount(minlength=VOCAB) / len(found)
        assert (frequency - expected).abs().max() < 0.012  # three and a half standard deviations of 20,000 draws
        assert frequency[expected == 0].sum() == 0


@pytest.mark.parametrize("temperature", [1e-300, 1e-3, 1e300])
def test_no_temperature_overflows(temperature: float) -> None:
    made, ids = model().float(), text(2, 3)
    found, _ = made.generate(ids, max_new_tokens=3, temperature=temperature)
    if temperature < 1:
        assert torch.equal(found, made.generate(ids, max_new_tokens=3)[0])


def test_generation_leaves_modes_and_gradients_alone() -> None:
    made = model()
    made.blocks[0].eval()  # frozen by the user
    modes = [module.training for module in made.modules()]
    seen = []
    made.blocks[1].register_forward_hook(lambda block, _, __: seen.append((block.training, torch.is_grad_enabled())))
    made.generate(text(1, 2), max_new_tokens=1)
    assert seen == [(False, False)]
    assert [module.training for module in made.modules()] == modes
    made.blocks[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        made.generate(text(1, 2))
    assert [module.training for module in made.modules()] == modes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ids": text(1, 0)}, "at least one token to continue from.*pass the last token"),
        ({"ids": text(1, 0), "state": True}, "at least one token to continue from"),
        ({"mask": torch.tensor([[True, True, False]])}, "Pad prompts on the left"),
        ({"max_new_tokens": -1}, "max_new_tokens must be an integer of at least 0; got -1"),
        ({"temperature": -0.1}, "temperature must be a finite number of at least 0; got -0.1"),
        ({"temperature": float("nan")}, "temperature must be a finite number"),
        ({"top_k": 0}, "top_k must be an integer of at least 1; got 0"),
    ],
)
def test_bad_generation_is_refused(options: dict[str, Any], message: str) -> None:
    made = model()
    if "state" in options:
        options = {**options, "state": made(text(1, 3))[1]}
    with pytest.raises(ValueError, match=message):
        made.generate(**{"ids": text(1, 3), **options})
