"""Models pass the options of their memory on, `recompute` and `products` included."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

import memkit
from architectures.uniform import uniform_model
from compare import near
from memkit import registry
from memkit.mixers.base import Mixer
from memkit.mixers.neural_memory import NeuralMemory
from memkit.state import tensors

RULE = {"name": "titans", "expansion": 2, "mini_batch": 3}
MODELS: dict[str, dict[str, Any]] = {
    "lmm": {},
    "mac": {"segment": 7},
    "mag": {"window": 5},
    "mal": {"window": 5},
    "bank": {"levels": [1, 4]},
    "tnt": {"chunk": 4, "shards": [3, 6]},
}
TOKENS, VOCAB = 17, 11
every_model = pytest.mark.parametrize("name", MODELS)
in_mini_batches = pytest.mark.parametrize("name", [name for name in MODELS if name != "bank"])


def build(name: str, **options: Any) -> Any:
    shape = {"vocab_size": VOCAB, "dim": 8, "heads": 2, "depth": 2, "persistent": 2, "rule": RULE}
    torch.manual_seed(0)
    return memkit.build("architecture", name, **{**shape, **MODELS[name], **options})


def memories(model: Any) -> list[NeuralMemory]:
    return [module for module in model.modules() if isinstance(module, NeuralMemory)]


def outcome(name: str, dtype: torch.dtype, **options: Any) -> list[Tensor]:
    """Logits, the state's numbers and every gradient, of documents with holes that go on from a state."""
    model, g = build(name, **options).to(dtype), torch.Generator().manual_seed(1)
    ids = torch.randint(VOCAB, (2, TOKENS), generator=g)
    mask = torch.rand(2, TOKENS, generator=g) < 0.8
    _, state = model(ids[:, :4])
    logits, state = model(ids, state, mask=mask)
    held = [x for x in tensors(state) if x.is_floating_point() and x.numel()]
    (logits.square().sum() + sum(x.square().sum() for x in held)).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [logits.detach(), *(x.detach() for x in held), *gradients]


@every_model
@pytest.mark.parametrize("checkpoint", [False, True])
def test_memories_that_recompute_change_no_number(name: str, checkpoint: bool) -> None:
    assert {memory.recompute for memory in memories(build(name, recompute=5))} == {5}
    kept = outcome(name, torch.double)
    again = outcome(name, torch.double, recompute=5, checkpoint=checkpoint)
    near(again, kept)


@every_model
def test_memories_that_recompute_keep_less(name: str) -> None:
    kept = []
    for recompute in (None, 48):
        model, found = build(name, recompute=recompute, **({"segment": 96} if name == "mac" else {})), {}

        def pack(x: Tensor, found: dict[int, int] = found) -> Tensor:
            found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            model(torch.zeros(1, 96, dtype=torch.long))
        kept.append(sum(found.values()))
    assert kept[1] < 0.75 * kept[0]


@in_mini_batches
def test_memories_multiply_in_bfloat16(name: str) -> None:
    exact, rounded = (outcome(name, torch.float32, products=products) for products in (None, "bfloat16"))
    assert [x.shape for x in rounded] == [x.shape for x in exact]
    a, b = (torch.cat([x.flatten() for x in found]) for found in (rounded, exact))
    assert 1e-5 < float((a - b).norm() / b.norm()) < 0.05
    given = [memory for memory in memories(build(name, products="bfloat16")) if memory.run.products == torch.bfloat16]
    assert len(given) == (4 if name == "tnt" else 2)  # tnt: of two layers, the two local memories each


@in_mini_batches
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"products": "bf16"}, "'products' = 'bf16' does not fit"),
        ({"products": "bfloat16", "rule": {**RULE, "mini_batch": 1}}, "it takes the form 'iterate', and not 'fused'"),
    ],
)
def test_products_that_do_not_fit(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, **options)


@in_mini_batches
@pytest.mark.parametrize("run", [{"form": "scan"}, memkit.Run(form="scan")], ids=["mapping", "Run"])
def test_a_run_reaches_every_memory_and_changes_no_number(name: str, run: Any) -> None:
    runs = [memory.run for memory in memories(build(name, run=run))]
    assert runs.count(memkit.Run(form="scan")) == (4 if name == "tnt" else 2)  # tnt: the local memories
    near(outcome(name, torch.double, run=run), outcome(name, torch.double))


def test_recompute_in_a_run_reaches_all_memories_of_tnt() -> None:
    found = {memory.recompute for memory in memories(build("tnt", run={"form": "dual", "recompute": 4}))}
    assert found == {4}


