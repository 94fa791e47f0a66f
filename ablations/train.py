"""Training: one step, one loop, one evaluation.

A step is a function of weights, optimizer state, seed and step number alone. So the same seed gives the same numbers,
and a run resumed from a checkpoint equals an unbroken one. Several ranks together take the steps of one process, each
with its rows of every batch, and differ from it by rounding alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablations.optimization import learning_rate, make_optimizer
from ablations.ranks import SINGLE, Ranks
from ablations.settings import TrainConfig, find_device
from ablations.tasks.base import IGNORE, Batch, Task
from memkit import compile_blocks
from memkit.divergence import DivergedError, find_divergence


@dataclass(frozen=True)
class Row:
    """One line of a history.

    train_loss: mean nats per target since the last row. held_out: the task's metrics by name. seconds: time of the
    training steps so far, without evaluations.
    """

    step: int
    tokens: int
    train_loss: float
    held_out: dict[str, float]
    seconds: float
    tokens_per_second: float


@dataclass
class Training:
    """Everything that training changes, which is the content of a checkpoint; `called` runs instead of the model."""

    model: nn.Module
    optimizer: torch.optim.AdamW
    called: nn.Module
    ranks: Ranks
    step: int = 0  # steps taken
    seconds: float = 0.0
    history: list[Row] = field(default_factory=list)


def make_model(build: Callable[[], nn.Module], config: TrainConfig) -> nn.Module:
    """Build a model on the configured device, with initial weights from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = build()
    dtype = torch.float64 if config.dtype == "float64" else torch.float32
    return model.to(device=find_device(config.device), dtype=dtype)


def begin(model: nn.Module, config: TrainConfig, ranks: Ranks = SINGLE) -> Training:
    """Return a training before its first step."""
    called = ranks.wrap(model)
    return Training(model, make_optimizer(model, config), called, ranks)


def train(
    training: Training,
    task: Task,
    config: TrainConfig,
    *,
    name: str = "the model",
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    on_row: Callable[[Training], None] = lambda training: None,
) -> None:
    """Take the remaining steps.

    on_step is called with every step's number and loss, on_row after every new row of the history (save a checkpoint
    there). Raises `DivergedError`, with model, step, layer, head and token, at the first loss or gradient that is not
    finite; the weights are then those before that step.
    """
    losses: list[float] = []
    with torch.random.fork_rng(devices=[]), compile_blocks() if config.compile else nullcontext():
        while training.step < config.steps:
            losses.append(_step(training, task, config, name))
            on_step(training.step, losses[-1])
            if training.step % config.eval_every == 0 or training.step == config.steps:
                training.history.append(_row(training, task, config, losses, name))
                losses = []
                on_row(training)


def evaluate(model: nn.Module, task: Task, config: TrainConfig, ranks: Ranks = SINGLE) -> dict[str, float]:
    """Return the task's metrics over its held-out rows, by name."""
    sums = torch.zeros(len(task.metrics) + 1, dtype=torch.float64)  # the last one: the number of targets
    model.eval()
    with torch.no_grad():
        for batch in task.held_out():
            logits, targets = _predict(model, ranks.part(batch), config)
            sums[-1] += len(targets)
            sums[:-1] += torch.stack([m.per_target(logits, targets).cpu().double().sum() for m in task.metrics])
    model.train()
    ranks.reshard(model)
    *totals, count = ranks.total(sums).tolist()
    return {m.name: total / count for m, total in zip(task.metrics, totals, strict=True)}


def _step(training: Training, task: Task, config: TrainConfig, name: str) -> float:
    """Take one step and return its loss."""
    started = time.perf_counter()
    optimizer, step, ranks = training.optimizer, training.step, training.ranks
    torch.manual_seed(_draw(config.seed, step, 1 + ranks.rank))  # for models with random numbers, such as dropout
    generator = torch.Generator().manual_seed(_draw(config.seed, step, 0))
    batch = task.batch(generator, config.batch)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, config)
    optimizer.zero_grad(set_to_none=True)
    logits, targets = _predict(training.called, ranks.part(batch), config)
    # The mean over all ranks' targets; ranks may have different numbers of them, and gradients are averaged.
    loss = F.cross_entropy(logits, targets, reduction="sum") / (int((batch.targets != IGNORE).sum()) / ranks.size)
    loss.backward()
    norm = ranks.clip(training.called, config.clip or math.inf)
    both = ranks.total(torch.stack([loss.detach(), norm.to(loss.dtype)]))
    value, size = (both / ranks.size).tolist()  # the only wait for the device
    if not (math.isfinite(value) and math.isfinite(size)):
        seen = f"{name} diverged at step {step + 1} of {config.steps}: loss {value:.4g}, gradient norm {size:.4g}."
        raise _diverged(training, [batch], config, seen)
    optimizer.step()
    training.step += 1
    training.seconds += time.perf_counter() - started
    return value


def _diverged(training: Training, batches: list[Batch], config: TrainConfig, seen: str) -> DivergedError:
    """Build the error for numbers in these batches that are not finite, with their first place."""
    place = None
    with training.ranks.whole(training.model), _precision(config):
        for batch in batches:  # all ranks search all rows, and so agree
            place = place or find_divergence(training.model, batch.ids.to(find_device(config.device)))
    where = "The forward pass, run again, is finite" if place is None else f"First, {place}"
    hint = f"A smaller lr, a longer warmup or a smaller clip may help.{place.remedy if place else ''}"
    error = DivergedError(f"{seen} {where}. {hint}")
    error.where = place
    return error


def _row(training: Training, task: Task, config: TrainConfig, losses: list[float], name: str) -> Row:
    tokens = training.step * config.batch * task.length
    held_out = evaluate(training.called, task, config, training.ranks)
    if not all(map(math.isfinite, held_out.values())):
        seen = f"{name} diverged at step {training.step} of {config.steps}: held-out {held_out}."
        raise _diverged(training, task.held_out(), config, seen)
    loss = math.fsum(losses) / len(losses)
    return Row(training.step, tokens, loss, held_out, training.seconds, tokens / training.seconds)


def _predict(model: Any, batch: Batch, config: TrainConfig) -> tuple[Tensor, Tensor]:
    """Logits `[N, vocab]` in float32 or better and targets `[N]`, of the positions with a loss."""
    device = find_device(config.device)
    # Found on the CPU, where the batch was drawn: a search on the device would wait for it.
    asked = (batch.targets != IGNORE).flatten().nonzero()[:, 0]
    with _precision(config):
        logits, _ = model(batch.ids.to(device))
    logits = logits.flatten(0, 1)[asked.to(device)]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)), batch.targets.flatten()[asked].to(device)


def _precision(config: TrainConfig) -> torch.autocast:
    """Autocast to bfloat16, if the settings ask for it."""
    return torch.autocast(find_device(config.device).type, torch.bfloat16, enabled=config.dtype == "bfloat16")


def _draw(seed: int, step: int, stream: int) -> int:
    """A seed for one step of one run, of 32 bits, the most that a CPU generator of torch takes."""
    return int(np.random.SeedSequence([seed, step, stream]).generate_state(1)[0])
