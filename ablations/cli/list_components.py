"""`memkit list`."""

from __future__ import annotations

from typing import Annotated

import typer

from ablations.cli.options import Imports
from ablations.display.console import results
from ablations.listing import print_component, print_kind, print_kinds
from memkit.user_modules import import_files


def list_components(
    kind: Annotated[str | None, typer.Argument(help="rule, mixer, architecture, task, grid, ...")] = None,
    name: Annotated[str | None, typer.Argument(help="One component: its description and its options.")] = None,
    imports: Imports = None,
) -> None:
    """Show all components that can be built.

    Examples:

    - `memkit list`
    - `memkit list rule`
    - `memkit list architecture mac`
    - `memkit list rule mine --import my_rule.py`
    """
    import_files(imports or [])
    if kind is None:
        print_kinds(results())
    elif name is None:
        print_kind(kind, results())
    else:
        print_component(kind, name, results())
