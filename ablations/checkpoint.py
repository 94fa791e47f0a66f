"""Checkpoints: a folder `checkpoint-<step>` that is there whole or not at all.

Weights and what the optimizer keeps of them are safetensors, the rest is JSON: nothing in a checkpoint can run code.
One process writes `model.safetensors` and `optimizer.safetensors`; ranks that hold shares write a file each, through
torch.distributed.checkpoint. Either is read by any number of ranks.
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
KEPT = "optimizer."  # stands before a weight's name, and `.<what>` after it, for what the optimizer keeps of it


def save(training: Training, folder: Path) -> Path:
    """Write a checkpoint into a run's folder, then drop the older ones; return its path. All ranks call it."""
    target = folder / f"{PREFIX}{training.step:06d}"
    part = folder / f".{target.name}.part"
    ranks = training.ranks
    if ranks.is_main:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    ranks.wait()
    if ranks.sharded:
        _save_shares(_weights(training.model) | _kept(training), part)
    elif ranks.is_main:
        save_file(_contiguous(_weights(training.model)), part / "model.safetensors")
        save_file(_contiguous(_kept(training)), part / "optimizer.safetensors")
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
    """The newest checkpoint of a run's folder, if there is one."""
    return max(_all(folder), default=None, key=lambda path: int(path.name.removeprefix(PREFIX)))


def restore(training: Training, checkpoint: Path) -> None:
    """Put a checkpoint's contents into a training that was begun with the same model and settings, by any ranks.

    Raises `ValueError` when they are not this model's.
    """
    rest, held = read_json(checkpoint / "training.json"), _shapes(checkpoint)
    trained = {x for name, x in training.model.named_parameters() if f"{KEPT}{name}.step" in held}
    if rest["step"] and not trained:
        raise ValueError(f"{checkpoint} does not say what the optimizer keeps. Delete it to begin afresh.")
    begin_state(training.optimizer, trained)
    _fill(_weights(training.model) | _kept(training), held, checkpoint, sharded=training.ranks.sharded)
    training.step, training.seconds = rest["step"], rest["seconds"]
    training.history = [Row(**row) for row in rest["history"]]


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Read a checkpoint's weights into a model; `ValueError` when they are not this model's."""
    held = {name: shape for name, shape in _shapes(checkpoint).items() if not name.startswith(KEPT)}
    _fill(_weights(model), held, checkpoint, sharded=False)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """A model's numbers by name, as they lie; tied ones once."""
    state = model.state_dict(keep_vars=True)
    return {name: x for name, x in [*model.named_parameters(), *model.named_buffers()] if name in state}


def _kept(training: Training) -> dict[str, Tensor]:
    """What the optimizer keeps, by name, as it lies."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in training.model.named_parameters()}
    state = training.optimizer.state.items()
    return {f"{KEPT}{names[x]}.{what}": value for x, kept in state for what, value in kept.items()}


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.detach().contiguous() for name, x in tensors.items()}


def _shapes(checkpoint: Path) -> dict[str, list[int]]:
    """The shape of every tensor of a checkpoint by name."""
    if not _is_whole(checkpoint):
        metadata = _reader(checkpoint).read_metadata()
        return {name: list(found.size) for name, found in metadata.state_dict_metadata.items()}
    shapes = {}
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return shapes


def _fill(tensors: dict[str, Tensor], held: dict[str, list[int]], checkpoint: Path, *, sharded: bool) -> None:
    """Read a checkpoint, which holds tensors of these shapes, into tensors that may be a rank's shares."""
    where = difference(held, {name: list(x.shape) for name, x in tensors.items()}, "")
    if where:
        raise ValueError(f"{checkpoint} does not hold this model's weights: the shape of {where}.")
    tensors = {name: x.detach() for name, x in tensors.items()}
    if sharded or not _is_whole(checkpoint):
        _load_shares(tensors, checkpoint)
        return
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in tensors.keys() & set(file.keys()):
                tensors[name].copy_(file.get_tensor(name))


# torch.distributed.checkpoint is imported where it is used, because it takes a second that few need to wait for.


def _save_shares(tensors: dict[str, Tensor], folder: Path) -> None:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    save({name: x.detach() for name, x in tensors.items()}, storage_writer=writer)


def _load_shares(tensors: dict[str, Tensor], checkpoint: Path) -> None:
    from torch.distributed.checkpoint.state_dict_loader import load

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")  # on purpose
        load(tensors, storage_reader=_reader(checkpoint))


def _reader(checkpoint: Path) -> Any:
    """Reads shares, and whole tensors, into shares or whole tensors."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    return HuggingFaceStorageReader(str(checkpoint))


def _is_whole(checkpoint: Path) -> bool:
    return (checkpoint / "model.safetensors").exists()


def _all(folder: Path) -> list[Path]:
    return list(folder.glob(f"{PREFIX}*"))
