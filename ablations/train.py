"""Training: one step, one loop, one evaluation.

A step is a function of the weights, the optimiser's state, the seed and the step's number, and of nothing
else. So the same seed gives the same numbers, and a run resumed from a checkpoint equals an unbroken one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablations.optimisation import learning_rate, make_optimizer
from ablations.settings import TrainConfig, find_device
from ablations.tasks.base import IGNORE, Batch, Task
from memkit.divergence import DivergedError, find_divergence


@dataclass(frozen=True)
class Row:
    """One line of a history.

    train_loss is the mean in nats a target since the last row, held_out the task's metrics by name,
    seconds the time spent in training steps so far, evaluations not counted.
    """

    step: int
    tokens: int
    train_loss: float
    held_out: dict[str, float]
    seconds: float
    tokens_per_second: float


@dataclass
class Training:
    """All that training changes, and so all that a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0  # steps taken
    seconds: float = 0.0
    history: list[Row] = field(default_factory=list)


def make_model(build: Callable[[], nn.Module], config: TrainConfig) -> nn.Module:
    """Build a model whose initial weights follow from the seed, on the configured device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = build()
    dtype = torch.float64 if config.dtype == "float64" else torch.float32
    return model.to(device=find_device(config.device), dtype=dtype)


def begin(model: nn.Module, config: TrainConfig) -> Training:
    """A training that has taken no step yet."""
    return Training(model, make_optimizer(model, config))


def train(
    training: Training,
    task: Task,
    config: TrainConfig,
    *,
    name: str = "the model",
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    on_row: Callable[[Training], None] = lambda training: None,
) -> None:
    """Take the steps that are left.

    on_step hears every step's number and loss, on_row every new row of the history (save a checkpoint
    there). Raises `DivergedError`, naming model, step, layer, head and token, at the first loss or gradient that
    is not finite; the weights are those that showed it.
    """
    losses: list[float] = []
    with torch.random.fork_rng(devices=[]):
        while training.step < config.steps:
            losses.append(_step(training, task, config, name))
            on_step(training.step, losses[-1])
            if training.step % config.eval_every == 0 or training.step == config.steps:
                training.history.append(_row(training, task, config, losses, name))
                losses = []
                on_row(training)


def evaluate(model: nn.Module, task: Task, config: TrainConfig) -> dict[str, float]:
    """The task's metrics, by name, over its held-out rows."""
    device = find_device(config.device)
    sums = torch.zeros(len(task.metrics), dtype=torch.float64)
    count = 0
    model.eval()
    with torch.no_grad():
        for batch in task.held_out():
            logits, targets = _predict(model, batch.to(device), config)
            sums += torch.stack([m.per_target(logits, targets).cpu().double().sum() for m in task.metrics])
            count += len(targets)
    model.train()
    return {m.name: float(total) / count for m, total in zip(task.metrics, sums, strict=True)}


def _step(training: Training, task: Task, config: TrainConfig, name: str) -> float:
    """Take one step and return its loss."""
    started = time.perf_counter()
    model, optimizer, step = training.model, training.optimizer, training.step
    torch.manual_seed(_draw(config.seed, step, 1))  # for models that draw, such as dropout
    generator = torch.Generator().manual_seed(_draw(config.seed, step, 0))
    batch = task.batch(generator, config.batch).to(find_device(config.device))
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, config)
    optimizer.zero_grad(set_to_none=True)
    loss = F.cross_entropy(*_predict(model, batch, config))
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip or math.inf)
    value, size = torch.stack([loss.detach(), norm.to(loss.dtype)]).tolist()  # one wait for the device
    if not (math.isfinite(value) and math.isfinite(size)):
        seen = f"{name} diverged at step {step + 1} of {config.steps}: loss {value:.4g}, gradient norm {size:.4g}."
        raise _diverged(model, [batch], config, seen)
    optimizer.step()
    training.step += 1
    training.seconds += time.perf_counter() - started
    return value


def _diverged(model: nn.Module, batches: list[Batch], config: TrainConfig, seen: str) -> DivergedError:
    """The error of a training that met numbers that are not finite in one of these batches, and where."""
    found = None
    for batch in batches:
        with _precision(config):
            found = found or find_divergence(model, batch.to(find_device(config.device)).ids)
    where = "The forward pass, run again, is finite" if found is None else f"First, {found}"
    hint = f"A smaller lr, a longer warmup or a smaller clip may help.{found.remedy if found else ''}"
    error = DivergedError(f"{seen} {where}. {hint}")
    error.where = found
    return error


def _row(training: Training, task: Task, config: TrainConfig, losses: list[float], name: str) -> Row:
    tokens = training.step * config.batch * task.length
    held_out = evaluate(training.model, task, config)
    if not all(map(math.isfinite, held_out.values())):
        seen = f"{name} diverged at step {training.step} of {config.steps}: held-out {held_out}."
        raise _diverged(training.model, task.held_out(), config, seen)
    loss = math.fsum(losses) / len(losses)
    return Row(training.step, tokens, loss, held_out, training.seconds, tokens / training.seconds)


def _predict(model: Any, batch: Batch, config: TrainConfig) -> tuple[Tensor, Tensor]:
    """Logits `[N, vocab]` in float32 or better and targets `[N]`, of the positions that carry a loss."""
    with _precision(config):
        logits, _ = model(batch.ids)
    asked = batch.targets != IGNORE
    logits = logits[asked]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)), batch.targets[asked]


def _precision(config: TrainConfig) -> torch.autocast:
    """The precision that a model runs in."""
    return torch.autocast(find_device(config.device).type, torch.bfloat16, enabled=config.dtype == "bfloat16")


def _draw(seed: int, step: int, stream: int) -> int:
    """A 32-bit seed (more a torch generator on the CPU does not take) for one step of one run."""
    return int(np.random.SeedSequence([seed, step, stream]).generate_state(1)[0])
