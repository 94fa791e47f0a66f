"""One model by hand: `memkit train` and `memkit generate`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ablations import run
from ablations.display import Display
from ablations.grid import build_empty
from ablations.pool import News
from ablations.ranks import Parallel, join
from ablations.run import RunSpec
from ablations.settings import TrainConfig
from ablations.strict import parse
from memkit.divergence import DivergedError, GenerationDivergedError
from memkit.own_files import digest
from memkit.registry import build


def train_one(
    architecture: dict[str, Any],
    task: dict[str, Any],
    settings: dict[str, Any],
    folder: Path,
    console: Console,
    imports: Iterable[Path] = (),
    parallel: Parallel | None = None,
) -> dict[str, Any]:
    """Train one model in a folder, or go on where it stopped, and return the run's result.

    imports: the user's files that register what it is made of. parallel: how the ranks that torchrun started share
    the work. Everything is checked before anything is written; raises `ValueError` as the registry and `join` do.
    """
    files = {str(file.resolve()): digest(file) for file in imports}
    config = parse(TrainConfig, settings, "train")
    built = build("task", task)
    build_empty(architecture, built.vocab_size)
    spec = RunSpec(f"{architecture['name']} on {task['name']}", architecture, built.vocab_size, task, config, files)
    key = (spec.name, config.seed)
    with join(parallel, config) as ranks:
        console = console if ranks.leads else Console(quiet=True)
        with Display(console) as display:
            display.start({key: spec}, 0)
            found = run.execute(spec, folder, lambda step, loss: display.hear(News(key, "news", (step, loss))), ranks)
            display.hear(News(key, "done", found))
        console.print(f"Saved in {folder}", highlight=False, markup=False, soft_wrap=True)
    return found


def continue_text(
    folder: Path, prompt: str, tokens: int, temperature: float, seed: int
) -> tuple[str, DivergedError | None]:
    """The prompt and what a trained model of bytes makes of it; bytes that are no text become U+FFFD.

    A model that diverges on the way ends the text there, and the error comes with it. Raises `ValueError` when the
    folder holds no such model or the prompt is empty.
    """
    spec, model = run.load(folder)
    if spec.task["name"] != "text":
        raise ValueError(
            f"{folder} holds a model of the task {spec.task['name']!r}, whose tokens are not text. "
            "Generate from one that was trained on the task 'text'."
        )
    if not prompt:
        raise ValueError("the prompt is empty, and a model needs a byte to continue from. Use --prompt 'The '.")
    device = next(model.parameters()).device
    ids = torch.tensor([list(prompt.encode())], device=device)
    sampler = torch.Generator(device).manual_seed(seed)
    generating: Any = model
    broken = None
    try:
        ids, _ = generating.generate(ids, max_new_tokens=tokens, temperature=temperature, generator=sampler)
    except GenerationDivergedError as error:
        ids, broken = error.ids, error
    return bytes(ids[0].tolist()).decode(errors="replace"), broken
