"""Bring the table of docs/rules.md up to date with `memkit list rule`.

python tests/helpers/rules_page.py
"""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from ablations.listing import print_rules
from memkit import registry

PAGE = Path(__file__).parents[2] / "docs" / "rules.md"
START, END = "```text\n", "```\n"


def table() -> str:
    """The lines of the table alone, as a wide terminal shows it."""
    registry.discover()
    console = Console(width=200, file=io.StringIO(), color_system=None)
    print_rules(console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    start = next(i for i, line in enumerate(lines) if line.split()[:1] == ["rule"])
    stop = next(i for i, line in enumerate(lines) if line.startswith("MLP-n"))
    return "".join(f"{line.strip()}\n" for line in lines[start:stop] if line.strip())


def page(text: str) -> str:
    """The page with the table of today between its fences."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return before + START + table() + END + after


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
