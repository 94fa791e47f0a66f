"""Pages of documentation as tests see them: code blocks that run, commands that print what a page shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ablations.cli import main

HOUSE = Path(__file__).parents[2]
PAGES = HOUSE / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def all_pages() -> list[Path]:
    """README, CONTRIBUTING and everything in docs."""
    return [HOUSE / "README.md", HOUSE / "CONTRIBUTING.md", *sorted(PAGES.glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language, in order."""
    return [text for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language]


def compared(text: str) -> list[str]:
    """Lines of words: numbers and the spaces around them differ from machine to machine."""
    lines = (re.sub(r"[+\N{MINUS SIGN}-]?\d[\d.,]*(e[+-]?\d+)?", "#", line) for line in text.splitlines())
    return [" ".join(line.split()) for line in lines if line.strip()]


def run_console(block: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Run a command of a console block and compare what it prints; `...` stands for any lines."""
    command, _, shown = block.partition("\n")
    capfd.readouterr()
    code = main(shlex.split(command.removeprefix("$ memkit ")))
    printed = compared(capfd.readouterr().out)
    assert code == ("FAILED" in "\n".join(printed))
    at = 0
    for part in re.split(r"^\.\.\.\n", shown, flags=re.MULTILINE):
        wanted = compared(part)
        places = [i for i in range(at, len(printed) - len(wanted) + 1) if printed[i : i + len(wanted)] == wanted]
        assert places, "\n".join(["not printed:", *wanted, "but:", *printed[at:]])
        at = places[0] + len(wanted)
