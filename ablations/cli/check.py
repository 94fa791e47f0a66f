"""`memkit check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ablations.cli.options import Pairs
from ablations.display.console import messages, results, say
from ablations.strict import assignments


def check(
    what: Annotated[list[str], typer.Argument(help="Python files, names of rules, mixers, architectures, or `all`.")],
    profile: Annotated[str, typer.Option(help="quick, default, or nightly (10,000 problems per law).")] = "default",
    law: Annotated[Pairs, typer.Option("--law", help="Only this law; repeat.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the problems.")] = 0,
    kind: Annotated[str | None, typer.Option(help="Only rule, mixer or architecture.")] = None,
    option: Annotated[Pairs, typer.Option("--option", help="Option of the component, key=value; repeat.")] = None,
    examples: Annotated[int | None, typer.Option(min=1, help="Problems per law, instead of the profile's.")] = None,
    example: Annotated[str | None, typer.Option(help="One problem, as a failure shows it; with --law.")] = None,
    shard: Annotated[str | None, typer.Option(help="i/n: the i-th of n parts of the work.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes at a time.")] = 1,
    folder: Annotated[
        Path | None, typer.Option("--out", "-o", help="Keep verdicts here; the same command resumes.")
    ] = None,
) -> None:
    """Test components against the laws of memory rules, mixers and language models.

    Exit codes: 0 every law kept, 1 a law broken, 2 a component that could not be used.

    Examples:

    - `memkit check my_rule.py`
    - `memkit check titans --option depth=1 --law causality --profile quick`
    - `memkit check titans yaad mac --jobs 2`
    - `memkit check all --profile nightly --seed 1 --jobs 2 --out runs/nightly`
    """
    try:
        from ablations.checking import command
        from ablations.checking.request import CheckRequest
    except ImportError as error:  # hypothesis and pytest are an extra
        raise ValueError(str(error)) from None
    request = CheckRequest(
        what=tuple(what),
        kind=kind,
        options=assignments(option or []),
        profile=profile,
        laws=law or [],
        seed=seed,
        examples=examples,
        shard=shard,
        example=example,
        jobs=jobs,
        folder=folder,
    )
    try:
        code = command.check(request, results(piped_width=80), messages())
    except KeyboardInterrupt:
        kept = f" Verdicts are kept in {folder}; the same command goes on from there." if folder else ""
        say(messages(), f"Interrupted.{kept}")
        raise typer.Exit(130) from None
    raise typer.Exit(code)
