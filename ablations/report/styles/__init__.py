"""The style sheets of reports, as text: the theme's colors, figures, pages, benchmarks."""

from __future__ import annotations

from pathlib import Path

HUES = 8  # Okabe and Ito's colors, distinct for most color-blind people; beyond 8 series, dashes tell them apart


def _read(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


THEME = _read("theme.css").replace("\n", "")
"""Colors by name, for light and dark screens: the ground of every other sheet."""
FIGURES = f"\n{_read('figures.css')}" + "".join(
    f".chart .s{i}{{stroke:var(--c{i})}}.chart .f{i}{{fill:var(--c{i})}}" for i in range(HUES)
)
"""Figures; `s0` to `s7` draw with a hue, `f0` to `f7` fill with it."""
PAGE = f"\n{_read('page.css')}"
BENCHMARKS = f"\n{_read('benchmarks.css')}"
