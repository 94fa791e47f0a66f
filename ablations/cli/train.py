"""`memkit train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ablations.cli.options import Imports, Out, Pairs, Steps, Text
from ablations.display.console import messages
from ablations.grid import changed
from ablations.ranks import Parallel
from ablations.run import FINISHED
from ablations.settings import TrainConfig
from ablations.single import train_one
from ablations.strict import assignments
from memkit.user_modules import import_files

_KEYS = ", ".join(key for key in TrainConfig.model_fields if key not in ("steps", "seed"))
ArchitectureOptions = Annotated[
    Pairs,
    typer.Option("--option", help="Architecture option, key=value; repeat. Keys: `memkit list architecture NAME`."),
]
TaskOptions = Annotated[Pairs, typer.Option("--task-option", help="Task option. Keys: `memkit list task NAME`.")]
TrainOptions = Annotated[Pairs, typer.Option("--train-option", help=f"Training option. Keys: {_KEYS}.")]


def train(
    architecture: Annotated[str, typer.Option("--architecture", "-a", help="See `memkit list architecture`.")] = "mac",
    task: Annotated[str, typer.Option("--task", "-t", help="See `memkit list task`.")] = "text",
    folder: Out = None,
    option: ArchitectureOptions = None,
    task_option: TaskOptions = None,
    train_option: TrainOptions = None,
    steps: Steps = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the data and the initial weights.")] = 0,
    text: Text = None,
    imports: Imports = None,
    parallel: Annotated[
        Parallel | None, typer.Option(help="How the processes of torchrun share the work; default: ddp.")
    ] = None,
) -> None:
    """Train one model; the same command resumes an interrupted run from its newest checkpoint.

    Examples:

    - `memkit train --architecture mac --task text --out runs/mac`
    - `torchrun --nproc-per-node 2 --no-python memkit train --parallel fsdp --out runs/mac-text`
    - `memkit train -a lmm --option dim=64 --option rule.depth=1 -t recall --train-option lr=1e-3`
    """
    import_files(imports or [])
    settings = _with_flags(assignments(train_option or []), "--train-option", seed=seed, steps=steps)
    text_path = None if text is None else str(text)
    source = {"name": task, **_with_flags(assignments(task_option or []), "--task-option", path=text_path)}
    model = changed({"name": architecture}, assignments(option or []))
    folder = folder or Path("runs") / f"{architecture}-{task}"
    result = train_one(model, source, settings, folder, messages(), imports or [], parallel)
    raise typer.Exit(0 if result["status"] == FINISHED else 1)


def _with_flags(options: dict[str, Any], given_by: str, **flags: Any) -> dict[str, Any]:
    """Options together with those that have a flag of their own; `ValueError` for one given both ways.

    A flag of None was not given.
    """
    used = {key: value for key, value in flags.items() if value is not None}
    for key in used.keys() & options.keys():
        flag = "--text" if key == "path" else f"--{key}"
        raise ValueError(f"{given_by} {key}={options[key]} has a flag of its own, which says {used[key]}. Use {flag}.")
    return options | used
