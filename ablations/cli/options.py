"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ablations.settings import TrainConfig

_DEFAULT_STEPS = TrainConfig.model_fields["steps"].default

Pairs = list[str] | None
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder for all files that are written.")]
Text = Annotated[Path | None, typer.Option(help="Your own text, a file or a folder, for the task 'text'.")]
Steps = Annotated[
    int | None, typer.Option(min=1, help=f"Training steps; default: the grid's, or {_DEFAULT_STEPS} without a grid.")
]
Imports = Annotated[list[Path] | None, typer.Option("--import", help="Your Python file of components; repeat.")]
