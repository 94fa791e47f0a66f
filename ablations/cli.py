"""The command `memkit`.

Exit codes: 0 done, 1 a run failed or a law was broken, 2 a mistake in what was asked for or a file that cannot be
read or written, 130 interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from ablations.bench import run_asked
from ablations.display import Display
from ablations.grid import changed, read_grid
from ablations.listing import print_component, print_kind, print_kinds
from ablations.mistakes import in_words
from ablations.ranks import Parallel
from ablations.report import write_report
from ablations.report.table import print_table
from ablations.results import failed
from ablations.run import FINISHED
from ablations.run_grid import run_grid
from ablations.settings import TrainConfig
from ablations.single import continue_text, train_one
from ablations.strict import assignments
from memkit.divergence import DivergedError
from memkit.own_files import import_files

PIPED_WIDTH = 200  # columns of a table that goes to a file or another program
DEFAULT_STEPS = TrainConfig.model_fields["steps"].default

app = typer.Typer(
    name="memkit",
    help="Memory layers for sequence models: list and check the parts, run ablations, train small models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder for everything that is written.")]
Text = Annotated[Path | None, typer.Option(help="Your own text, a file or a folder, for the task 'text'.")]
Steps = Annotated[
    int | None, typer.Option(min=1, help=f"Training steps, instead of the grid's, or of {DEFAULT_STEPS} without one.")
]
Pairs = list[str] | None
Imports = Annotated[list[Path] | None, typer.Option("--import", help="Your Python file of components; repeat.")]
_KEYS = ", ".join(key for key in TrainConfig.model_fields if key not in ("steps", "seed"))
ArchitectureOptions = Annotated[
    Pairs,
    typer.Option("--option", help="Of the architecture, key=value; repeat. Keys: `memkit list architecture NAME`."),
]
TaskOptions = Annotated[Pairs, typer.Option("--task-option", help="Of the task. Keys: `memkit list task NAME`.")]
TrainOptions = Annotated[Pairs, typer.Option("--train-option", help=f"Of the training. Keys: {_KEYS}.")]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; a user's mistake is one message, not a traceback."""
    try:
        app(args=arguments, prog_name="memkit")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except (ValueError, OSError, DivergedError) as error:
        _err().print(f"[bold red]Error:[/bold red] {escape(in_words(error))}", highlight=False, soft_wrap=True)
        return 1 if isinstance(error, DivergedError) else 2
    return 0


@app.command("list")
def list_components(
    kind: Annotated[str | None, typer.Argument(help="rule, mixer, architecture, task, grid, ...")] = None,
    name: Annotated[str | None, typer.Argument(help="One component: what it is, and its options.")] = None,
    imports: Imports = None,
) -> None:
    """Show what there is to build with.

    Examples:

    - `memkit list`
    - `memkit list rule`
    - `memkit list architecture mac`
    - `memkit list rule mine --import my_rule.py`
    """
    import_files(imports or [])
    if kind is None:
        print_kinds(_out())
    elif name is None:
        print_kind(kind, _out())
    else:
        print_component(kind, name, _out())


@app.command()
def check(
    what: Annotated[list[str], typer.Argument(help="Python files, names of rules, mixers, architectures, or `all`.")],
    profile: Annotated[str, typer.Option(help="quick, default, or nightly (10,000 problems a law).")] = "default",
    law: Annotated[Pairs, typer.Option("--law", help="Only this law; repeat.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the problems.")] = 0,
    kind: Annotated[str | None, typer.Option(help="Only rule, mixer or architecture.")] = None,
    option: Annotated[Pairs, typer.Option("--option", help="Of the component, key=value; repeat.")] = None,
    examples: Annotated[int | None, typer.Option(min=1, help="Problems a law, instead of the profile's.")] = None,
    example: Annotated[str | None, typer.Option(help="One problem, as a failure shows it; with --law.")] = None,
    shard: Annotated[str | None, typer.Option(help="i/n: the i-th of n parts of the work.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes at a time.")] = 1,
    folder: Annotated[Path | None, typer.Option("--out", "-o", help="Keep verdicts here; the same goes on.")] = None,
) -> None:
    """Hold components to the laws of memory rules, mixers and language models.

    Exit codes: 0 every law kept, 1 a law broken, 2 something that could not be used.

    Examples:

    - `memkit check my_rule.py`
    - `memkit check titans --option depth=1 --law causality --profile quick`
    - `memkit check titans yaad mac --jobs 2`
    - `memkit check all --profile nightly --seed 1 --jobs 2 --out runs/nightly`
    """
    try:
        from ablations.checking import Asked
        from ablations.checking import check as hold
    except ImportError as error:  # hypothesis and pytest are an extra
        raise ValueError(str(error)) from None
    asked = Asked(
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
        code = hold(asked, Console() if sys.stdout.isatty() else Console(width=80), _err())
    except KeyboardInterrupt:
        kept = f" Verdicts are kept in {folder}; the same command goes on from there." if folder else ""
        _tell(f"Interrupted.{kept}")
        raise typer.Exit(130) from None
    raise typer.Exit(code)


@app.command()
def ablate(
    grid: Annotated[str, typer.Argument(help="A shipped grid (`memkit list grid`) or a YAML file.")],
    folder: Out = None,
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Runs at a time; one a core.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds, instead of the grid's.")] = None,
    steps: Steps = None,
    text: Text = None,
    imports: Imports = None,
) -> None:
    """Train every variant of a grid on the same tokens, and report what differs.

    Runs that the folder already holds are kept, so an interrupted grid goes on where it stopped.

    Examples:

    - `memkit ablate quickstart`
    - `memkit ablate my_grid.yaml --out runs/mine --seeds 3 --jobs 4`
    - `memkit ablate quickstart --text my_novel.txt --out runs/novel`
    - `memkit ablate my_grid.yaml --import my_rule.py`
    """
    folder = folder or Path("runs") / Path(grid).stem
    text_path = None if text is None else str(text)
    read = read_grid(grid, seeds=seeds, steps=steps, text=text_path, imports=imports or [])
    try:
        with Display(_err()) as display:
            run_grid(read, folder, jobs=jobs, on_start=display.start, on_news=display.hear)
    except KeyboardInterrupt:
        _tell(f"Interrupted. Finished runs are kept in {folder}; the same command goes on from there.")
        raise typer.Exit(130) from None
    results = write_report(folder)
    print_table(results, _out())
    _tell(f"Report: {folder / 'report.html'}")
    raise typer.Exit(1 if failed(results) else 0)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="The folder of `memkit ablate`.")]) -> None:
    """Write the report of a grid again, finished or not, and show its table.

    Example:

    - `memkit report runs/quickstart`
    """
    print_table(write_report(folder), _out())
    _tell(f"Report: {folder / 'report.html'}")


