"""Training: one seed gives the same numbers bit for bit, and a checkpoint holds the complete state."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import memkit
from ablations import checkpoint
from ablations.optimization import learning_rate, make_optimizer
from ablations.settings import TrainConfig
from ablations.tasks import IGNORE, Batch, Metric, Task, Yardstick
from ablations.tasks.base import bits, correct
from ablations.train import Row, Training, begin, evaluate, make_model, train
from compare import near
from memkit import DivergedError
from small_model import VOCAB
from small_model import model as small_model


class Echo(Task):
    """Predict the token itself, at half the places; it remembers what it was asked for."""

    vocab_size, length = VOCAB, 6
    metrics = (Metric("bits", "bits", "lower", bits), Metric("accuracy", "share", "higher", correct))
    yardstick = Yardstick("none", 0.0)

    def __init__(self) -> None:
        self.drawn: list[torch.Tensor] = []

    def batch(self, generator: torch.Generator, size: int) -> Batch:
        ids = torch.randint(VOCAB, (size, self.length), generator=generator)
        self.drawn.append(ids)
        return Batch(ids, torch.where(torch.arange(self.length) % 2 == 0, ids, IGNORE))

    def held_out(self) -> list[Batch]:
        return [self.batch(torch.Generator().manual_seed(seed), size) for seed, size in ((1, 3), (2, 5))]


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"steps": 8, "batch": 4, "eval_every": 3, "dtype": "float64", **changes})


def trained(settings: TrainConfig, **callbacks: Any) -> Training:
    training = begin(make_model(small_model, settings), settings)
    train(training, Echo(), settings, **callbacks)
    return training


def numbers(training: Training) -> list[dict[str, Any]]:
    """The history without what a clock says."""
    rows = [dataclasses.asdict(row) for row in training.history]
    return [{k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second")} for row in rows]


def assert_same(one: Training, other: Training) -> None:
    assert numbers(one) == numbers(other)
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)


# -- the loop


def test_same_seed_same_numbers_to_the_bit_and_another_seed_others() -> None:
    one, two, other = trained(config()), trained(config()), trained(config(seed=1))
    assert_same(one, two)
    assert numbers(one) != numbers(other)


def test_history_has_a_row_each_evaluation_and_one_at_the_end() -> None:
    losses: list[tuple[int, float]] = []
    training = trained(config(), on_step=lambda step, loss: losses.append((step, loss)))
    assert [row.step for row in training.history] == [3, 6, 8]
    assert [row.tokens for row in training.history] == [3 * 24, 6 * 24, 8 * 24]
    assert [step for step, _ in losses] == list(range(1, 9))
    means = [sum(loss for _, loss in losses[a:b]) / (b - a) for a, b in ((0, 3), (3, 6), (6, 8))]
    assert [row.train_loss for row in training.history] == pytest.approx(means, rel=1e-12)
    last = training.history[-1]
    assert last.tokens_per_second == pytest.approx(last.tokens / last.seconds)


def test_every_model_sees_the_same_tokens() -> None:
    tasks = [Echo(), Echo()]
    for task, depth in zip(tasks, (1, 3), strict=True):
        settings = config(seed=5)
        train(begin(make_model(lambda depth=depth: small_model(depth), settings), settings), task, settings)
    assert len(tasks[0].drawn) == 8 + 3 * 2
    assert all(torch.equal(a, b) for a, b in zip(tasks[0].drawn, tasks[1].drawn, strict=True))
    assert not torch.equal(tasks[0].drawn[0], tasks[0].drawn[1])


def test_training_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    trained(config())
    assert torch.equal(torch.rand(3), expected)


def test_one_step_is_adamw_on_the_clipped_gradient() -> None:
    settings = config(steps=1, clip=0.01, warmup=0.0, weight_decay=0.1, lr=0.02)
    training = begin(make_model(small_model, settings), settings)
    task = Echo()
    reference = make_model(small_model, settings)
    train(training, task, settings)
    batch = task.drawn[0]
    logits = reference(batch)[0][:, ::2]
    F.cross_entropy(logits.flatten(0, 1), batch[:, ::2].flatten()).backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in reference.parameters() if p.grad is not None))
    assert norm > 0.01
    for (name, ours), theirs in zip(training.model.named_parameters(), reference.parameters(), strict=True):
        assert theirs.grad is not None
        gradient = theirs.grad * 0.01 / (norm + 1e-6)
        decay = 0.1 if theirs.dim() > 1 and "embedding" not in name else 0.0
        expected = theirs * (1 - 0.02 * decay) - 0.02 * gradient / (gradient.abs() + 1e-8)
        near(ours, expected)


def test_it_learns() -> None:
    settings = config(steps=60, eval_every=60, lr=1e-2, batch=16)
    before = evaluate(make_model(small_model, settings), Echo(), settings)
    after = trained(settings).history[-1].held_out
    assert after["bits"] < before["bits"] - 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lower_precision_is_near_float64(dtype: str) -> None:
    exact, rough = trained(config(dtype="float64")), trained(config(dtype=dtype))
    assert all(p.dtype == torch.float32 for p in rough.model.parameters())
    tolerance = 1e-4 if dtype == "float32" else 0.05
    assert rough.history[-1].held_out["bits"] == pytest.approx(exact.history[-1].held_out["bits"], rel=tolerance)


def test_evaluation_is_the_mean_over_the_targets_that_count() -> None:
    settings, task = config(), Echo()
    model = make_model(small_model, settings)
    found = evaluate(model, task, settings)
    logits = torch.cat([model(batch.ids)[0][:, ::2].flatten(0, 1) for batch in task.held_out()]).detach()
    targets = torch.cat([batch.ids[:, ::2].flatten() for batch in task.held_out()])
    assert found["bits"] == pytest.approx(float(F.cross_entropy(logits, targets)) / math.log(2), rel=1e-12)
    assert found["accuracy"] == pytest.approx(float((logits.argmax(-1) == targets).double().mean()), rel=1e-12)
    assert model.training


# -- the optimizer


def test_learning_rate_rises_then_falls_along_a_cosine() -> None:
    settings = TrainConfig(steps=101, lr=2.0, warmup=0.2, final_lr=0.1)
    rates = [learning_rate(step, settings) for step in range(101)]
    assert rates[0] == pytest.approx(2.0 / 21)
    assert rates[20] == rates[21] == 2.0
    assert rates[100] == pytest.approx(0.2)
    middle = 21 + (100 - 21) / 2
    assert learning_rate(60, settings) == pytest.approx(2 * (0.1 + 0.45 * (1 + math.cos(math.pi * 39 / 79))))
    assert rates[math.floor(middle)] > 1.1 > rates[math.ceil(middle)]


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
def test_learning_rate_of_short_runs_is_never_zero(steps: int, warmup: float) -> None:
    settings = TrainConfig(steps=steps, warmup=warmup, lr=1.0)
    assert all(0 < learning_rate(step, settings) <= 1 for step in range(steps))


def test_embeddings_norms_and_vectors_do_not_decay() -> None:
    model = memkit.build("architecture", "transformer", vocab_size=16, dim=16, depth=1, heads=2)
    optimizer = make_optimizer(model, TrainConfig(weight_decay=0.3))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    names = {name: decays.pop(id(p)) for name, p in model.named_parameters()}
    assert not decays
    assert {name for name, decay in names.items() if decay == 0.0} == {
        name for name in names if "norm" in name or "embedding" in name or names[name] == 0.0
    }
    assert names["embedding.weight"] == names["norm.weight"] == 0.0
    assert {decay for name, decay in names.items() if name.endswith(("to_out.weight", "gate_up.weight"))} == {0.3}


def test_no_weight_decay_is_one_group() -> None:
    assert len(make_optimizer(nn.Linear(2, 2), TrainConfig(weight_decay=0.0)).param_groups) == 1


# -- checkpoints


def test_a_checkpoint_holds_all_of_a_training_and_only_the_newest_is_kept(tmp_path: Path) -> None:
    settings = config()
    training = trained(settings, on_row=lambda training: checkpoint.save(training, tmp_path))
    newest = checkpoint.latest(tmp_path)
    assert newest is not None and [path.name for path in tmp_path.iterdir()] == ["checkpoint-000008"]
    restored = begin(make_model(small_model, config(seed=9)), settings)
    checkpoint.restore(restored, newest)
    assert_same(training, restored)
    assert restored.seconds == training.seconds
    for a, b in zip(training.optimizer.state.values(), restored.optimizer.state.values(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in ("step", "exp_avg", "exp_avg_sq"))


def test_a_half_written_checkpoint_does_not_count(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint-000009.part").mkdir()
    assert checkpoint.latest(tmp_path) is None


def test_the_newest_checkpoint_is_the_one_with_the_most_steps(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000, 5):
        (tmp_path / f"checkpoint-{step:06d}").mkdir()
    assert checkpoint.latest(tmp_path) == tmp_path / "checkpoint-1000000"


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    settings = config()
    path = checkpoint.save(begin(make_model(small_model, settings), settings), tmp_path)
    with pytest.raises(ValueError, match="does not hold this model's weights"):
        checkpoint.load_weights(small_model(3), path)


def test_rows_survive_a_checkpoint(tmp_path: Path) -> None:
    settings = config()
    training = begin(make_model(small_model, settings), settings)
    training.history.append(Row(3, 72, 0.1 + 0.2, {"bits": 1 / 3}, 1.5, 48.0))
    restored = begin(make_model(small_model, settings), settings)
    checkpoint.restore(restored, checkpoint.save(training, tmp_path))
    assert restored.history == training.history


# -- divergence


class Explodes(nn.Module):
    """A model whose logits are not finite from its n-th call in training mode on, and that has no layers to blame."""

    def __init__(self, good: int) -> None:
        super().__init__()
        self.inner, self.good = small_model(1), good

    def init_state(self, batch: int) -> Any:
        return self.inner.init_state(batch)

    def forward(self, ids: torch.Tensor, state: Any = None, **given: Any) -> tuple[torch.Tensor, Any]:
        logits, state = self.inner(ids, state, **given)
        self.good -= self.training
        return (logits if self.good >= 0 else logits * math.inf), state


def test_divergence_names_model_and_step_and_keeps_what_was_computed() -> None:
    settings = config()
    training = begin(Explodes(good=5), settings)
    with pytest.raises(DivergedError, match=r"lmm \(seed 0\) diverged at step 6 of 8: loss nan, gradient norm nan"):
        train(training, Echo(), settings, name="lmm (seed 0)")
    assert [row.step for row in training.history] == [3]
    assert training.step == 5
    assert all(parameter.isfinite().all() for parameter in training.model.parameters())
