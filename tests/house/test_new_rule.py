"""The tutorial: its files are written, its commands run, and their output is the output shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from memkit import registry
from pages import BLOCK, PAGES, run_console

TUTORIAL = PAGES / "new_rule.md"
LONGEST_RULE = 60


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


def test_the_tutorial_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall(TUTORIAL.read_text(encoding="utf-8"))
    assert [language for language, _ in blocks].count("console") >= 4
    with registry.scratch():
        for language, block in blocks:
            run_console(block, capfd) if language == "console" else write(block)
