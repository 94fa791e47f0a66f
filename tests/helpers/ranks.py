"""Two processes that train together, and the models and the task they train on: all in float64, all tiny."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from ablations import checkpoint
from ablations.ranks import SINGLE, Parallel, Ranks
from ablations.settings import TrainConfig
from ablations.tasks import IGNORE, Batch, Metric, Task, Yardstick
from ablations.tasks.base import bits
from ablations.train import Training, begin, make_model, train
from memkit.divergence import DivergedError
from memkit.registry import build
from memkit.sequence_parallel import SequenceParallel

VOCAB, LENGTH, STEPS = 11, 7, 3
RULE = {"name": "titans", "mini_batch": 3, "expansion": 2}
MATRIX = RULE | {"depth": 1}
MODELS: dict[str, dict[str, Any]] = {
    "transformer": {},
    "sliding_window": {"window": 3},
    "mamba2": {},
    "lmm": {"rule": RULE, "persistent": 2, "depth": 2},
    "mac": {"rule": MATRIX, "segment": 3},
    "mag": {"rule": RULE, "window": 3},
    "mal": {"rule": RULE, "window": 3, "checkpoint": True},
    "bank": {"rule": MATRIX, "levels": (1, 3)},
    "tnt": {"rule": MATRIX, "chunk": 3, "shards": (3,), "recompute": 2},
    "hybrid": {
        "depth": 2,
        "pattern": [
            {"name": "neural_memory", "rule": RULE, "recompute": 3},
            {"name": "neural_memory", "rule": RULE | {"mini_batch": 1}},
        ],
    },
}
PARALLEL: tuple[Parallel, ...] = ("ddp", "fsdp", "sequence")
STARTS = {"ddp": ("alone",), "fsdp": ("alone", "ddp", "fsdp"), "sequence": ("fsdp",)}  # what resumes what
CUTS = (1, 4, 7)  # where the second rank's part of a sequence begins; of 7 tokens it gets none
SAVED = "lmm"  # the model whose checkpoints are exchanged
BROKEN = "hybrid"  # the model that diverges


class Echo(Task):
    """Predict the token itself, at places that differ from row to row: ranks do not have equally many targets."""

    vocab_size, length = VOCAB, LENGTH
    metrics = (Metric("bits", "bits", "lower", bits),)
    yardstick = Yardstick("none", 0.0)

    def batch(self, generator: torch.Generator, size: int) -> Batch:
        ids = torch.randint(VOCAB, (size, LENGTH), generator=generator)
        asked = torch.rand(size, LENGTH, generator=generator) < torch.rand(size, 1, generator=generator)
        return Batch(ids, torch.where(asked, ids, IGNORE))

    def held_out(self) -> list[Batch]:
        """Batches that two ranks cannot share equally: of one there is nothing for the second."""
        return [self.batch(torch.Generator().manual_seed(seed), size) for seed, size in ((1, 3), (2, 1))]


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"steps": STEPS, "batch": 4, "eval_every": 2, "dtype": "float64", **changes})


def steps_of(name: str) -> TrainConfig:
    """Several steps of the models with memories in every form, one of the others."""
    return config(steps=STEPS if name in (SAVED, BROKEN) else 1)


def model(name: str, **changes: Any) -> nn.Module:
    """Every architecture, but for the sizes."""
    return build("architecture", name, vocab_size=VOCAB, dim=8, heads=2, **{"depth": 1, **MODELS[name], **changes})


def trained(name: str, settings: TrainConfig, ranks: Ranks = SINGLE, start: Path | None = None) -> Training:
    """The model after the steps of these settings, from a checkpoint on if there is one."""
    again = {"checkpoint": False} if ranks.parallel == "sequence" else {}
    training = begin(make_model(lambda: model(name, **again), settings), settings, ranks)
    if start is not None:
        checkpoint.restore(training, start)
    train(training, Echo(), settings)
    return training


def numbers(training: Training) -> dict[str, Any]:
    """Every weight, whole, and the history without what a clock says."""
    named = training.model.named_parameters()
    weights = {name: (x.full_tensor() if training.ranks.sharded else x).detach() for name, x in named}  # type: ignore[operator]
    return {"weights": weights, "rows": [(row.step, row.train_loss, row.held_out) for row in training.history]}


def divergence(ranks: Ranks = SINGLE) -> tuple[str, list[str]]:
    """What a training says whose weights are not finite, and what it leaves behind."""
    settings = config()
    training = begin(make_model(lambda: model(BROKEN), settings), settings, ranks)
    with torch.no_grad():
        for parameter in training.model.blocks[1].mixer.parameters():  # type: ignore[union-attr]
            parameter.mul_(1e200)
    try:
        train(training, Echo(), settings)
    except DivergedError as error:
        return str(error), sorted(checkpoint._weights(training.model))
    return "", []


def one_mixer(part: slice = slice(None), parallel: bool = False) -> dict[str, Tensor]:
    """Outputs and gradients of a mixer over some of the tokens, of which some are masked, in several documents."""
    torch.manual_seed(0)
    mixer: Any = build("mixer", "neural_memory", dim=8, heads=2, rule=RULE).double()
    x = torch.randn(2, LENGTH, 8, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    mask = torch.tensor([[1, 1, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 1]]).bool()
    documents = torch.tensor([[0, 0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1]])
    called = SequenceParallel(mixer, [mixer]) if parallel else mixer
    y, _ = called(x[:, part], state=mixer.init_state(2), mask=mask[:, part], segment_ids=documents[:, part])
    y.square().sum().backward()
    if parallel:
        called.average_gradients()
    return {"y": y.detach()} | {name: weight.grad for name, weight in mixer.named_parameters()}


def two_calls(ranks: Ranks) -> dict[str, Tensor]:
    """Logits and gradients of a model that is called twice, the second time with the state of the first call."""
    made = make_model(lambda: model("lmm", rule={"name": "ttt_mlp", "mini_batch": 3}), config())
    called = ranks.wrap(made)
    ids = Echo().batch(torch.Generator().manual_seed(0), 2).ids
    y, state = called(ids[:, :4])
    y = torch.cat([y, called(ids[:, 4:], state)[0]], 1)
    y.square().sum().backward()
    named = made.named_parameters()
    whole = {name: x.grad.full_tensor() if ranks.sharded else x.grad for name, x in named}  # type: ignore[union-attr]
    return {"y": y.detach(), **whole}  # type: ignore[dict-item]


def _rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(rank=rank, world_size=2, init_method=f"file://{folder / 'meet'}")
    found: dict[str, Any] = {}
    for cut in CUTS:
        found[f"cut {cut}"] = one_mixer(slice(0, cut) if rank == 0 else slice(cut, None), parallel=True)
    found["two calls"] = two_calls(Ranks(rank, 2, "fsdp"))
    for parallel in PARALLEL:
        ranks = Ranks(rank, 2, parallel)
        for name in MODELS:
            found[f"{parallel} {name}"] = numbers(trained(name, steps_of(name), ranks))
        checkpoint.save(trained(SAVED, config(steps=2), ranks), folder / parallel)
        for start in STARTS[parallel]:
            resumed = trained(SAVED, config(), ranks, checkpoint.latest(folder / start))
            found[f"{parallel} resumes {start}"] = numbers(resumed)
        found[f"{parallel} diverges"] = divergence(ranks)
    torch.save(found, folder / f"rank-{rank}.pt")
    dist.destroy_process_group()


def run_two(folder: Path) -> None:
    """Leave what each of two ranks finds, and the checkpoints of one process and of each way to share, in a folder."""
    checkpoint.save(trained(SAVED, config(steps=2)), folder / "alone")
    spawn(_rank, (folder,), nprocs=2)
