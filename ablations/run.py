"""One run: an architecture, a task and a seed, trained in a folder of its own.

run.json            architecture, task and settings
history.jsonl       one row per evaluation
checkpoint-<step>/  weights, optimizer, history
result.json         status and final numbers
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ablations import checkpoint
from ablations.files import check_ours, difference, read_json, write_json, write_text
from ablations.ranks import SINGLE, Ranks
from ablations.settings import TrainConfig
from ablations.strict import parse
from ablations.train import Training, begin, make_model, train
from memkit.divergence import DivergedError
from memkit.registry import build
from memkit.user_modules import import_files

FINISHED, DIVERGED, FAILED = "finished", "diverged", "failed"


@dataclass(frozen=True)
class RunSpec:
    """Everything that a run's numbers depend on, and its name in messages.

    imports: path -> digest, of the user's files for the architecture.
    """

    name: str
    architecture: dict[str, Any]
    vocab_size: int
    task: dict[str, Any]
    train: TrainConfig
    imports: dict[str, str] = field(default_factory=dict)

    def data(self) -> dict[str, Any]:
        """Return the run as JSON data."""
        data = {**vars(self), "train": self.train.model_dump()}
        return data if self.imports else {key: value for key, value in data.items() if key != "imports"}

    @classmethod
    def of(cls, data: dict[str, Any]) -> RunSpec:
        """Read `data`."""
        return cls(**{**data, "train": parse(TrainConfig, data["train"], "run.json: train")})

    def model(self) -> nn.Module:
        """Import the run's files in this process, then build its model with the initial weights of its seed."""
        import_files(self.imports)
        return make_model(lambda: build("architecture", self.architecture, vocab_size=self.vocab_size), self.train)


def execute(
    spec: RunSpec, folder: Path, on_step: Callable[[int, float], None], ranks: Ranks = SINGLE
) -> dict[str, Any]:
    """Train from the newest checkpoint to the end, write the result, and return it.

    A finished run is not run again. A run that diverges keeps its history, and a checkpoint of the weights before
    that step. All ranks share the folder; another number of ranks may resume a run. Raises `ValueError` if the folder
    holds another run.
    """
    claim(spec, folder, ranks)
    held = result(folder)
    if held is not None and held["status"] == FINISHED:
        return held
    model = spec.model()
    size = _size(model, spec)  # before the weights are sharded
    training = begin(model, spec.train, ranks)
    start = checkpoint.latest(folder)
    if start is not None:
        checkpoint.restore(training, start)
    status, message = FINISHED, ""
    try:
        train(
            training,
            build("task", spec.task),
            spec.train,
            name=spec.name,
            on_step=on_step,
            on_row=lambda training: _keep(training, folder),
        )
    except DivergedError as error:
        status, message = DIVERGED, str(error)
        _keep(training, folder)
    ended = {"status": status, "message": message, **_describe(training, spec), **size}
    if ranks.is_main:
        write_json(folder / "result.json", ended)
    return ended


def claim(spec: RunSpec, folder: Path, ranks: Ranks = SINGLE) -> None:
    """Write the run into its folder; `ValueError` if the folder holds anything else."""
    check_ours(folder, "run.json")
    path = folder / "run.json"
    where = difference(read_json(path), spec.data(), "") if path.exists() else ""
    if where:
        raise ValueError(f"{folder} holds another run: {where}. Choose another folder, or delete it.")
    ranks.wait()  # every rank reads before one writes
    if ranks.is_main:
        write_json(path, spec.data())


def result(folder: Path) -> dict[str, Any] | None:
    """Return the result of a run's folder, or None for a run without one yet."""
    path = folder / "result.json"
    return read_json(path) if path.exists() else None


def history(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run so far."""
    path = folder / "history.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def record_failure(folder: Path, message: str, details: str) -> dict[str, Any]:
    """Write the result of a run that stopped with an error, with details in `error.txt`, and return it."""
    write_text(folder / "error.txt", details)
    ended = {"status": FAILED, "message": message}
    write_json(folder / "result.json", ended)
    return ended


def load(folder: Path) -> tuple[RunSpec, nn.Module]:
    """Return a trained model with its run; `ValueError` if the folder holds none."""
    newest = checkpoint.latest(folder)
    if newest is None:
        inside = sorted(path.parent.parent for path in folder.glob(f"*/**/{checkpoint.PREFIX}*/*.safetensors"))
        hint = f"Give the folder of one run, such as {inside[0]}." if inside else "Give the folder of a run."
        raise ValueError(f"{folder} holds no trained model. {hint}")
    spec = RunSpec.of(read_json(folder / "run.json"))
    model = spec.model()
    checkpoint.load_weights(model, newest)
    return spec, model


def _keep(training: Training, folder: Path) -> None:
    checkpoint.save(training, folder)
    rows = [json.dumps(dataclasses.asdict(row)) for row in training.history]
    if training.ranks.is_main:
        write_text(folder / "history.jsonl", "".join(f"{row}\n" for row in rows))


def _describe(training: Training, spec: RunSpec) -> dict[str, Any]:
    """The final numbers of a run."""
    last = training.history[-1] if training.history else None
    return {
        "step": training.step,
        "tokens": training.step * spec.train.batch * build("task", spec.task).length,
        "seconds": training.seconds,
        "tokens_per_second": last.tokens_per_second if last else None,
        "held_out": last.held_out if last else {},
    }


def _size(model: Any, spec: RunSpec) -> dict[str, int]:
    """Count a model's parameters, and the bytes of one row's state after a row of the task."""
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "state_bytes": model.state_bytes(build("task", spec.task).length),
    }
