"""The page of benchmarks: verdicts on goals, figures read back as they were stored, lines drawn at their values."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from ablations.bench import Benchmark, base
from ablations.bench.base import Failure
from ablations.bench.crossing import crossing, describe
from ablations.bench.goal import Goal, single
from ablations.bench.page import write_page
from ablations.bench.timing import Spread
from ablations.cli import main
from ablations.report.lines import Lines, draw, marks

NAN, INF = math.nan, math.inf


def goal(low: float, median: float, high: float, reach: float, at_most: bool = False) -> Goal:
    return Goal("what", "1 s", "4 s", Spread(low, median, high), reach, at_most)


@pytest.mark.parametrize(
    ("figures", "reach", "at_most", "verdict"),
    [
        ((4.1, 5.0, 6.0), 4.0, False, "reached"),
        ((3.9, 5.0, 6.0), 4.0, False, "not resolved"),
        ((2.0, 3.0, 4.1), 4.0, False, "not resolved"),
        ((2.0, 3.0, 3.9), 4.0, False, "not reached"),
        ((0.9, 1.0, 1.1), 1.1, True, "reached"),
        ((0.9, 1.0, 1.2), 1.1, True, "not resolved"),
        ((1.2, 1.3, 1.4), 1.1, True, "not reached"),
        ((NAN, NAN, NAN), 1.1, True, "not reached"),
        ((1.0, 2.0, INF), 1.5, True, "not reached"),
    ],
)
def test_a_spread_wider_than_the_margin_resolves_nothing(
    figures: tuple[float, float, float], reach: float, at_most: bool, verdict: str
) -> None:
    assert goal(*figures, reach, at_most).verdict == verdict


def test_a_goal_as_a_row() -> None:
    assert goal(3.0, 4.0, 5.0, 3.5).cells == (
        "what",
        "1 s",
        "4 s",
        "4.00 (3.00 to 5.00) times",
        "at least 3.5",
        "not resolved",
    )
    once = Goal("what", "a", "b", single(1.0103), 1.02, at_most=True)
    assert once.cells[3:] == ("1.01 times", "at most 1.02", "reached")


@pytest.mark.parametrize(
    ("figures", "reach", "at_most", "shown", "verdict"),
    [
        ((1.0203,) * 3, 1.02, True, "1.0203", "not reached"),
        ((1.02,) * 3, 1.02, True, "1.02", "reached"),
        ((1.0199,) * 3, 1.02, True, "1.0199", "reached"),
        ((74.996,) * 3, 75.0, False, "74.996", "not reached"),
        ((1.0000004e-6,) * 3, 1e-6, True, "1.0000004e-06", "not reached"),
        ((0.9, 1.0, 1.10004), 1.1, True, "1.00000 (0.90000 to 1.10004)", "not resolved"),
        ((1.5999, 1.7, 1.8), 1.6, False, "1.7000 (1.5999 to 1.8000)", "not resolved"),
        ((1.6, 1.7, 1.8), 1.6, False, "1.70 (1.60 to 1.80)", "reached"),
        ((1.0, 2.0, INF), 1.5, True, "2.00 (1.00 to inf)", "not reached"),
        ((NAN, NAN, NAN), 1.1, True, "nan (nan to nan)", "not reached"),
    ],
)
def test_digits_tell_a_figure_from_its_goal(
    figures: tuple[float, float, float], reach: float, at_most: bool, shown: str, verdict: str
) -> None:
    assert goal(*figures, reach, at_most).cells[3::2] == (f"{shown} times", verdict)


@pytest.mark.parametrize(
    ("ours", "yardstick", "found"),
    [
        ([4.0, 4.0, 4.0], [1.0, 4.0, 16.0], 20.0),
        ([4.0, 4.0, 4.0], [1.0, 2.0, 8.0], 20 * math.sqrt(2)),
        (
            [4.0, 4.0, 4.0],
            [5.0, 3.0, 5.0],
            20 * 2 ** (math.log(4 / 3) / math.log(5 / 3)),
        ),  # the last time, not the first
        ([4.0, 4.0, 4.0], [5.0, 6.0, 7.0], 10.0),
        ([4.0, 4.0, 4.0], [1.0, 2.0, 4.0], INF),
    ],
)
def test_lines_cross_where_one_stays_below(ours: list[float], yardstick: list[float], found: float) -> None:
    assert crossing([10, 20, 40], ours, yardstick) == pytest.approx(found)


def test_crossings_in_words() -> None:
    lengths = (10, 20, 4000)
    assert describe(Spread(900.0, 1000.4, INF), lengths) == "1,000 (900 to not up to 4,000)"
    assert describe(Spread(10.0, 10.0, 10.0), lengths) == "10 or less"


def test_lines_are_drawn_on_logarithmic_axes() -> None:
    plot = Lines(
        "Time", "tokens", "us", {"a & b": [[256, 1.0], [1024, 4.0], [4096, 16.0]], "one": [[256, 2.0]], "none": []}
    )
    picture = ElementTree.fromstring(draw(plot))
    dots = [
        (float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in picture.iter("{http://www.w3.org/2000/svg}circle")
    ]
    (x0, y0), (x1, y1), (x2, y2), (_, lone) = dots
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.02) and y0 - y1 == pytest.approx(y1 - y2, abs=0.02)
    assert lone == pytest.approx((y0 + y1) / 2, abs=0.02)
    words = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert "a & b" in words and "none" not in words and {"256", "1,024", "4,096"} <= set(words)
    assert "Nothing was measured." in draw(Lines("Time", "tokens", "us", {}))
    placed = draw(Lines("Time", "tokens", "us", {"one": [[1, 0.0], [2, 3.0], [4, NAN], [8, INF]]}))
    assert placed.count("<circle") == 1


def test_a_line_has_no_mark_where_nothing_was_measured() -> None:
    svg = "{http://www.w3.org/2000/svg}"
    lines, flat = {"grows": [[256, 1.0], [4096, 4.0]], "flat": [[256, 2.0], [1024, 2.0]]}, {"flat": [[4096, 2.0]]}
    picture = ElementTree.fromstring(draw(Lines("Time", "tokens", "us", lines, flat)))
    grows, steady = (series for series in picture.iter(f"{svg}g") if series.attrib["class"] == "series")
    assert [len(list(series.iter(f"{svg}circle"))) for series in (grows, steady)] == [2, 2]
    curves = [one for one in steady.iter(f"{svg}path") if one.attrib["class"].startswith("curve")]
    assert [("stroke-opacity" in one.attrib) for one in curves] == [False, True]
    ends = [one.attrib["d"].rsplit("L", 1)[-1].split(",") for one in curves]
    last = [one.attrib["cx"] for one in grows.iter(f"{svg}circle")][-1]
    assert ends[1][0] == last and ends[0][1] == ends[1][1], "as far as the others, and as high as it was"
    assert curves[1].attrib["d"].startswith(f"M{','.join(ends[0])}L")
    assert draw(Lines("Time", "tokens", "us", {"gone": [[1, NAN]]}, {"gone": [[2, 1.0]]})).count("<path") == 0


def test_what_is_flat_looks_flat_and_marks_are_written_out() -> None:
    def picture(values: list[float]) -> ElementTree.Element:
        return ElementTree.fromstring(
            draw(Lines("Memory", "tokens", "MiB", {"one": [[10, values[0]], [99, values[1]]]}))
        )

    def words(values: list[float]) -> list[str | None]:
        return [text.text for text in picture(values).iter("{http://www.w3.org/2000/svg}text")]

    (_, a), (_, b) = [
        (float(dot.attrib["cx"]), float(dot.attrib["cy"]))
        for dot in picture([301.0, 307.0]).iter("{http://www.w3.org/2000/svg}circle")
    ]
    assert 0 < a - b < 0.03 * 400, "2 percent, of a picture 400 high"
    assert "300" in words([301.0, 307.0]) and "3,000,000" in words([2e5, 4e6])


def test_marks_of_an_axis_are_few_and_round() -> None:
    assert marks([256, 512], own=True) == [256, 512]
    assert marks([3.0, 7.0, 40_000.0], own=False) == [10, 100, 1000, 10_000]
    assert marks([1.0, 30.0], own=False) == [1, 3, 10, 30]
    assert marks([750.0, 2900.0], own=False) == [1000, 2000]
    assert marks([124.6, 279.6], own=False) == [150, 200, 250]
    assert marks([2.0, 2.0], own=False) == [2.0]
    assert marks(list(range(1, 101)), own=True) == [1, 10, 100]


def example() -> Benchmark:
    plot = Lines("Time", "tokens", "us", {"mine": [[256, 1.0], [512, 2.5]]}, {"mine": [[1024, 2.5]]})
    return Benchmark(
        "Thing <1>",
        ("what", "us"),
        (("mine", "1 | 2"),),
        "With `code`.",
        {"x": [1.5]},
        (goal(3, 4, 5, 2.0),),
        (plot,),
        {"date": "today"},
        (Failure("a <model>", "killed", "Traceback: here"),),
    )


def test_figures_come_back_as_they_were_kept(tmp_path: Path) -> None:
    markdown, data = example().write(tmp_path, "thing")
    assert Benchmark.read(data) == example()
    kept = json.loads(data.read_text())
    assert kept["goals"][0]["verdict"] == "reached"
    assert "**a <model> failed, and is not among these figures: killed**" in markdown.read_text().splitlines()
    assert markdown.read_text().splitlines()[-3:] == [
        "| what | 1 s | 4 s | 4.00 (3.00 to 5.00) times | at least 2 | reached |",
        "",
        "date: today",
    ]
    del kept["troubles"]
    data.write_text(json.dumps(kept))
    assert Benchmark.read(data) == replace(example(), failures=()), "as files were before"


def test_a_page_holds_every_benchmark_of_a_folder(tmp_path: Path) -> None:
    example().write(tmp_path, "thing")
    example().write(tmp_path, "other")
    (tmp_path / "foreign.json").write_text('{"title": "not ours"}')
    page = write_page(tmp_path).read_text()
    assert page.count("Thing &lt;1&gt;</h2>") == 2 and "<code>code</code>" in page and "not ours" not in page
    assert page.count('<td class="reached">reached</td>') == 2
    said = "Thing &lt;1&gt;: a &lt;model&gt; failed, and is not among these figures: killed"
    assert page.count(f'<p class="headline trouble">{said}</p>') == 4, "on top, and with the figures"
    assert "<script" not in page and "src=" not in page and "@import" not in page


def test_all_runs_every_benchmark_and_leaves_out_what_cannot_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: object) -> Benchmark:
        raise ValueError("needs another machine.")

    made = {"thing": lambda _: replace(example(), failures=()), "needy": refuse}
    monkeypatch.setattr("ablations.bench.command.names", lambda kind: list(made))
    monkeypatch.setattr(base, "factory", lambda kind, name: made[name])
    assert main(["bench", "all", "--out", str(tmp_path)]) == 0
    assert "needy was left out: needs another machine." in capsys.readouterr().err
    kept = Benchmark.read(tmp_path / "thing.json")
    assert kept is not None and kept.about["command"] == "memkit bench thing"
    assert (tmp_path / "bench.html").exists() and not (tmp_path / "needy.json").exists()
    (tmp_path / "bench.html").unlink()
    assert main(["bench", "page", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "bench.html").exists()


def test_one_that_fails_among_all_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> Benchmark:
        raise RuntimeError("a process was killed.")

    made = {
        "one": lambda _: replace(example(), failures=()),
        "broken": fail,
        "other": lambda _: replace(example(), failures=()),
    }
    monkeypatch.setattr("ablations.bench.command.names", lambda kind: list(made))
    monkeypatch.setattr(base, "factory", lambda kind, name: made[name])
    assert main(["bench", "all", "--out", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "RuntimeError: a process was killed." in told and "broken failed" in told and "Page:" in told
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["one.json", "other.json"]
    assert (tmp_path / "bench.html").read_text().count("Thing &lt;1&gt;</h2>") == 2
    with pytest.raises(RuntimeError, match="a process was killed"):
        main(["bench", "broken", "--out", str(tmp_path)])
    (tmp_path / "empty").mkdir()
    del made["one"], made["other"]
    assert main(["bench", "all", "--out", str(tmp_path / "empty")]) != 0
    assert "broken failed" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["all", "thing"])
def test_one_that_fails_in_part_keeps_the_rest(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ablations.bench.command.names", lambda kind: ["thing"])
    monkeypatch.setattr(base, "factory", lambda kind, name: lambda _: example())
    assert main(["bench", name, "--out", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "a <model> failed, and is not among these figures: killed\nTraceback: here" in told
    assert "thing failed in part, see above; the page has the rest. Again: `memkit bench thing`." in told
    kept = Benchmark.read(tmp_path / "thing.json")
    assert kept is not None and kept.rows == example().rows and kept.failures == example().failures


def test_no_page_of_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "page", "--out", str(tmp_path)]) == 2
    assert "holds no benchmark" in capsys.readouterr().err
