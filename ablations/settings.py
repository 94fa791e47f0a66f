"""Settings of a training run."""

from __future__ import annotations

from typing import Literal

import pydantic
import torch

from ablations.strict import Settings


class TrainConfig(Settings):
    """Settings of a training run; data and initial weights follow from `seed` alone."""

    steps: int = pydantic.Field(default=1000, ge=1)
    batch: int = pydantic.Field(default=16, ge=1)  # rows per step
    lr: float = pydantic.Field(default=3e-3, gt=0, allow_inf_nan=False)  # the peak
    warmup: float = pydantic.Field(default=0.1, ge=0, le=1)  # share of the steps with a rising lr
    final_lr: float = pydantic.Field(default=0.1, ge=0, le=1)  # lr at the end of the cosine, as a share of the peak
    weight_decay: float = pydantic.Field(default=0.1, ge=0, allow_inf_nan=False)
    clip: float | None = pydantic.Field(default=1.0, gt=0)  # largest norm of the whole gradient; null: no limit
    eval_every: int = pydantic.Field(default=100, ge=1)  # steps between rows of the history
    seed: int = pydantic.Field(default=0, ge=0)
    device: str = "cpu"  # "cpu", "cuda", "cuda:1", ...; "auto": a GPU if there is one
    compile: bool = False  # compile the blocks of memories, see memkit.compile_blocks
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"  # bfloat16: autocast over float32 weights

    @pydantic.field_validator("device")
    @classmethod
    def _available(cls, device: str) -> str:
        if device != "auto":
            find_device(device)
        return device


def find_device(name: str) -> torch.device:
    """Return the torch device of a name; `ValueError` if this machine does not have it."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {name!r} is not a device's name. Use 'cpu', 'cuda' or 'auto'.") from None
    if device.type == "cpu" or (accelerator is not None and device.type == accelerator.type):
        return device
    raise ValueError(f"device {name!r} is not available on this machine. Use 'cpu' or 'auto'.")
