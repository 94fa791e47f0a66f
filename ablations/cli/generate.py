"""`memkit generate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ablations.single import continue_text


def generate(
    folder: Annotated[Path, typer.Argument(help="The folder of one run: of `memkit train`, or inside a grid's.")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="Text to continue.")] = "The ",
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=0, help="Bytes to add.")] = 200,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest byte.")] = 0.8,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
) -> None:
    """Continue a text with a trained model.

    Example:

    - `memkit generate runs/mac --prompt "The memory " --tokens 300`
    """
    text, diverged = continue_text(folder, prompt, tokens, temperature, seed)
    sys.stdout.buffer.write(text.encode() + b"\n")  # bytes: a terminal of another encoding must not fail
    sys.stdout.buffer.flush()
    if diverged is not None:
        raise diverged
