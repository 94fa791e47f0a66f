"""All commands together, and the exit codes.

Exit codes: 0 done, 1 a run failed or a law was broken, 2 a mistake in the request or a file that cannot be read or
written, 130 interrupted.
"""

from __future__ import annotations

import typer

from ablations.cli import ablate, bench, check, generate, list_components, report, train
from ablations.display.console import messages, say_error
from ablations.mistakes import describe
from memkit.divergence import DivergedError

app = typer.Typer(
    name="memkit",
    help="Memory layers for sequence models: list and check the parts, run ablations, train small models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("list")(list_components.list_components)  # the order of `memkit --help`
app.command()(check.check)
app.command()(ablate.ablate)
app.command()(report.report)
app.command()(train.train)
app.command()(generate.generate)
app.command()(bench.bench)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; a user's mistake is one message, not a traceback."""
    try:
        app(args=arguments, prog_name="memkit")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except (ValueError, OSError, DivergedError) as error:
        say_error(messages(), describe(error))
        return 1 if isinstance(error, DivergedError) else 2
    return 0
