"""Running grids: runs are independent of each other, and finished runs are never lost."""

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
from ablations.grid import Grid
from ablations.pool import Event, run_all
from ablations.results import collect, failed, run_folder, summaries
from ablations.run import RunSpec, execute
from ablations.run_grid import run_grid
from small_grid import SMALL, small

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
    ends = {one.key: (one.kind, one.value) for one in news if one.kind != "progress"}
    assert ends["a"] == ("done", 2) and ends["d"] == ("done", 8)
    assert ends["b"] == ("failed", "ValueError: -1 is negative")
    assert ends["c"][0] == "failed" and "exit code 3" in ends["c"][1]
    assert [one.value for one in news if one.kind == "progress"] == [("halfway", 1), ("halfway", 4)]
    assert 'raise ValueError(f"{number} is negative")' in next(one.details for one in news if one.key == "b")


def own_process(send: Callable[[Any], None]) -> int:
    return os.getpid()


@pytest.mark.parametrize("fresh", [True, False])
def test_a_call_may_have_a_process_of_its_own(fresh: bool) -> None:
    processes = {one.value for one in run_all(own_process, {"a": (), "b": ()}, 1, fresh=fresh)}
    assert len(processes) == (2 if fresh else 1)


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
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event[Any]]]:
    """A grid that has run once, with one variant that broke off."""
    tmp_path = tmp_path_factory.mktemp("grid")
    heard: list[Event[Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_grid_module, "_work", work_that_breaks)
        run_grid(small(tmp_path), tmp_path / "out", jobs=1, on_event=heard.append)
    return tmp_path / "out", heard


def test_a_variant_that_fails_does_not_take_the_others_with_it(ran: tuple[Path, list[Event[Any]]]) -> None:
    out, heard = ran
    results = collect(out)
    status = {one["variant"]: one["status"] for one in results["runs"]}
    assert status == {"baseline": "finished", "wide": "finished", "window": "failed"}
    assert failed(results)
    assert summaries(results)[2].failures == ["window (seed 0) failed: RuntimeError: the disk is full"]
    assert [row["step"] for row in results["runs"][2]["history"]] == [2]  # what was computed is kept
    assert "the disk is full" in (run_folder(out, "window", 0) / "error.txt").read_text()
    assert [one.value[0] for one in heard if one.kind == "progress" and one.key == ("wide", 0)] == [1, 2, 3]


def test_results_say_what_was_run(ran: tuple[Path, list[Event[Any]]]) -> None:
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


def test_a_restart_keeps_what_is_finished_and_runs_the_rest(ran: tuple[Path, list[Event[Any]]], tmp_path: Path) -> None:
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
    ran: tuple[Path, list[Event[Any]]], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    out, _ = ran
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=f"holds another grid: {message}"):
        run_grid(small(tmp_path, **changes), out, jobs=1)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def begin(grid: Grid, out: Path) -> None:
    """Give the folder to a grid, and break off before its first run."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_grid(grid, out, jobs=1, on_start=interrupt)


def test_other_text_is_another_grid(tmp_path: Path) -> None:
    novel, out = tmp_path / "novel.txt", tmp_path / "out"
    novel.write_bytes(b"word " * 1000)
    grid = small(tmp_path, task={"name": "text", "path": str(novel), "length": 16})
    begin(grid, out)
    begin(grid, out)
    novel.write_bytes(b"Word " * 1000)
    with pytest.raises(ValueError, match="holds another grid: token_digest is"):
        begin(grid, out)


def test_a_title_may_change(ran: tuple[Path, list[Event[Any]]], tmp_path: Path) -> None:
    grid = small(tmp_path, title="A better title")
    begin(grid, ran[0])
    assert collect(ran[0])["title"] == "A better title"


def test_a_folder_with_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="not an output folder"):
        run_grid(small(tmp_path), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_an_interrupted_grid_keeps_what_is_finished(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def interrupt(news: Event[Any]) -> None:
        if news.kind == "done":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_grid(small(tmp_path), out, jobs=1, on_event=interrupt)
    results = json.loads((out / "results.json").read_text())
    assert [one["status"] for one in results["runs"]] == ["finished", "missing", "missing"]
    assert not failed(results)


def test_jobs_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="jobs must be an integer of at least 1"):
        run_grid(small(tmp_path), tmp_path / "out", jobs=0)
    assert not (tmp_path / "out").exists()
