"""Checkpoints: a folder `checkpoint-<step>` that is there whole or not at all.

Weights are safetensors, the optimiser's state is tensors and numbers that torch loads with
`weights_only=True`, the rest is JSON: nothing in a checkpoint can run code.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import nn

from ablations.files import read_json, write_json
from ablations.train import Row, Training

PREFIX = "checkpoint-"


def save(training: Training, folder: Path) -> Path:
    """Write a checkpoint into a run's folder, then drop the older ones; return its path."""
    target = folder / f"{PREFIX}{training.step:06d}"
    part = folder / f".{target.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_model(training.model, str(part / "model.safetensors"))
    torch.save(training.optimizer.state_dict(), part / "optimizer.pt")
    rest = {"step": training.step, "seconds": training.seconds}
    write_json(part / "training.json", {**rest, "history": [dataclasses.asdict(row) for row in training.history]})
    older = [path for path in _all(folder) if path != target]
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    for path in older:
        shutil.rmtree(path)
    return target


def latest(folder: Path) -> Path | None:
    """The newest checkpoint of a run's folder, if there is one."""
    return max(_all(folder), default=None, key=lambda path: int(path.name.removeprefix(PREFIX)))


def restore(training: Training, checkpoint: Path) -> None:
    """Put a checkpoint's contents into a training that was begun with the same model and settings."""
    load_weights(training.model, checkpoint)
    held = torch.load(checkpoint / "optimizer.pt", weights_only=True, map_location="cpu")
    training.optimizer.load_state_dict(held)
    rest = read_json(checkpoint / "training.json")
    training.step, training.seconds = rest["step"], rest["seconds"]
    training.history = [Row(**row) for row in rest["history"]]


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Read a checkpoint's weights into a model; `ValueError` when they are not this model's."""
    try:
        load_model(model, str(checkpoint / "model.safetensors"))
    except RuntimeError as error:
        raise ValueError(f"{checkpoint} does not hold this model's weights: {error}") from None


def _all(folder: Path) -> list[Path]:
    return list(folder.glob(f"{PREFIX}*"))