@app.command()
def train(
    architecture: Annotated[str, typer.Option("--architecture", "-a", help="See `memkit list architecture`.")] = "mac",
    task: Annotated[str, typer.Option("--task", "-t", help="See `memkit list task`.")] = "text",
    folder: Out = None,
    option: ArchitectureOptions = None,
    task_option: TaskOptions = None,
    train_option: TrainOptions = None,
    steps: Steps = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the data and the initial weights.")] = 0,
    text: Text = None,
    imports: Imports = None,
    parallel: Annotated[
        Parallel | None, typer.Option(help="How torchrun's processes share it; if not said, ddp.")
    ] = None,
) -> None:
    """Train one model; the same command goes on from the newest checkpoint of an interrupted run.

    Examples:

    - `memkit train --architecture mac --task text --out runs/mac`
    - `torchrun --nproc-per-node 2 --no-python memkit train --parallel fsdp --out runs/mac-text`
    - `memkit train -a lmm --option dim=64 --option rule.depth=1 -t recall --train-option lr=1e-3`
    """
    import_files(imports or [])
    settings = _with(assignments(train_option or []), "--train-option", seed=seed, steps=steps)
    source = {"name": task, **_with(assignments(task_option or []), "--task-option", path=text and str(text))}
    model = changed({"name": architecture}, assignments(option or []))
    folder = folder or Path("runs") / f"{architecture}-{task}"
    found = train_one(model, source, settings, folder, _err(), imports or [], parallel)
    raise typer.Exit(0 if found["status"] == FINISHED else 1)


@app.command()
def generate(
    folder: Annotated[Path, typer.Argument(help="The folder of a run: of `memkit train`, or inside a grid's.")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="Text to continue.")] = "The ",
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=0, help="Bytes to add.")] = 200,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest byte.")] = 0.8,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
) -> None:
    """Continue a text with a trained model.

    Example:

    - `memkit generate runs/mac --prompt "The memory " --tokens 300`
    """
    made, broken = continue_text(folder, prompt, tokens, temperature, seed)
    sys.stdout.buffer.write(made.encode() + b"\n")  # bytes: a terminal of another encoding must not fail
    sys.stdout.buffer.flush()
    if broken is not None:
        raise broken


@app.command()
def bench(
    name: Annotated[
        str, typer.Argument(help="One of `memkit list benchmark`; `all`; or `page`: only the page.")
    ] = "rules",
    folder: Out = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch; if not said, one a core.")] = None,
) -> None:
    """Time things against each other on this machine, and keep the figures as JSON, Markdown and a page with plots.

    The page, `bench.html`, shows every benchmark that the folder holds. Where one of `all` fails, or one model
    of `stream`, the others run all the same, and the exit code is 1.

    Examples:

    - `memkit bench rules`
    - `memkit bench rounds --threads 1 --out runs/bench`
    - `memkit bench page --out runs/bench`
    """
    kept = run_asked(name, folder or Path("runs") / "bench", threads, _out(), _err())
    raise typer.Exit(0 if kept else 1)


def _with(options: dict[str, Any], given_by: str, **own: Any) -> dict[str, Any]:
    """Options, and those that have a flag of their own (None: not used); `ValueError` for one that is said twice."""
    used = {key: value for key, value in own.items() if value is not None}
    for key in used.keys() & options.keys():
        flag = "--text" if key == "path" else f"--{key}"
        raise ValueError(f"{given_by} {key}={options[key]} has a flag of its own, which says {used[key]}. Use {flag}.")
    return options | used


def _out() -> Console:
    """Results: to read, to pipe, to keep."""
    return Console() if sys.stdout.isatty() else Console(width=PIPED_WIDTH)


def _err() -> Console:
    """Progress and messages."""
    return Console(stderr=True)


def _tell(message: str) -> None:
    _err().print(escape(message), highlight=False, soft_wrap=True)
