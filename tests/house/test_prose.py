"""Docstrings and comments are plain English: few words without a noun behind them, and openings that name a subject."""

from __future__ import annotations

from pathlib import Path

import pytest

from words import rate, totals

LIMIT = 3.0
"""Words of `words.COUNTED` per 100, in docstrings and comments of a package."""


def test_the_english_of_every_package_is_plain() -> None:
    found = totals()
    assert {"memkit", "memkit/engine", "memkit/rules", "architectures", "ablations"} <= found.keys()
    beyond = []
    for package, count in found.items():
        if rate(count) > LIMIT:
            beyond.append(f"{package}: {rate(count):.2f} words per 100 instead of {LIMIT}")
        if count["openings"]:
            beyond.append(f"{package}: {count['openings']} docstrings begin with What, Whether, Where, How or The same")
    assert beyond == [], "\n".join([*beyond, "python tests/helpers/words.py FOLDER lists the files"])


@pytest.mark.parametrize(
    ("text", "counted", "openings"),
    [
        ('"""Weights of every token."""', 0, 0),
        ('"""What is left."""', 1, 1),
        ('def f():\n    """Whether it is so.\n\n    That is all.\n    """', 1, 1),
        ('class A:\n    b = 1\n    """The same for b, which is one."""', 1, 1),
        ('x = 1\n"""How many."""', 0, 1),
        ('"""Whatever comes, however it comes."""', 0, 0),
        ("x = 'What is this, and who?'", 0, 0),
        ("x = 1  # a number that counts", 1, 0),
    ],
)
def test_words_and_openings_are_counted(text: str, counted: int, openings: int, tmp_path: Path) -> None:
    (tmp_path / "memkit/engine/core").mkdir(parents=True)
    (tmp_path / "memkit/engine/core/a.py").write_text(text + "\n")
    (count,) = totals(tmp_path).values()
    assert (count["counted"], count["openings"]) == (counted, openings)