@pytest.mark.parametrize("run", [5, [1], "dual"])
def test_a_layer_built_directly_refuses_what_is_no_run(run: Any) -> None:
    with pytest.raises(ValueError, match="run must be a memkit.Run or a mapping of its fields; got"):
        NeuralMemory(dim=8, run=run)


@in_mini_batches
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"run": {"fomr": "scan"}}, "a run has no option 'fomr'. Did you mean 'form'"),
        ({"run": {"form": "duel"}}, "unknown form 'duel'. Did you mean 'dual'"),
        ({"run": {"form": "solve"}, "rule": RULE}, "has no solve form: its memory is not a single matrix"),
        ({"run": {"products": "bf16"}}, "products must be 'bfloat16', or None"),
        ({"run": {"block_size": 4}, "recompute": 3}, "put recompute into it"),
        ({"run": "scan"}, "option 'run' = 'scan' does not fit"),
    ],
)
def test_a_run_that_does_not_fit(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, **options)


@every_model
@pytest.mark.parametrize("recompute", [0, -3])
def test_a_group_has_tokens(name: str, recompute: int) -> None:
    with pytest.raises(ValueError, match=f"recompute must be an integer of at least 1; got {recompute}"):
        build(name, recompute=recompute)


@every_model
@pytest.mark.parametrize("kind", ["mixer", "architecture"])
def test_every_option_of_a_memory_is_one_of_what_holds_it(kind: str, name: str) -> None:
    made_by = registry.factory(kind, name if (kind, name) != ("mixer", "lmm") else "local_memory")
    own, types = inspect.signature(made_by).parameters, registry.hints(made_by)
    for option in inspect.signature(NeuralMemory).parameters.values():
        if option.name == "dim" or (name, option.name) == ("bank", "products"):
            continue  # dim has a default in models; a bank's memories have no mini-batches
        assert own[option.name].default == option.default
        if (name, option.name) != ("bank", "rule"):  # a rule, or one for each level
            assert types[option.name] == registry.hints(NeuralMemory)[option.name]


class LoudMemory(NeuralMemory):
    """A memory with an option of its own."""

    def __init__(self, *, loudness: float = 1.0, **memory: Any) -> None:
        super().__init__(**memory)
        self.loudness = loudness


class Holder(Mixer):
    """A mixer that holds a memory."""

    def __init__(self, *, dim: int, heads: int = 4, window: int = 3, **memory: Any) -> None:
        super().__init__(dim)
        self.memory = LoudMemory(dim=dim, heads=heads, **memory)


def loud_model(**options: Any) -> Any:
    return uniform_model(Holder, **options)


def test_a_new_option_of_a_memory_reaches_it_through_mixer_and_model_by_name() -> None:
    with registry.scratch():
        loud = registry.takes_options_of(NeuralMemory)(LoudMemory)
        holder = registry.register("mixer", "holder")(registry.takes_options_of(loud)(Holder))
        registry.register("architecture", "loud")(registry.takes_options_of(uniform_model, holder)(loud_model))
        model = memkit.build("architecture", "loud", vocab_size=VOCAB, dim=8, loudness=0.5, conv=0, rule=RULE)
        found = [module for module in model.modules() if isinstance(module, LoudMemory)]
        assert [(m.loudness, m.qkv.conv.width, m.rule.mini_batch) for m in found] == [(0.5, 0, 3)] * 4
        mixer = memkit.build("mixer", "holder", dim=8, loudness=2.0)
        assert mixer.memory.loudness == 2.0
        for kind, name, needed in (("mixer", "holder", {"dim": 8}), ("architecture", "loud", {"vocab_size": VOCAB})):
            with pytest.raises(
                ValueError, match=rf"{kind} '{name}' has no option 'loudnes'\. Did you mean 'loudness'\?"
            ):
                memkit.build(kind, name, **needed, loudnes=0.5)
            with pytest.raises(ValueError, match="'loudness' = 'high' does not fit: Input should be a valid number"):
                memkit.build(kind, name, **needed, loudness="high")


@pytest.mark.parametrize("name", [*MODELS, "transformer", "sliding_window", "mamba2"])
def test_a_misspelled_option_is_refused_in_the_same_words_everywhere(name: str) -> None:
    with pytest.raises(ValueError, match=rf"architecture '{name}' has no option 'dmi'\. Did you mean 'dim'\? Known: "):
        memkit.build("architecture", name, vocab_size=VOCAB, dmi=3)
