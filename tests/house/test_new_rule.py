"""The tutorial does what it says: its files are written, its commands run, and what they print is what it shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ablations.cli import main
from memkit import registry

TUTORIAL = Path(__file__).parents[2] / "docs" / "new_rule.md"
BLOCK = re.compile(r"^```(python|yaml|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LONGEST_RULE = 60


def compared(text: str) -> list[str]:
    """Lines of words: numbers and the spaces around them differ from machine to machine."""
    lines = (re.sub(r"[+\N{MINUS SIGN}-]?\d[\d.,]*(e[+-]?\d+)?", "#", line) for line in text.splitlines())
    return [" ".join(line.split()) for line in lines if line.strip()]


def write(block: str) -> None:
    """A file, named in its first line; or a change to one: the line to look for, and what stands there instead."""
    first, _, content = block.partition("\n")
    name, _, change = first.removeprefix("# ").partition(": ")
    if change:
        old, new = content.splitlines()
        text = Path(name).read_text()
        assert text.count(old) == 1
        content = text.replace(old, new)
    Path(name).write_text(content)
    assert not name.endswith(".py") or len(content.splitlines()) < LONGEST_RULE


def run(block: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A command and what it prints, `...` standing for any lines."""
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


def test_the_tutorial_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall(TUTORIAL.read_text(encoding="utf-8"))
    assert [language for language, _ in blocks].count("console") >= 4
    with registry.scratch():
        for language, block in blocks:
            run(block, capfd) if language == "console" else write(block)
