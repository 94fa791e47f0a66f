"""Figures of a report: curves, bars and labels lie at the values."""

from __future__ import annotations

import math
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablations.report.figures import curves, dots, standalone
from ablations.report.svg import Scale, spread_apart, ticks
from ablations.results import summaries
from report_data import SCORES, finished, results

__all__ = ["results"]  # the fixture

SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def test_dots_lie_where_the_values_do(results: dict[str, Any]) -> None:
    groups = parsed(dots(results)).findall(f".//{SVG}g[@class='series']")
    assert len(groups) == 3
    places: list[float] = []
    values: list[float] = []
    for group, summary in zip(groups, summaries(results), strict=True):
        circles = group.findall(f"{SVG}circle")
        places += [float(circle.attrib["cx"]) for circle in circles]
        values += [*summary.values, summary.mean or math.nan]
    slope = (places[1] - places[0]) / (values[1] - values[0])
    assert slope > 0
    for place, value in zip(places, values, strict=True):
        assert place == pytest.approx(places[0] + slope * (value - values[0]), abs=0.05)
    assert min(places) > 0 and max(places) < 920


def test_curves_have_a_line_a_band_and_a_label_each_and_the_yardstick(results: dict[str, Any]) -> None:
    root = parsed(curves(results))
    groups = root.findall(f".//{SVG}g[@class='series']")
    for group, name in zip(groups, SCORES, strict=True):
        line = next(path for path in group.findall(f"{SVG}path") if "curve" in path.attrib["class"])
        points = [tuple(map(float, point.split(","))) for point in line.attrib["d"][1:].split("L")]
        assert len(points) == 4
        assert [x for x, _ in points] == sorted(x for x, _ in points)
        assert [y for _, y in points] == sorted(y for _, y in points)  # falling bits: downwards, so growing y
        assert [text.text for text in group.findall(f"{SVG}text")][0] == name
    labels = sorted(float(group.findall(f"{SVG}text")[0].attrib["y"]) for group in groups)
    assert all(b - a >= 17.9 for a, b in zip(labels, labels[1:], strict=False))
    assert any(text.text == "letter frequencies: 4.600" for text in root.iter(f"{SVG}text"))


def test_more_variants_than_colors_differ_by_their_dashes(results: dict[str, Any]) -> None:
    names = [f"v{i}" for i in range(20)]
    results["definition"]["variants"] = dict.fromkeys(names, {})
    results["runs"] = [finished(name, 0, 2 + i / 10) for i, name in enumerate(names)]
    results["baseline"] = "v0"
    drawn = [
        (path.attrib["class"], path.attrib["stroke-dasharray"])
        for path in parsed(curves(results)).iter(f"{SVG}path")
        if path.attrib["class"].startswith("curve")
    ]
    assert len(set(drawn)) == 20


@given(st.lists(st.floats(0, 400), min_size=1, max_size=20), st.floats(5, 18))
def test_labels_keep_apart_within_bounds_and_in_order(places: list[float], gap: float) -> None:
    found = spread_apart(places, gap, 0, 400)
    ordered = sorted(found)
    assert all(b - a >= gap - 1e-6 for a, b in zip(ordered, ordered[1:], strict=False))
    assert ordered[0] >= -1e-6 and ordered[-1] <= 400 + 1e-6
    for (a, moved_a), (b, moved_b) in zip(
        zip(places, found, strict=True), zip(places, found, strict=True), strict=True
    ):
        assert (a < b) <= (moved_a < moved_b)


def test_labels_that_are_apart_stay() -> None:
    assert spread_apart([300.0, 10.0, 100.0], 18, 0, 400) == [300.0, 10.0, 100.0]


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 10))
def test_ticks_are_round_and_inside(low: float, width: float, about: int) -> None:
    found = ticks(low, low + width, about)
    slack = 1e-6 * (abs(low) + width)
    assert all(low - slack <= tick <= low + width + slack for tick in found)
    assert len(found) <= about + 1
    if len(found) > 1 and width > 1e-3 * abs(low):
        step = found[1] - found[0]
        mantissa = step / 10 ** math.floor(math.log10(step) + 1e-6)
        assert min(abs(mantissa - round_one) for round_one in (1, 2, 5, 10)) < 1e-3


def test_scale() -> None:
    scale = Scale(2, 4, 100, 0)
    assert [scale(x) for x in (2, 3, 4)] == [100, 50, 0]
    assert Scale(1, 1, 5, 9)(1) == 5


def test_figures_stand_alone(results: dict[str, Any]) -> None:
    root = parsed(standalone(curves(results)).split("\n", 1)[1])
    assert root.tag == f"{SVG}svg"
    style = root.find(f"{SVG}style")
    assert style is not None and style.text is not None and "--c7" in style.text
