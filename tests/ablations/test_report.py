"""Reports: every format shows the numbers of the runs."""

from __future__ import annotations

import copy
import io
import json
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ablations.display.runs import RunsDisplay
from ablations.files import write_json
from ablations.pool import Event
from ablations.report import write_report
from ablations.report.html import page
from ablations.report.markdown import document
from ablations.report.numbers import count, same_decimals, signed, size
from ablations.report.table import headline, make_table, print_table
from ablations.results import collect, failed, summaries
from ablations.run import RunSpec
from ablations.settings import TrainConfig
from report_data import results

__all__ = ["results"]  # the fixture


def with_failure(results: dict[str, Any], variant: str, seed: int) -> dict[str, Any]:
    """The same results, but one run diverged after its second evaluation."""
    changed = copy.deepcopy(results)
    for one in changed["runs"]:
        if (one["variant"], one["seed"]) == (variant, seed):
            one.update(status="diverged", message=f"{variant} diverged at step 3", history=one["history"][:2])
    return changed


# -- numbers


def test_summaries_are_mean_and_sample_deviation_over_seeds(results: dict[str, Any]) -> None:
    lmm, mac, _ = summaries(results)
    assert lmm.values == [2.5, 2.7]
    assert lmm.mean == pytest.approx(2.6)
    assert lmm.spread == pytest.approx(statistics.stdev([2.5, 2.7]))
    assert lmm.tokens_per_second == 1000.5
    assert lmm.curve[0] == (100, pytest.approx(5.6), 5.5, 5.7)
    assert mac.curve[-1] == (400, pytest.approx(2.4), 2.375, 2.425)


def test_a_failed_seed_is_left_out_of_the_means_and_told(results: dict[str, Any]) -> None:
    changed = with_failure(results, "lmm", 1)
    lmm = summaries(changed)[0]
    assert failed(changed) and not failed(results)
    assert (lmm.values, lmm.spread, len(lmm.curve)) == ([2.5], None, 4)
    assert lmm.failures == ["lmm diverged at step 3"]
    lines = make_table(changed).lines
    assert lines[0].cells[1] == "2.500" and lines[0].cells[3] == "1 of 2"


def test_a_variant_that_never_finished_shows_how_far_it_came(results: dict[str, Any]) -> None:
    changed = with_failure(with_failure(results, "mac", 0), "mac", 1)
    mac = summaries(changed)[1]
    assert mac.mean is None and [point[0] for point in mac.curve] == [100, 200]
    assert make_table(changed).lines[1].cells[1] == "failed"


def test_the_table(results: dict[str, Any]) -> None:
    table = make_table(results)
    assert table.columns[-2:] == ["LM ppl", "acc."] and table.published == 2
    cells = {line.cells[0]: line.cells[1:] for line in table.lines}
    assert cells["lmm"] == ["2.600 ± 0.141", "0.000", "2", "12,345", "3.0 KiB", "1,000", "10 s", "27.00", "47.83"]
    assert cells["mac"][:2] == ["2.400 ± 0.035", "−0.200"] and cells["mac"][-2:] == ["26.67", "–"]
    assert cells["w/o | <b>conv</b>"][-2:] == ["–", "–"]
    assert [line.best for line in table.lines] == [False, True, False]
    assert [line.baseline for line in table.lines] == [True, False, False]
    assert table.yardstick == ["letter frequencies", "4.600", "+2.000", *["–"] * 7]
    found = "Best of 3: mac, 2.400 ± 0.035 bits per byte. For comparison, letter frequencies: 4.600"
    assert headline(results) == f"{found}; a model below that has learned more."
    results["yardstick"] |= {"value": 2.3, "means": ""}
    assert headline(results).endswith("letter frequencies: 2.300. No variant does better.")
    del results["yardstick"]["means"]
    assert headline(results).endswith("letter frequencies: 2.300. No variant does better."), "a folder of before"


def test_best_follows_the_metric(results: dict[str, Any]) -> None:
    results["metric"]["direction"] = "higher"
    assert [line.best for line in make_table(results).lines] == [False, False, True]


def test_when_each_seed_solved_the_task_is_a_column_where_that_means_something(results: dict[str, Any]) -> None:
    assert "solved at step" not in make_table(results).columns
    results["metric"]["solved"] = 3.5  # scores fall by 1 a step, to 2.5 and 2.7, 2.375 and 2.425, 2.9 and 2.8
    changed = with_failure(results, "lmm", 1)  # after step 2, at 4.7
    table = make_table(changed)
    column = table.columns.index("solved at step")
    assert table.columns[column - 1] == "seeds" and len(table.yardstick) == len(table.columns)
    assert [line.cells[column] for line in table.lines] == ["3, never", "3, 3", "4, 4"]
    assert "first evaluation at which bits per byte was 3.5 or better, one per seed" in document(changed)
    changed["metric"].update(direction="higher", solved=5.4)
    assert [line.cells[column] for line in make_table(changed).lines] == ["1, 1", "never, 1", "1, 1"]
    for one in changed["runs"]:
        one.update(status="missing", history=[])
    assert [line.cells[column] for line in make_table(changed).lines] == ["–"] * 3


def test_nothing_has_finished_yet(results: dict[str, Any]) -> None:
    for one in results["runs"]:
        one.update(status="missing", history=[])
    assert headline(results) == "No run has finished yet."
    assert [line.cells[1] for line in make_table(results).lines] == ["not run yet"] * 3
    assert "No run has finished yet" in page(results) and "No evaluation yet" in page(results)
    assert document(results).startswith("# Parts")


