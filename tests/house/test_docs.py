"""What the pages say of the house is so: paths exist, commands parse, tables are today's, and the English is plain."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
import typer.main

import memkit
import rules_page
from ablations.cli import app
from pages import FENCED, HOUSE, PAGES, all_pages
from words import COUNTED, WORD

NAMES = [str(page.relative_to(HOUSE)) for page in all_pages()]
GENERATED = ("laws.md",)  # its prose is that of the laws, whose package is counted
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")
PATH = re.compile(r"(?<![\w./<-])(?:memkit|architectures|ablations|benchmarks|tests|docs)/[\w./-]*\w")
COMMAND = re.compile(r"`(memkit [a-z][^`]*)`")
WORDS_LIMIT = 3.0


def text_of(name: str) -> str:
    return (HOUSE / name).read_text(encoding="utf-8")


def missing(name: str, text: str) -> list[str]:
    """Links, as they stand on a page, and paths from the root, that lead nowhere."""
    linked = [path for path in LINK.findall(text) if not (HOUSE / name).parent.joinpath(path).exists()]
    return linked + [path for path in PATH.findall(LINK.sub("](", text)) if not (HOUSE / path).exists()]


@pytest.mark.parametrize("name", NAMES)
def test_paths_exist(name: str) -> None:
    assert missing(name, text_of(name)) == []


def test_a_missing_path_is_seen() -> None:
    text = (
        "[a](using.md) [b](nowhere.md) [c](https://example.org/x) `memkit/rule.py`, memkit/engine/gone.py, docs/gone/."
    )
    assert missing("docs/house.md", text) == ["nowhere.md", "memkit/engine/gone.py", "docs/gone"]


def test_the_picture_of_the_house_is_of_this_house() -> None:
    (picture,) = (block for block in FENCED.findall(text_of("docs/house.md")) if block.startswith("```text"))
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py", "*.yaml"]
    files = [Path(line) for line in subprocess.run(command, cwd=HOUSE, capture_output=True, text=True).stdout.split()]
    known = {path.name for path in files} | {f"{folder.name}/" for path in files for folder in path.parents}
    drawn = set(re.findall(r"\w+\.py|\w+/", picture))
    assert drawn >= {"memkit/", "architectures/", "ablations/", "core/", "rule.py"}
    assert drawn - known == set()


@pytest.mark.parametrize("name", NAMES)
def test_commands_in_the_text_parse(name: str) -> None:
    commands = typer.main.get_command(app)
    for line in COMMAND.findall(FENCED.sub("", text_of(name))):
        words = shlex.split(line)
        known = commands.commands  # type: ignore[attr-defined]
        assert words[1] in known, line
        if len(words) > 2:
            known[words[1]].make_context(words[1], words[2:])


@pytest.mark.parametrize("name", NAMES)
def test_the_english_is_plain(name: str) -> None:
    prose = re.sub(r"`[^`]*`", "", FENCED.sub("", text_of(name)))
    words = [word.lower() for word in WORD.findall(prose)]
    rate = 100 * sum(word in COUNTED for word in words) / len(words)
    assert rate <= WORDS_LIMIT or name.endswith(GENERATED), f"{rate:.1f} words of {sorted(COUNTED)} per 100"


def test_the_table_of_rules_is_the_generated_one() -> None:
    text = text_of("docs/rules.md")
    shown = [line.split() for line in text.splitlines()]
    assert [line.split() for line in rules_page.page(text).splitlines()] == shown, (
        "python tests/helpers/rules_page.py writes the table of today"
    )
    assert all(any(row[:1] == [name] for row in shown) for name in memkit.names("rule"))


def test_every_form_is_told_of() -> None:
    rule = memkit.build("rule", "delta_net")
    q = k = v = torch.zeros(1, 1, 1, 2)
    state = memkit.init_state(rule, batch=1, heads=1, key_dim=2, value_dim=2)
    with pytest.raises(ValueError, match="unknown form") as refused:
        memkit.memorize(rule, q, k, v, {"lr": torch.zeros(1, 1, 1)}, state, form="unheard-of")  # type: ignore[arg-type]
    named = set(re.findall(r"\w+", str(refused.value).rpartition(":")[2])) - {"auto"}
    assert {"scan", "dual", "triton"} <= named
    assert named <= set(re.findall(r"^\| `(\w+)` \|", text_of("docs/rules.md"), re.MULTILINE))


def test_every_page_is_linked_from_the_readme() -> None:
    readme = text_of("README.md")
    assert [page.name for page in PAGES.glob("*.md") if f"docs/{page.name}" not in readme] == []
