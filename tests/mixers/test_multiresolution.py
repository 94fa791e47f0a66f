"""Banks of memories and TNT against plain loops over tokens, written from the papers' equations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import literal_memory as literal
import memkit
from compare import FLOAT32_FEW, GRADIENTS, near
from literal_memory import Head
from memkit.mixers import shards
from memkit.mixers.local_memory import LocalMemory
from memkit.state import map_tensors, tensors

DIM, HEADS, TOKENS = 8, 2, 11
MATRIX = {"name": "titans", "depth": 1, "mini_batch": 3}
DEEP = {"name": "titans", "expansion": 2, "mini_batch": 3}

Reference = Callable[[Any, Tensor], tuple[Tensor, list[Tensor]]]
"""A mixer and one row x `[T, D]` -> y `[T, D]` and what its memories hold at the end, head by head."""


def made(name: str, **options: Any) -> Any:
    """A mixer in float64 whose weights are larger than at initialisation."""
    torch.manual_seed(0)
    mixer = memkit.build("mixer", name, dim=DIM, heads=HEADS, **options).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.mul_(1.5).add_(0.1 * torch.randn_like(parameter))
    return mixer


def inputs(batch: int = 2, length: int = TOKENS) -> Tensor:
    return torch.randn(batch, length, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.double)


def write_every(layer: Any, every: int, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """A memory that rests between its writes of `every` tokens (Nested Learning eq. 71; TNT eq. 5)."""
    heads, held = [], []
    for h in range(HEADS):
        head, outputs = Head.initial(layer, h), []
        summed = [torch.zeros_like(weight) for weight in head.weights]
        for t, (q, k, v, gates) in enumerate(literal.tokens(layer, x, h)):
            before = head.weights
            grads = literal.gradient(head.weights, k, v)
            summed = [s + gates.get("weight", 1) * g for s, g in zip(summed, grads, strict=True)]
            if (t + 1) % every == 0:
                head.step(summed, gates)
                summed = [torch.zeros_like(weight) for weight in head.weights]
            outputs.append(literal.read(before if layer.rule.read == "before" else head.weights, q))
        heads.append(torch.stack(outputs))
        held += [*head.weights, *head.momenta, *summed] if every > 1 else [*head.weights, *head.momenta]
    return literal.read_out(layer, x, heads), held


def restart_every(local: Any, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """A memory that begins anew every shard, asked in terms of the keys it saw (TNT eq. 3, 6, 7)."""
    layer, heads, held = local.memory, [], []
    chunk = layer.rule.mini_batch
    for h in range(HEADS):
        head, outputs = Head.initial(layer, h), []
        start, seen = head.weights, torch.zeros(layer.width, layer.width, dtype=x.dtype)
        for t, (q, k, v, gates) in enumerate(literal.tokens(layer, x, h)):
            if t % local.shard == 0:
                head = Head.initial(layer, h)
            if t % local.shard % chunk == 0:
                start = head.weights
            if t % (chunk if local.span == "chunk" else local.shard) == 0:
                seen = torch.zeros_like(seen)
            seen = seen + torch.outer(k, k)
            head.step(literal.gradient(start, k, v), gates)
            outputs.append(literal.read(head.weights, q if local.span == "none" else seen @ q))
        if len(x) % local.shard == 0:
            head, seen = Head.initial(layer, h), torch.zeros_like(seen)
        heads.append(torch.stack(outputs))
        held += [*head.weights, *head.momenta, *([] if local.span == "none" else [seen])]
    return literal.read_out(layer, x, heads), held


def bank(mixer: Any, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    y, held = torch.zeros_like(x), []
    for weights, layer in zip(mixer.weights, mixer.memories, strict=True):
        part, states = write_every(layer, layer.rule.update_every, x)
        y, held = y + weights * part, held + states
    return y, held


def tnt(mixer: Any, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    y, held = write_every(mixer.whole, mixer.whole.rule.update_every, x)
    for local in mixer.parts:
        part, states = restart_every(local, x)
        y, held = y + part, held + states
    return y, held


def what_is_held(state: Any, row: int) -> list[Tensor]:
    """Weights, momenta, unfinished writes and spans of every memory of a mixer's state, as the loops list them."""
    parts = state.memories if hasattr(state, "memories") else [state.whole, *state.parts]
    found = []
    for part in parts:
        memory = part.memory
        span = getattr(part, "span", None)
        for h in range(HEADS):
            trees = [memory.weights, memory.slots, memory.pending, {} if span is None else span.weights]
            found += [x[row, h] for x in tensors(tuple(trees))]
    return found


CASES: dict[str, tuple[str, dict[str, Any], Reference]] = {
    "bank": ("bank", {"rule": MATRIX, "levels": [1, 4, 2]}, bank),
    "bank of deep memories": ("bank", {"rule": [MATRIX, DEEP], "levels": [1, 3]}, bank),
    "tnt": ("tnt", {"rule": MATRIX, "chunk": 4, "shards": [5, 7]}, tnt),
    "tnt of deep memories": ("tnt", {"rule": DEEP, "local": DEEP, "chunk": 3, "shards": [4]}, tnt),
    "tnt by chunks": ("tnt", {"rule": MATRIX, "chunk": 4, "shards": [6], "span": "chunk"}, tnt),
    "tnt without projection": (
        "tnt",
        {"rule": MATRIX, "local": [DEEP], "chunk": 2, "shards": [11], "span": "none"},
        tnt,
    ),
    "tnt token by token": (
        "tnt",
        {"rule": MATRIX, "local": {**MATRIX, "mini_batch": 1}, "chunk": 1, "shards": [5]},
        tnt,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mixer_is_its_equations(name: str) -> None:
    mixer_name, options, reference = CASES[name]
    mixer, x = made(mixer_name, **options), inputs().requires_grad_()
    y, state = mixer(x)
    rows = [reference(mixer, row) for row in x]
    pairs = [(y, torch.stack([row[0] for row in rows]))]
    for b, (_, held) in enumerate(rows):
        pairs += list(zip(what_is_held(state, b), held, strict=True))
    near([actual for actual, _ in pairs], [wanted for _, wanted in pairs])
    leaves = [x, *mixer.parameters()]
    scores = [
        torch.stack([(side * side.detach().cos()).sum() for side in sides]).sum() for sides in zip(*pairs, strict=True)
    ]
    found, known = (torch.autograd.grad(score, leaves) for score in scores)
    near(found, known, GRADIENTS)


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
    near(*grads, GRADIENTS)
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
    near(often.gates.lr_scale - once.gates.lr_scale, torch.full((HEADS,), 64.0).log(), FLOAT32_FEW)


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
def test_what_cannot_be_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        memkit.build("mixer", name, **{"dim": DIM, "heads": HEADS, **options})


def test_rules_that_do_not_fit_are_refused() -> None:
    titans = memkit.build("rule", "titans", depth=1, mini_batch=1)
    with pytest.raises(ValueError, match="update_every=4 .* needs mini_batch=1 and window=1"):
        made("bank", rule=replace(titans, window=2), levels=[4])
    with pytest.raises(ValueError, match=r"brings 2 keys a token.*span='none'"):
        made("local_memory", rule=replace(titans, pairs=2, steps=2))
    with pytest.raises(ValueError, match="unknown span 'shards'. Did you mean 'shard'"):
        LocalMemory(dim=DIM, heads=HEADS, span="shards")  # type: ignore[arg-type]
