"""Checkpoints: a folder `checkpoint-<step>`, whole or absent.

Weights and optimizer state are safetensors, the rest is JSON: nothing in a checkpoint can run code. A single process
writes `model.safetensors` and `optimizer.safetensors`; ranks with shards write one file each, through
torch.distributed.checkpoint. Any number of ranks reads either.
"""

from __future__ import annotations

import dataclasses
import shutil
import warnings
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ablations.files import difference, read_json, write_json
from ablations.optimization import begin_state
from ablations.train import Row, Training
from memkit.atomic import put_in_place

PREFIX = "checkpoint-"
OPTIMIZER = "optimizer."
"""Prefix of optimizer state: `optimizer.<weight>.<exp_avg, ...>`."""


def save(training: Training, folder: Path) -> Path:
    """Write a checkpoint into a run's folder, then delete the older ones; return its path. All ranks call it."""
    target = folder / f"{PREFIX}{training.step:06d}"
    part = folder / f".{target.name}.part"
    ranks = training.ranks
    if ranks.is_main:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    ranks.wait()
    if ranks.sharded:
        _save_shards(_weights(training.model) | _optimizer_state(training), part)
    elif ranks.is_main:
        save_file(_contiguous(_weights(training.model)), part / "model.safetensors")
        save_file(_contiguous(_optimizer_state(training)), part / "optimizer.safetensors")
    ranks.wait()
    if ranks.is_main:
        rest = {"step": training.step, "seconds": training.seconds}
        write_json(part / "training.json", {**rest, "history": [dataclasses.asdict(row) for row in training.history]})
        older = [path for path in _all(folder) if path != target]
        shutil.rmtree(target, ignore_errors=True)
        put_in_place(part, target)
        for path in older:
            shutil.rmtree(path)
    ranks.wait()
    return target


def latest(folder: Path) -> Path | None:
    """Return the newest checkpoint of a run's folder, or None."""
    return max(_all(folder), default=None, key=lambda path: int(path.name.removeprefix(PREFIX)))


def restore(training: Training, checkpoint: Path) -> None:
    """Load a checkpoint into a training of the same model and settings, by any number of ranks.

    Raises `ValueError` for a checkpoint of another model.
    """
    rest, held = read_json(checkpoint / "training.json"), _shapes(checkpoint)
    trained = {x for name, x in training.model.named_parameters() if f"{OPTIMIZER}{name}.step" in held}
    if rest["step"] and not trained:
        raise ValueError(f"{checkpoint} has no optimizer state. Delete it to begin afresh.")
    begin_state(training.optimizer, trained)
    _fill(_weights(training.model) | _optimizer_state(training), held, checkpoint, sharded=training.ranks.sharded)
    training.step, training.seconds = rest["step"], rest["seconds"]
    training.history = [Row(**row) for row in rest["history"]]


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Load a checkpoint's weights into a model; `ValueError` for a checkpoint of another model."""
    held = {name: shape for name, shape in _shapes(checkpoint).items() if not name.startswith(OPTIMIZER)}
    _fill(_weights(model), held, checkpoint, sharded=False)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """A model's parameters and saved buffers by name, not copied; tied ones once."""
    state = model.state_dict(keep_vars=True)
    return {name: x for name, x in [*model.named_parameters(), *model.named_buffers()] if name in state}


def _optimizer_state(training: Training) -> dict[str, Tensor]:
    """The optimizer state by name, not copied."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in training.model.named_parameters()}
    state = training.optimizer.state.items()
    return {f"{OPTIMIZER}{names[x]}.{key}": value for x, kept in state for key, value in kept.items()}


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.detach().contiguous() for name, x in tensors.items()}


def _shapes(checkpoint: Path) -> dict[str, list[int]]:
    """The shape of every tensor of a checkpoint, by name."""
    if not _is_whole(checkpoint):
        metadata = _reader(checkpoint).read_metadata()
        return {name: list(tensor.size) for name, tensor in metadata.state_dict_metadata.items()}
    shapes = {}
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return shapes


def _fill(tensors: dict[str, Tensor], held: dict[str, list[int]], checkpoint: Path, *, sharded: bool) -> None:
    """Read a checkpoint with tensors of the shapes `held` into tensors, whole or a rank's shards."""
    where = difference(held, {name: list(x.shape) for name, x in tensors.items()}, "")
    if where:
        raise ValueError(f"{checkpoint} does not hold this model's weights: the shape of {where}.")
    tensors = {name: x.detach() for name, x in tensors.items()}
    if sharded or not _is_whole(checkpoint):
        _load_shards(tensors, checkpoint)
        return
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in tensors.keys() & set(file.keys()):
                tensors[name].copy_(file.get_tensor(name))


# torch.distributed.checkpoint is imported inside functions: it takes a second, and few runs need it.


def _save_shards(tensors: dict[str, Tensor], folder: Path) -> None:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    save({name: x.detach() for name, x in tensors.items()}, storage_writer=writer)


def _load_shards(tensors: dict[str, Tensor], checkpoint: Path) -> None:
    from torch.distributed.checkpoint.state_dict_loader import load

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")  # on purpose
        load(tensors, storage_reader=_reader(checkpoint))


def _reader(checkpoint: Path) -> Any:
    """A reader of shards and whole tensors into either."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    return HuggingFaceStorageReader(str(checkpoint))


def _is_whole(checkpoint: Path) -> bool:
    return (checkpoint / "model.safetensors").exists()


def _all(folder: Path) -> list[Path]:
    return list(folder.glob(f"{PREFIX}*"))
