"""Ranks: the processes of torchrun that train one model together; a single process is a group of one.

Every rank draws the whole batch from the step's seed and keeps its own rows. So ranks need not exchange data, and
together they read the batch of a single process.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ablations.settings import TrainConfig, find_device
from ablations.tasks.base import Batch
from architectures.language_model import Block, LanguageModel
from memkit.sequence_parallel import SequenceParallel

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

Parallel = Literal["ddp", "fsdp", "sequence"]
NUMBERS, ADDRESS = ("LOCAL_RANK", "RANK", "WORLD_SIZE"), ("MASTER_ADDR", "MASTER_PORT")
"""Environment variables that torchrun sets for each process."""


@dataclass(frozen=True)
class Ranks:
    """This process among `size` ranks of one model, and their way of sharing the work.

    "ddp": every rank holds all weights. "fsdp": every rank holds its shard of each weight, of its gradient and of its
    optimizer state (FSDP2), and a block's weights are whole only while the block runs. "sequence": every rank holds
    all weights, and reads its part of every row instead of its rows.
    """

    rank: int = 0
    size: int = 1
    parallel: Parallel | None = None

    @property
    def is_main(self) -> bool:
        """True for rank 0, which alone writes files and messages."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """True if a rank holds only shards of the weights."""
        return self.parallel == "fsdp"

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the module to call in training instead of the model, so that ranks average their gradients.

        Under "fsdp" the model itself is sharded: make the optimizer afterwards. Raises `ValueError` for a model whose
        blocks cannot be shared.
        """
        if self.parallel == "ddp":
            return nn.parallel.DistributedDataParallel(model)
        if self.parallel == "sequence":
            if isinstance(model, LanguageModel) and model.checkpoint:
                raise ValueError(
                    "checkpoint=True runs blocks again in the backward pass, when no other rank sends their state. "
                    "Use recompute= of the memories instead, or --parallel fsdp."
                )
            return SequenceParallel(model, _blocks(model))
        return self._shard(model) if self.sharded else model

    def _shard(self, model: nn.Module) -> nn.Module:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard  # here, because it is slow to import and rarely used

        # A block's state holds views of its weights. Torch warns of writes into them, and nothing writes into a state.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        mesh = init_device_mesh(next(model.parameters()).device.type, (self.size,))
        for module in [*_blocks(model), model]:
            fully_shard(module, mesh=mesh)
        return model

    @contextmanager
    def whole(self, model: nn.Module) -> Iterator[None]:
        """Gather all weights on every rank, also between calls; all ranks must enter and leave together."""
        if not self.sharded:
            yield
            return
        from torch.distributed.fsdp import FSDPModule

        root, *blocks = [module for module in model.modules() if isinstance(module, FSDPModule)]
        for shard in (root, *blocks):
            shard.set_reshard_after_forward(False, recurse=False)
            shard.unshard()
        try:
            yield
        finally:
            for shard in blocks:
                shard.set_reshard_after_forward(True, recurse=False)
                shard.reshard()
            root.reshard()

    def reshard(self, model: nn.Module) -> None:
        """Shard weights again after a forward pass without a backward pass, which leaves them whole."""
        if self.sharded:
            cast("FSDPModule", model).reshard()

    def part(self, batch: Batch) -> Batch:
        """Return this rank's rows, or its part of all rows; a remainder goes to the first ranks."""
        axis = int(self.parallel == "sequence")
        return Batch(*(x.tensor_split(self.size, axis)[self.rank] for x in (batch.ids, batch.targets)))

    def clip(self, called: nn.Module, most: float) -> Tensor:
        """Scale the gradients of a module of `wrap` to a norm of at most `most`, and return the norm before."""
        if isinstance(called, SequenceParallel):
            called.average_gradients()
        norm: Any = nn.utils.clip_grad_norm_(called.parameters(), most)
        return norm.full_tensor() if self.sharded else norm

    def total(self, values: Tensor) -> Tensor:
        """Sum over all ranks, in place."""
        if self.parallel is not None:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Wait until all ranks are here."""
        if self.parallel is not None:
            dist.barrier()


SINGLE = Ranks()


def _blocks(model: nn.Module) -> list[Block]:
    """The blocks of a language model, in their order."""
    return [block for block in model.modules() if isinstance(block, Block)]


@contextmanager
def join(parallel: Parallel | None, config: TrainConfig) -> Iterator[Ranks]:
    """Meet the other ranks of torchrun, if it started this process; parallel=None then means "ddp".

    Raises `ValueError` for a `parallel` without torchrun, an incomplete environment, and a batch or a device that
    ranks cannot share.
    """
    if "LOCAL_RANK" not in os.environ:
        if parallel is not None:
            raise ValueError(
                f"--parallel {parallel} is for several processes, and torchrun did not start this one. Use "
                f"`torchrun --nproc-per-node 2 --no-python memkit train --parallel {parallel} ...`, or leave it out."
            )
        yield SINGLE
        return
    size, local = _place()
    parallel = parallel or "ddp"
    _check_shares(parallel, size, local, config)
    device = find_device(config.device)
    if device.type != "cpu":
        torch.accelerator.set_device_index(local)
    dist.init_process_group()
    try:
        yield Ranks(dist.get_rank(), size, parallel)
    finally:
        dist.destroy_process_group()


def _place() -> tuple[int, int]:
    """The number of ranks, and this rank's number on its machine; `ValueError` for an incomplete environment."""
    wrong = [name for name in NUMBERS if not os.environ.get(name, "").isdecimal()]
    wrong += [name for name in ADDRESS if not os.environ.get(name)]
    if wrong:
        said = ", ".join(
            f"{name} is {os.environ[name]!r}" if name in os.environ else f"{name} is not" for name in wrong
        )
        raise ValueError(
            f"LOCAL_RANK is set, as in a process that torchrun starts, but {said}. Start ranks with torchrun, which "
            "sets all of these, or unset LOCAL_RANK to train in one process."
        )
    return int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])


def _check_shares(parallel: Parallel, size: int, local: int, config: TrainConfig) -> None:
    """Raise `ValueError` unless all ranks get equal shares, and each a device of its own."""
    if parallel != "sequence" and config.batch % size:
        below = config.batch // size * size
        near = " or ".join(f"batch={n}" for n in (below, below + size) if n)
        raise ValueError(f"batch = {config.batch} rows cannot be shared equally by {size} ranks. Use {near}.")
    device = find_device(config.device)
    if device.type == "cpu":
        return
    if device.index is not None and size > 1:
        raise ValueError(f"device = {config.device!r} is one for all ranks. Use {device.type!r}: each takes its own.")
    if local >= torch.accelerator.device_count():
        raise ValueError(
            f"rank {local} of this machine has no {device.type} device: there are {torch.accelerator.device_count()}. "
            "Start fewer processes (--nproc-per-node), or use device=cpu."
        )
