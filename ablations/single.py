"""One model without a grid: `memkit train` and `memkit generate`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ablations import run
from ablations.display.console import say
from ablations.display.runs import RunsDisplay
from ablations.grid import build_empty
from ablations.pool import Event
from ablations.ranks import Parallel, join
from ablations.run import RunSpec
from ablations.settings import TrainConfig
from ablations.strict import parse
from memkit.divergence import DivergedError, GenerationDivergedError
from memkit.registry import build
from memkit.user_modules import digest


def train_one(
    architecture: dict[str, Any],
    task: dict[str, Any],
    settings: dict[str, Any],
    folder: Path,
    console: Console,
    imports: Iterable[Path] = (),
    parallel: Parallel | None = None,
) -> dict[str, Any]:
    """Train one model in a folder, from its newest checkpoint if it has one, and return the run's result.

    imports: the user's files that register its components. parallel: how the ranks of torchrun share the work.
    Raises `ValueError` as the registry and `join` do, before anything is written.
    """
    files = {str(file.resolve()): digest(file) for file in imports}
    config = parse(TrainConfig, settings, "train")
    built = build("task", task)
    build_empty(architecture, built.vocab_size)
    spec = RunSpec(f"{architecture['name']} on {task['name']}", architecture, built.vocab_size, task, config, files)
    key = (spec.name, config.seed)
    with join(parallel, config) as ranks:
        console = console if ranks.is_main else Console(quiet=True)
        with RunsDisplay(console) as display:

            def on_step(step: int, loss: float) -> None:
                display.on_event(Event(key, "progress", (step, loss)))

            display.on_start({key: spec}, 0)
            result = run.execute(spec, folder, on_step, ranks)
            display.on_event(Event(key, "done", result))
        say(console, f"Saved in {folder}")
    return result


def continue_text(
    folder: Path, prompt: str, tokens: int, temperature: float, seed: int
) -> tuple[str, DivergedError | None]:
    """Return the prompt with its continuation by a trained model of bytes, and None.

    Bytes that are not valid UTF-8 become U+FFFD. If the model diverges on the way, the text ends there and the error
    comes instead of None. Raises `ValueError` if the folder holds no such model or the prompt is empty.
    """
    spec, model = run.load(folder)
    if spec.task["name"] != "text":
        raise ValueError(
            f"{folder} holds a model of the task {spec.task['name']!r}, whose tokens are not text. "
            "Generate from a model trained on the task 'text'."
        )
    if not prompt:
        raise ValueError("the prompt is empty, and a model needs a byte to continue from. Use --prompt 'The '.")
    device = next(model.parameters()).device
    ids = torch.tensor([list(prompt.encode())], device=device)
    sampler = torch.Generator(device).manual_seed(seed)
    generating: Any = model
    diverged = None
    try:
        ids, _ = generating.generate(ids, max_new_tokens=tokens, temperature=temperature, generator=sampler)
    except GenerationDivergedError as error:
        ids, diverged = error.ids, error
    return bytes(ids[0].tolist()).decode(errors="replace"), diverged
