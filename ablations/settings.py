"""What a training run may be told."""

from __future__ import annotations

from typing import Literal

import pydantic
import torch

from ablations.strict import Settings


class TrainConfig(Settings):
    """How to train; the data and the initial weights follow from `seed` alone."""

    steps: int = pydantic.Field(default=1000, ge=1)
    batch: int = pydantic.Field(default=16, ge=1)  # rows a step
    lr: float = pydantic.Field(default=3e-3, gt=0, allow_inf_nan=False)  # at its peak
    warmup: float = pydantic.Field(default=0.1, ge=0, le=1)  # share of the steps in which lr rises
    final_lr: float = pydantic.Field(default=0.1, ge=0, le=1)  # share of lr at which the cosine ends
    weight_decay: float = pydantic.Field(default=0.1, ge=0, allow_inf_nan=False)
    clip: float | None = pydantic.Field(default=1.0, gt=0)  # largest norm of the whole gradient; null: any
    eval_every: int = pydantic.Field(default=100, ge=1)  # steps from one row of the history to the next
    seed: int = pydantic.Field(default=0, ge=0)
    device: str = "cpu"  # "cpu", "cuda", "cuda:1", ...; "auto": a GPU if there is one
    compile: bool = False  # the blocks of memories, as memkit.compile_blocks says
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"  # bfloat16: autocast over float32 weights

    @pydantic.field_validator("device")
    @classmethod
    def _available(cls, device: str) -> str:
        if device != "auto":
            find_device(device)
        return device


def find_device(name: str) -> torch.device:
    """The torch device of a name; `ValueError` when this machine does not have it."""
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
