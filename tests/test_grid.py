"""Grids: read and checked whole before anything runs, and run so that nothing finished is ever lost."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import memkit
from ablations import run_grid as run_grid_module
from ablations.grid import Grid, build_empty, changed, read_grid, shipped, slug
from ablations.pool import News, run_all
from ablations.results import collect, failed, run_folder, summaries
from ablations.run import RunSpec, execute
from ablations.run_grid import run_grid

SMALL: dict[str, Any] = {
    "title": "Small",
    "task": {"name": "recall", "length": 16, "pairs": 2, "vocab_size": 16},
    "train": {"steps": 3, "batch": 2, "eval_every": 2},
    "baseline": {"name": "transformer", "dim": 8, "depth": 1, "heads": 2},
    "variants": {"wide": {"dim": 16}, "window": {"name": "sliding_window", "window": 4}},
    "seeds": 1,
}


def grid_file(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "my_grid.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}, sort_keys=False))
    return path


def small(tmp_path: Path, **changes: Any) -> Grid:
    return read_grid(grid_file(tmp_path, **changes))


# -- what a grid says


@pytest.mark.parametrize(
    ("baseline", "changes", "expected"),
    [
        ({"name": "lmm", "dim": 8}, {}, {"name": "lmm", "dim": 8}),
        ({"name": "lmm", "dim": 8}, {"dim": 16}, {"name": "lmm", "dim": 16}),
        (
            {"name": "lmm", "rule": {"name": "titans", "depth": 2}},
            {"rule": {"depth": 1}},
            {"name": "lmm", "rule": {"name": "titans", "depth": 1}},
        ),
        # a component written short, and one that the architecture has by default
        (
            {"name": "lmm", "rule": "titans"},
            {"rule": {"depth": 1}},
            {"name": "lmm", "rule": {"name": "titans", "depth": 1}},
        ),
        ({"name": "lmm"}, {"rule": {"depth": 1}}, {"name": "lmm", "rule": {"name": "titans", "depth": 1}}),
        # another component takes nothing from the old one
        (
            {"name": "lmm", "rule": {"name": "titans", "depth": 2}},
            {"rule": {"name": "mamba2"}},
            {"name": "lmm", "rule": {"name": "mamba2"}},
        ),
        # another architecture keeps what it has too
        (
            {"name": "lmm", "dim": 8, "persistent": 2, "rule": "titans"},
            {"name": "sliding_window", "window": 4},
            {"name": "sliding_window", "dim": 8, "window": 4},
        ),
        (
            {"name": "lmm", "dim": 8, "persistent": 2, "rule": "titans"},
            {"name": "mac"},
            {"name": "mac", "dim": 8, "persistent": 2, "rule": "titans"},
        ),
    ],
)
def test_changes(baseline: dict[str, Any], changes: dict[str, Any], expected: dict[str, Any]) -> None:
    before = json.dumps([baseline, changes])
    assert changed(baseline, changes) == expected
    assert json.dumps([baseline, changes]) == before


def test_the_baseline_is_a_row_of_its_own_or_the_variant_without_changes(tmp_path: Path) -> None:
    grid = small(tmp_path)
    assert list(grid.architectures()) == ["baseline", "wide", "window"]
    assert grid.baseline_row() == "baseline"
    grid = small(tmp_path, variants={"wide": {"dim": 16}, "as it is": None})
    assert list(grid.architectures()) == ["wide", "as it is"]
    assert grid.baseline_row() == "as it is"


@pytest.mark.parametrize(("given", "expected"), [(3, [0, 1, 2]), ([5, 7], [5, 7])])
def test_seeds_are_a_number_or_a_list(tmp_path: Path, given: Any, expected: list[int]) -> None:
    assert small(tmp_path, seeds=given).seeds == expected


def test_the_command_line_may_replace_seeds_steps_and_text(tmp_path: Path) -> None:
    novel = tmp_path / "novel.txt"
    novel.write_bytes(b"word " * 1000)
    path = grid_file(tmp_path, task="text")
    grid = read_grid(path, seeds=4, steps=7, text=str(novel))
    assert grid.seeds == [0, 1, 2, 3]
    assert grid.settings(2).model_dump() | {"steps": 7, "seed": 2, "batch": 2} == grid.settings(2).model_dump()
    assert grid.task_config.options == {"path": str(novel)}
    assert read_grid(path).settings().steps == 3


# -- shipped grids


def test_shipped_grids_are_valid_and_registered() -> None:
    assert shipped() == memkit.names("grid") == ["quickstart", "recall", "smoke", "titans_table5"]
    for name in shipped():
        grid = memkit.build("grid", name)
        assert len(grid.seeds) >= 2
        assert grid.baseline_row() in grid.architectures()


def test_quickstart_compares_what_the_demo_promises() -> None:
    made = memkit.build("grid", "quickstart").architectures()
    wanted = {"lmm", "mac", "mag", "mal", "transformer", "sliding_window", "mamba2"}
    assert wanted <= {architecture["name"] for architecture in made.values()}


def test_table_5_changes_one_factor_a_row() -> None:
    grid = memkit.build("grid", "titans_table5")
    made = grid.architectures()
    base = made["LMM"]
    rules = {name: memkit.build("rule", architecture["rule"]) for name, architecture in made.items()}
    assert {made[f"+Attn ({name.upper()})"]["name"] for name in ("mac", "mag", "mal")} == {"mac", "mag", "mal"}
    assert made["w/o convolution"] == {**base, "conv": 0}
    assert made["w/o persistent memory"] == {**base, "persistent": 0}
    assert set(rules["linear memory"].memory.shapes(4, 3).values()) == {(4, 3)}
    assert len(rules["LMM"].memory.shapes(4, 3)) == 2
    assert {name for name, rule in rules.items() if rule.optimizer.name != "momentum"} == {"w/o momentum"}
    assert {name for name, rule in rules.items() if rule.retention.name != "decay"} == {"w/o weight decay"}
    for name in ("w/o momentum", "w/o weight decay", "linear memory"):
        assert {k: v for k, v in made[name].items() if k != "rule"} == {k: v for k, v in base.items() if k != "rule"}
    published = grid.report.published
    assert set(published.rows) == set(made)
    # the published order of what each part contributes: weight decay, momentum, convolution, persistent memory
    parts = ["w/o weight decay", "w/o momentum", "w/o convolution", "w/o persistent memory", "LMM"]
    assert sorted(parts, key=lambda name: -published.rows[name][0]) == parts


# -- mistakes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"varients": {}}, "has no key 'varients'. Did you mean 'variants'"),
        ({"task": "recal"}, "task: unknown task 'recal'. Did you mean 'recall'"),
        ({"task": {"name": "recall", "pair": 2}}, "task: task 'recall' has no option 'pair'. Did you mean 'pairs'"),
        ({"task": {"name": "text", "path": "no/such/file"}}, "task: .*there is no file or folder 'no/such/file'"),
        ({"train": {"step": 3}}, "train has no key 'step'. Did you mean 'steps'"),
        ({"train": {"seed": 3}}, "its seeds are the key 'seeds'"),
        ({"baseline": {"name": "lmmm"}}, "baseline: unknown architecture 'lmmm'. Did you mean 'lmm'"),
        ({"baseline": {"dim": 8}}, "baseline: .*'name'"),
        ({"baseline": {"name": "lmm", "vocab_size": 3}}, "vocab_size"),
        (
            {"variants": {"a": {"dmi": 8}}},
            "variant 'a': architecture 'transformer' has no option 'dmi'. Did you mean 'dim'",
        ),
        ({"variants": {"a": {"name": "macc"}}}, "variant 'a': unknown architecture 'macc'. Did you mean 'mac'"),
        ({"variants": {"a": {"heads": 3}}}, "variant 'a': .*3 does not divide"),
        ({"variants": {"a": {"name": "lmm", "rule": {"dept": 1}}}}, "variant 'a': .*'dept'. Did you mean 'depth'"),
        ({"variants": {"a": {"dim": 16}, "b": {"dim": 16}}}, "'a' and 'b' are the same model"),
        ({"variants": {"a b": {"dim": 16}, "A-B": {"dim": 24}}}, "'a b' and 'A-B' would share the folder 'a-b'"),
        ({"variants": {"baseline": {"dim": 16}}}, "the variant 'baseline' changes the baseline"),
        ({"variants": 3}, "variants = 3 does not fit"),
        ({"seeds": 0}, "how many seeds"),
        ({"seeds": [1, 1]}, "how many seeds"),
        ({"report": {"publishd": {}}}, "report has no key 'publishd'. Did you mean 'published'"),
        ({"report": {"published": {"column": []}}}, "report.published has no key 'column'. Did you mean 'columns'"),
        (
            {"report": {"published": {"columns": ["x"], "rows": {"wid": [1.0]}}}},
            "no variant 'wid'. Did you mean 'wide'",
        ),
        ({"report": {"published": {"columns": ["x"], "rows": {"wide": [1.0, 2.0]}}}}, "2 figures for 1 columns"),
    ],
)
def test_a_mistake_is_told_with_the_file_and_the_nearest_key(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"(?s)my_grid.yaml.*{message}"):
        small(tmp_path, **changes)


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)task:.*train.*variant 'a'.*variant 'b'") as caught:
        small(tmp_path, task="x", train={"x": 1}, variants={"a": {"x": 1}, "b": {"y": 1}})
    assert len(str(caught.value).splitlines()) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "not valid YAML"),
        ("- 1", "must be a mapping"),
        ("", "must be a mapping"),
        ("title: x", "needs the key"),
    ],
)
def test_a_file_that_is_no_grid(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"x.yaml.*{message}"):
        read_grid(path)


def test_an_unknown_grid_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="no grid 'quikstart', .*Did you mean 'quickstart'"):
        read_grid("quikstart")


def test_checking_needs_no_memory_for_weights() -> None:
    model = build_empty({"name": "transformer", "dim": 1 << 14, "depth": 64, "heads": 64}, 256)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert sum(parameter.numel() for parameter in model.parameters()) > 10**11


# -- worker processes


def double(number: int, send: Callable[[Any], None]) -> int:
    """Does what its number says: negative ones raise, 13 kills its process."""
    if number == 13:
        os._exit(3)
    if number < 0:
        raise ValueError(f"{number} is negative")
    send(("halfway", number))
    return 2 * number


def sleep(seconds: float, send: Callable[[Any], None]) -> None:
    send(os.getpid())
    time.sleep(seconds)


def test_a_call_that_fails_or_dies_costs_no_other() -> None:
    news = list(run_all(double, {name: (number,) for name, number in zip("abcd", (1, -1, 13, 4), strict=True)}, 1))
    ends = {one.key: (one.kind, one.value) for one in news if one.kind != "news"}
    assert ends["a"] == ("done", 2) and ends["d"] == ("done", 8)
    assert ends["b"] == ("failed", "ValueError: -1 is negative")
    assert ends["c"][0] == "failed" and "exit code 3" in ends["c"][1]
    assert [one.value for one in news if one.kind == "news"] == [("halfway", 1), ("halfway", 4)]
    assert 'raise ValueError(f"{number} is negative")' in next(one.details for one in news if one.key == "b")


def test_workers_end_with_the_iteration() -> None:
    with closing(run_all(sleep, {"a": (60,)}, 2)) as news:
        process = next(news).value
        os.kill(process, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


# -- running


def work_that_breaks(spec: RunSpec, folder: Path, send: Callable[[Any], None]) -> dict[str, Any]:
    """As `run_grid` works, but the variant `window` breaks off after its first steps."""

    def tell(step: int, loss: float) -> None:
        send((step, loss))
        if spec.name.startswith("window") and step == 3:
            raise RuntimeError("the disk is full")

    return execute(spec, folder, tell)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[News[Any]]]:
    """A grid that has run once, with one variant that broke off."""
    tmp_path = tmp_path_factory.mktemp("grid")
    heard: list[News[Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_grid_module, "_work", work_that_breaks)
        run_grid(small(tmp_path), tmp_path / "out", jobs=1, on_news=heard.append)
    return tmp_path / "out", heard


def test_a_variant_that_fails_does_not_take_the_others_with_it(ran: tuple[Path, list[News[Any]]]) -> None:
    out, heard = ran
    results = collect(out)
    status = {one["variant"]: one["status"] for one in results["runs"]}
    assert status == {"baseline": "finished", "wide": "finished", "window": "failed"}
    assert failed(results)
    assert summaries(results)[2].troubles == ["window (seed 0) failed: RuntimeError: the disk is full"]
    assert [row["step"] for row in results["runs"][2]["history"]] == [2]  # what was computed is kept
    assert "the disk is full" in (run_folder(out, "window", 0) / "error.txt").read_text()
    assert [one.value[0] for one in heard if one.kind == "news" and one.key == ("wide", 0)] == [1, 2, 3]


def test_results_say_what_was_run(ran: tuple[Path, list[News[Any]]]) -> None:
    results = json.loads((ran[0] / "results.json").read_text())
    wide = results["runs"][1]
    model = memkit.build("architecture", "transformer", vocab_size=16, dim=16, depth=1, heads=2)
    assert wide["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert wide["state_bytes"] == model.state_bytes(16)
    assert wide["tokens"] == 3 * 2 * 16
    assert wide["held_out"] == wide["history"][-1]["held_out"]
    assert results["baseline"] == "baseline" and results["seeds"] == [0]
    assert results["environment"]["torch"] == torch.__version__
    assert yaml.safe_load(results["text"])["variants"] == SMALL["variants"]


def test_a_restart_keeps_what_is_finished_and_runs_the_rest(ran: tuple[Path, list[News[Any]]], tmp_path: Path) -> None:
    out, _ = ran
    before = (run_folder(out, "wide", 0) / "result.json").stat().st_mtime_ns
    plans: list[tuple[list[Any], int]] = []
    results = run_grid(
        small(tmp_path, seeds=2), out, jobs=1, on_start=lambda todo, kept: plans.append((list(todo), kept))
    )
    assert plans == [([("window", 0), ("baseline", 1), ("wide", 1), ("window", 1)], 2)]
    assert (run_folder(out, "wide", 0) / "result.json").stat().st_mtime_ns == before
    assert not failed(results)
    assert results["seeds"] == [0, 1]
    assert [len(summary.values) for summary in summaries(results)] == [2, 2, 2]
    # with one seed asked for, the other one's runs are not forgotten
    assert len(run_grid(small(tmp_path), out, jobs=1)["runs"]) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {**SMALL["train"], "steps": 4}}, "definition.train.steps is 3 there and 4 here"),
        ({"variants": {"wide": {"dim": 24}}}, "definition.variants.wide.dim is 16 there and 24 here"),
        ({"task": {**SMALL["task"], "pairs": 3}}, "definition.task.pairs is 2 there and 3 here"),
    ],
)
def test_a_folder_with_another_grid_is_refused_before_anything_is_lost(
    ran: tuple[Path, list[News[Any]]], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    out, _ = ran
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=f"holds another grid: {message}"):
        run_grid(small(tmp_path, **changes), out, jobs=1)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_other_text_is_another_grid(tmp_path: Path) -> None:
    novel, out = tmp_path / "novel.txt", tmp_path / "out"
    novel.write_bytes(b"word " * 1000)
    grid = small(tmp_path, task={"name": "text", "path": str(novel), "length": 16})
    run_grid_module._claim(grid, grid.task_config.build(), out)
    run_grid_module._claim(grid, grid.task_config.build(), out)
    novel.write_bytes(b"Word " * 1000)
    with pytest.raises(ValueError, match="holds another grid: token_digest is"):
        run_grid_module._claim(grid, grid.task_config.build(), out)


def test_a_title_may_change(ran: tuple[Path, list[News[Any]]], tmp_path: Path) -> None:
    grid = small(tmp_path, title="A better title")
    run_grid_module._claim(grid, grid.task_config.build(), ran[0])
    assert collect(ran[0])["title"] == "A better title"


def test_a_folder_with_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="not an output folder"):
        run_grid(small(tmp_path), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_an_interrupted_grid_keeps_what_is_finished(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def interrupt(news: News[Any]) -> None:
        if news.kind == "done":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_grid(small(tmp_path), out, jobs=1, on_news=interrupt)
    results = json.loads((out / "results.json").read_text())
    assert [one["status"] for one in results["runs"]] == ["finished", "missing", "missing"]
    assert not failed(results)


def test_jobs_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="jobs must be an integer of at least 1"):
        run_grid(small(tmp_path), tmp_path / "out", jobs=0)
    assert not (tmp_path / "out").exists()


def test_slugs() -> None:
    assert [slug(name) for name in ("+Attn (MAC)", "w/o momentum", "lmm", "++")] == [
        "attn-mac",
        "w-o-momentum",
        "lmm",
        "variant",
    ]