@pytest.mark.parametrize(
    ("given", "expected"),
    [((27.0, 26.67), ["27.00", "26.67"]), ((1, 2), ["1", "2"]), ((0.1 + 0.2, 0.5), ["0.3", "0.5"]), ((), [])],
)
def test_same_decimals(given: tuple[float, ...], expected: list[str]) -> None:
    assert same_decimals(given) == expected


def test_numbers_for_people() -> None:
    assert [size(n) for n in (0, 1023, 1024, 1536, 3 * 2**20, 5 * 2**30)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 KiB",
        "3.0 MiB",
        "5.0 GiB",
    ]
    assert [count(n) for n in (0, 999, 1000, 245_760, 1_228_800)] == ["0", "999", "1 K", "246 K", "1.23 M"]
    assert [signed(x) for x in (0.0, -0.0004, 0.25, -0.25)] == ["0.000", "0.000", "+0.250", "−0.250"]


# -- terminal and Markdown


def printed(results: dict[str, Any], width: int) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"), color_system=None)  # noqa: SIM115
    with console.file:
        print_table(results, console)
    return console.export_text()


def test_a_narrow_terminal_loses_columns_and_no_numbers(results: dict[str, Any]) -> None:
    wide, narrow = printed(results, 200), printed(results, 70)
    assert "27.00" in wide and "Too narrow" not in wide
    assert "27.00" not in narrow and "Too narrow for:" in narrow
    for text in (wide, narrow):
        assert "2.400 ± 0.035" in text and "−0.200" in text and "w/o | <b>conv</b>" in text
    assert max(map(len, narrow.splitlines())) <= 70


def test_brackets_in_names_and_messages_are_text(results: dict[str, Any]) -> None:
    as_text = json.dumps(results).replace('"mac', '"mac [red]')
    printed_table = printed(with_failure(json.loads(as_text), "mac [red]", 1), 200)
    assert printed_table.count("mac [red]") == 3, "in the table, the headline and the failure"
    console = Console(width=200, record=True, file=io.StringIO(), color_system=None)
    spec = RunSpec("mac [red] (seed 0)", {}, 2, {}, TrainConfig(steps=3))
    display = RunsDisplay(console)
    display.on_start({("mac [red]", 0): spec}, 0)
    display.on_event(Event(("mac [red]", 0), "failed", "KeyError: '[dim]'"))
    assert console.export_text() == "1/1 mac [red] (seed 0): failed: KeyError: '[dim]'\n"


def test_failures_are_printed(results: dict[str, Any]) -> None:
    assert "lmm diverged at step 3" in printed(with_failure(results, "lmm", 1), 200)


def test_markdown_holds_the_table_with_pipes_escaped(results: dict[str, Any]) -> None:
    lines = [line for line in document(results).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 3 + 1
    assert lines[0].endswith("| published: LM ppl | published: acc. |")
    assert lines[3].startswith("| **mac** | **2.400 ± 0.035** | −0.200 |")
    assert lines[4].startswith(r"| w/o \| <b>conv</b> |")
    assert lines[5].startswith("| *letter frequencies* | *4.600* | *+2.000* | – |")
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {11}


# -- the page


class Reader(HTMLParser):
    """Collects tags and checks that every one that opens closes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_fetches_nothing_and_escapes_what_people_write(results: dict[str, Any]) -> None:
    html = page(results)
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    tags = {tag for tag, _ in reader.seen}
    assert {"table", "svg", "details", "dl"} <= tags
    assert not tags & {"script", "link", "img", "iframe", "b"}
    assert not [attributes for _, attributes in reader.seen if {"src", "href"} & attributes.keys()]
    assert "url(" not in html and "@import" not in html
    assert "&lt;script&gt;" in html and "w/o | &lt;b&gt;conv&lt;/b&gt;" in html
    assert "prefers-color-scheme:dark" in html
    assert "<code>recall</code> &amp; more" in page({**results, "description": "`recall` & more"})
    for text in ("2.400 ± 0.035", "published", "27.00", "table 5", "Few steps.", "abc123", "12,345"):
        assert text in html


def test_the_report_of_a_folder(results: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path / "grid.json", {key: value for key, value in results.items() if key != "runs"})
    for one in results["runs"]:
        one = dict(one)
        name = {"lmm": "lmm", "mac": "mac"}.get(one["variant"], "w-o-b-conv-b")
        folder = tmp_path / "runs" / name / f"seed-{one['seed']}"
        rows = one.pop("history")
        write_json(folder / "result.json", {k: v for k, v in one.items() if k not in ("variant", "seed")})
        (folder / "history.jsonl").write_text("".join(f"{row}\n".replace("'", '"') for row in rows))
    found = write_report(tmp_path)
    assert found["runs"] == results["runs"]
    assert {path.name for path in tmp_path.glob("*.*")} == {
        "grid.json",
        "results.json",
        "report.md",
        "report.html",
        "curves.svg",
        "variants.svg",
    }
    assert (tmp_path / "report.html").read_text() == page(results)


def test_a_folder_without_a_grid(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no grid's results. Give the folder that `memkit ablate` wrote"):
        collect(tmp_path)


def test_a_leader_within_the_spread_of_another_has_not_won(results: dict[str, Any]) -> None:
    for run in results["runs"]:
        if run["variant"] == "lmm":
            run["held_out"]["bits per byte"] = run["history"][-1]["held_out"]["bits per byte"] = 2.4 + run["seed"] / 10
    assert headline(results).startswith("Best of 3: mac, 2.400 ± 0.035 bits per byte. Within ± of it: lmm. For")
    assert not any(line.best for line in make_table(results).lines)
