"""The language model around any mixers: streaming, masks, documents, initialization, and its errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import memkit
from architectures import LanguageModel, ModelState
from compare import near
from running_mean import RunningMean
from small_model import DIM, VOCAB, model, text


@given(st.integers(0, 12), st.integers(0, 12), st.booleans(), st.integers(0, 10**6))
def test_any_cut_gives_the_same_logits(tokens: int, at: int, documents: bool, seed: int) -> None:
    made, ids, at = model(), text(3, tokens, seed), min(at, tokens)
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(3, tokens, generator=g) < 0.8
    segments = torch.randint(2, (3, tokens), generator=g).sort(1).values if documents else None
    whole, end = made(ids, mask=mask, segment_ids=segments)
    parts, state = [], None
    for part in (slice(0, at), slice(at, None)):
        logits, state = made(
            ids[:, part],
            state,
            mask=mask[:, part],
            segment_ids=None if segments is None else segments[:, part],
        )
        parts.append(logits)
    assert state is not None
    assert whole.shape == (3, tokens, VOCAB)
    near(torch.cat(parts, 1), whole)
    near(state, end)


def test_a_model_computes_its_definition() -> None:
    made, ids = model(depth=1), text(2, 7)
    weights = dict(made.named_parameters())
    norm = lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * 3  # noqa: E731 - gains are 3
    x = made.embedding.weight[ids]
    mean = norm(x).cumsum(1) / torch.arange(1, 8)[:, None]
    x = x + mean @ weights["blocks.0.mixer.out.weight"].T
    gate, up = (norm(x) @ weights["blocks.0.feed_forward.1.gate_up.weight"].T).split(24, -1)
    x = x + (gate * torch.sigmoid(gate) * up) @ weights["blocks.0.feed_forward.1.out.weight"].T
    near(made(ids)[0], norm(x) @ made.embedding.weight.T)


def test_a_model_is_causal() -> None:
    made, ids = model(), text(2, 9)
    changed = ids.clone()
    changed[:, 5] = (changed[:, 5] + 1) % VOCAB
    difference = (made(ids)[0] - made(changed)[0]).abs().amax((0, 2))
    assert difference[:5].max() == 0
    assert difference[5:].min() > 1e-3


def test_a_masked_token_never_was() -> None:
    made, ids = model(), text(1, 6)
    mask = torch.tensor([[False, True, True, False, True, True]])
    spoilt = torch.where(mask, ids, torch.tensor([[-100, 0, 0, 10**9, 0, 0]]))
    logits, state = made(spoilt, mask=mask)
    alone, alone_state = made(ids[mask][None])
    near(logits[mask], alone[0])
    assert logits[~mask].abs().max() == 0
    near(state, alone_state)


def test_documents_packed_equal_documents_apart() -> None:
    made, ids = model(), text(2, 10)
    segments = torch.tensor([[4] * 3 + [2] * 7, [0] * 8 + [1] * 2])
    logits, state = made(ids, segment_ids=segments)
    near(logits[:1, :3], made(ids[:1, :3])[0])
    near(logits[:1, 3:], made(ids[:1, 3:])[0])
    near(logits[1:, 8:], made(ids[1:, 8:])[0])
    assert state.segment.tolist() == [2, 1]


def test_write_false_reads_without_learning() -> None:
    made, ids = model(), text(2, 5)
    _, state = made(ids)
    logits, after = made(ids, state, write=False)
    near(after, state)
    assert (logits - made(ids, state)[0]).abs().max() > 1e-3


def test_reset_starts_rows_afresh() -> None:
    made, ids = model(), text(2, 5)
    _, state = made(ids)
    fresh = made.reset(state, torch.tensor([False, True]))
    logits, _ = made(ids, fresh)
    near(logits[1:], made(ids[1:])[0])
    near(logits[:1], made(ids, state)[0][:1])


def test_sizes_are_counted() -> None:
    made = model(feed_forward=2)
    assert made.num_parameters() == VOCAB * DIM + 2 * (2 * DIM + DIM * DIM + 3 * DIM * 16) + DIM
    assert made.init_state(1).bytes == made.state_bytes(1000)
    assert (made.depth, made.dim, made.vocab_size) == (2, DIM, VOCAB)


@pytest.mark.parametrize(
    ("expansion", "dim", "hidden"),
    [(8 / 3, 128, 344), (8 / 3, 3, 8), (4, 8, 32), (0.1, 8, 8)],
)
def test_the_feed_forward_is_a_multiple_of_8(expansion: float, dim: int, hidden: int) -> None:
    made = LanguageModel(VOCAB, dim, [RunningMean(dim=dim)], feed_forward=expansion)
    assert dict(made.named_parameters())["blocks.0.feed_forward.1.out.weight"].shape == (dim, hidden)


def test_a_model_without_feed_forward_layers() -> None:
    made = model(depth=1, feed_forward=0)
    assert made.num_parameters() == VOCAB * DIM + 2 * DIM + DIM * DIM


@pytest.mark.parametrize("dim", [64, 256])
@pytest.mark.parametrize("architecture", ["bank", "lmm", "mac", "mag", "mal", "mamba2", "tnt", "transformer"])
def test_an_untrained_model_knows_nothing(architecture: str, dim: int) -> None:
    torch.manual_seed(0)
    made = memkit.build("architecture", architecture, vocab_size=256, dim=dim, depth=2, heads=4)
    ids = torch.randint(256, (4, 128))
    logits, _ = made(ids)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert abs(loss - math.log(256)) < 1  # logits of variance 1 cost half a nat
    own = logits.softmax(-1).gather(-1, ids[..., None]).mean()
    assert own < 0.05  # the tied head leans towards its input (0.012 to 0.035, whatever the width); no more


def test_checkpointing_changes_nothing_but_memory() -> None:
    plain, lean = model(), model(checkpoint=True)
    ids = text(2, 6)
    grads = []
    for made in (plain, lean):
        _, state = made(ids)  # gradients flow through the state too
        logits, _ = made(ids, state, mask=ids != 3)
        logits.square().sum().backward()
        grads.append((logits, *(parameter.grad for parameter in made.parameters())))
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        assert torch.equal(lean(ids)[0], plain(ids)[0])


def test_checkpointing_keeps_less() -> None:
    kept = []
    for checkpoint in (False, True):
        sizes: list[int] = []
        pack = lambda x, sizes=sizes: (sizes.append(x.numel()), x)[1]  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            model(checkpoint=checkpoint)(text(2, 50))
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 3


def test_every_parameter_gets_a_gradient() -> None:
    made = model()
    made(text(2, 6))[0].square().sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_ids_of_any_integer_dtype(dtype: torch.dtype) -> None:
    made, ids = model(), text(2, 5)
    assert torch.equal(made(ids.to(dtype))[0], made(ids)[0])
    more, _ = made.generate(ids.to(dtype), max_new_tokens=2)
    assert more.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_model_works_in_inference_mode_and_low_precision(dtype: torch.dtype) -> None:
    made, ids = model().to(dtype), text(2, 5)
    with torch.inference_mode():
        logits, _ = made(ids)
    assert logits.dtype == dtype
    assert (logits.double() - model()(ids)[0]).abs().max() < 0.05 * model()(ids)[0].abs().max()


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        (torch.zeros(3).long(), {}, r"ids must be integers \[B, T\]; got torch.int64 \(3,\)"),
        (torch.zeros(1, 3), {}, "ids must be integers .*float32"),
        (torch.zeros(1, 3).bool(), {}, "ids must be integers .*bool"),
        (torch.tensor([[0, VOCAB]]), {}, r"ids must lie in 0\.\.10; got 11\."),
        (torch.tensor([[0, -1]]), {}, r"ids must lie in 0\.\.10; got -1\."),
        ([[0, 1]], {}, "ids must be a tensor of integers .*got list"),
        (text(1, 3), {"mask": torch.ones(1, 2).bool()}, r"mask must be \[B, T\] = \(1, 3\); got \(1, 2\)"),
        (text(1, 3), {"mask": [[True] * 3]}, "mask must be a tensor; got list"),
        (text(1, 3), {"mask": torch.ones(1, 3)}, "mask must be boolean .*float32"),
        (text(1, 3), {"state": ModelState(layers=())}, "the state has 0 layers and the model 2"),
        (text(1, 3), {"state": [1, 2]}, "a model goes on from a ModelState; got list"),
    ],
)
def test_bad_ids_are_refused_before_any_work(ids: Any, options: dict[str, Any], message: str) -> None:
    made = model()
    made.embedding.register_forward_hook(lambda *_: pytest.fail("worked on bad input"))
    with pytest.raises(ValueError, match=message):
        made(ids, **options)
    with pytest.raises(ValueError, match=message):
        made.generate(ids, **options)


def test_a_state_of_another_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the state has 3 rows and x has 2"):
        model()(text(2, 4), model().init_state(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be an integer of at least 1; got 0"),
        ({"mixers": []}, "depth, the number of mixers, must be an integer of at least 1; got 0"),
        ({"dim": 16}, r"layer 0, RunningMean, has dim = 8 in a model of dim = 16\. Build it with dim=16"),
        ({"feed_forward": -1.0}, "feed_forward must be a finite number of at least 0; got -1.0"),
        ({"feed_forward": float("inf")}, "feed_forward must be a finite number"),
    ],
)
def test_a_model_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    sizes = {"vocab_size": VOCAB, "dim": 8, "mixers": [RunningMean(dim=8)]}
    with pytest.raises(ValueError, match=message):
        LanguageModel(**{**sizes, **options})  # type: ignore[arg-type]
