"""Banks of memories and TNT: shards in parallel, restarts and rests, options. Their equations: test_literal_levels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import memkit
from compare import FLOAT32_FEW, GRADIENTS, near
from memkit.mixers import shards
from memkit.mixers.local_memory import LocalMemory
from memkit.state import map_tensors

DIM, HEADS, TOKENS = 8, 2, 11
MATRIX = {"name": "titans", "depth": 1, "mini_batch": 3}


def made(name: str, **options: Any) -> Any:
    """A mixer in float64 whose weights are larger than at initialization."""
    torch.manual_seed(0)
    mixer = memkit.build("mixer", name, dim=DIM, heads=HEADS, **options).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.mul_(1.5).add_(0.1 * torch.randn_like(parameter))
    return mixer


def inputs(batch: int = 2, length: int = TOKENS) -> Tensor:
    return torch.randn(batch, length, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.double)


def test_all_shards_run_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    mixer, x, calls = made("local_memory", rule=MATRIX, shard=4), inputs(2, 22), []
    memorize = shards.memorize
    monkeypatch.setattr(shards, "memorize", lambda *a, **o: (calls.append(tuple(a[2].shape)), memorize(*a, **o))[1])
    for start, stop, rows, length in ((0, 8, 4, 4), (8, 10, 2, 2), (10, 22, 8, 4)):
        calls.clear()
        mixer(x[:, start:stop], mixer(x[:, :start])[1] if start else None)
        assert calls[-2:] == [(rows, length, HEADS, DIM // HEADS)] * 2  # the span, and the memory


def test_shards_side_by_side_are_shards_one_after_the_other() -> None:
    mixer, x = made("tnt", rule=MATRIX, chunk=5, shards=[4, 6]), inputs(3, 40)
    g = torch.Generator().manual_seed(2)
    mask = torch.rand(3, 40, generator=g) < 0.8
    ids = (torch.rand(3, 40, generator=g) < 0.05).long().cumsum(1)
    x = torch.where(mask[..., None], x, float("nan")).requires_grad_()

    def run(step: int) -> tuple[Tensor, Any]:
        state, outputs = None, []
        for part in (slice(start, start + step) for start in range(0, 40, step)):
            y, state = mixer(x[:, part], state, mask=mask[:, part], segment_ids=ids[:, part])
            outputs.append(y)
        return torch.cat(outputs, 1), state

    (whole, end), (steps, last) = run(40), run(1)
    near(whole, steps)
    later = inputs(3, 3)
    near(mixer(later, end)[0], mixer(later, last)[0])
    leaves = [x, *mixer.parameters()]
    grads = [torch.autograd.grad(y.square().sum(), leaves) for y in (whole, steps)]
    near(*grads, tolerance=GRADIENTS)
    assert not grads[0][0][~mask].any()


def test_a_restart_forgets_the_shard_and_the_global_memory_does_not() -> None:
    x = inputs(1, 8)
    changed = x.clone()
    changed[:, 1] += 1
    for name, options, remembers in (("local_memory", {"shard": 4}, False), ("tnt", {"shards": [4], "chunk": 4}, True)):
        mixer = made(name, rule=MATRIX, conv=0, **options)
        moved = (mixer(x)[0] - mixer(changed)[0]).abs().amax((0, 2))
        assert moved[1] > 1e-3
        assert bool((moved[4:] > 1e-9).all()) == remembers
        assert remembers or not moved[4:].any()


def test_a_level_rests_between_its_writes() -> None:
    mixer, x = made("bank", rule=MATRIX, levels=[1, 4]), inputs(1, 8)
    state, held = mixer.init_state(1), []
    for t in range(8):
        _, state = mixer(x[:, t : t + 1], state)
        held.append([part.memory.weights["w1"] for part in state.memories])
    moves = [[not torch.equal(a, b) for a, b in zip(*pair, strict=True)] for pair in zip(held, held[1:], strict=False)]
    assert moves == [[True, t in (4, 8)] for t in range(2, 9)]


def test_tokens_of_a_write_are_weighed_and_share_the_rate_that_is_stable() -> None:
    torch.manual_seed(0)
    once, often = memkit.build("mixer", "bank", dim=DIM, heads=HEADS, rule=MATRIX, levels=[64, 1]).memories
    gates = once.gates(torch.randn(2, 99, DIM))
    assert gates["weight"].min() > 0.9
    assert gates["weight"].max() < 1
    assert "weight" not in often.gates(torch.randn(2, 99, DIM))
    near(often.gates.lr_scale - once.gates.lr_scale, torch.full((HEADS,), 64.0).log(), tolerance=FLOAT32_FEW)


def test_reading_does_not_move_the_shard() -> None:
    mixer, x = made("local_memory", rule=MATRIX, shard=4, conv=0), inputs(2, 7)
    _, state = mixer(x[:, :3])
    _, after = mixer(x[:, 3:], state, write=False)
    assert after.phase == state.phase == 3
    assert torch.equal(mixer(x, after)[0], mixer(x, state)[0])


@pytest.mark.parametrize("name", ["bank", "tnt"])
def test_every_option_has_a_default_that_works(name: str) -> None:
    torch.manual_seed(0)
    model = memkit.build("architecture", name, vocab_size=11, dim=16, depth=1, heads=2)
    logits, state = model(torch.randint(11, (2, 70)))
    assert bool(logits.isfinite().all())
    assert model.state_bytes(70) == map_tensors(lambda x: x[:1], state).bytes


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bank", {"levels": []}, r"a bank needs at least one level, such as levels=\[1, 16, 256\]"),
        ("bank", {"levels": [1, 0]}, "a level, in tokens per write, must be an integer of at least 1; got 0"),
        ("bank", {"levels": 4}, "option 'levels' = 4 does not fit"),
        ("bank", {"levels": [1, 2], "rule": ["titans"]}, "got 1 rules for 2 levels. Give one for all, or a list"),
        ("bank", {"rule": "titan"}, "unknown rule 'titan'. Did you mean 'titans'"),
        ("bank", {"heads": 3}, "heads = 3 does not divide dim = 8"),
        ("tnt", {"chunk": 0}, "chunk must be an integer of at least 1; got 0"),
        ("tnt", {"shards": []}, r"tnt needs at least one local memory, such as shards=\[64\]"),
        ("tnt", {"shards": [4, -1]}, "shard must be an integer of at least 1; got -1"),
        ("tnt", {"shards": [4, 8], "local": ["titans"] * 3}, "got 3 rules for 2 shards"),
        ("tnt", {"span": "shards"}, "option 'span' = 'shards' does not fit"),
        (
            "tnt",
            {"span": "chunk", "shards": [8], "rule": MATRIX},
            "chunk of the local rule = 3 does not divide shard = 8",
        ),
        ("local_memory", {"shard": 0}, "shard must be an integer of at least 1; got 0"),
    ],
)
def test_impossible_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        memkit.build("mixer", name, **{"dim": DIM, "heads": HEADS, **options})


def test_rules_that_do_not_fit_are_refused() -> None:
    titans = memkit.build("rule", "titans", depth=1, mini_batch=1)
    with pytest.raises(ValueError, match="update_every=4 .* needs mini_batch=1 and window=1"):
        made("bank", rule=replace(titans, window=2), levels=[4])
    with pytest.raises(ValueError, match=r"brings 2 keys per token.*span='none'"):
        made("local_memory", rule=replace(titans, pairs=2, steps=2))
    with pytest.raises(ValueError, match="unknown span 'shards'. Did you mean 'shard'"):
        LocalMemory(dim=DIM, heads=HEADS, span="shards")  # type: ignore[arg-type]
