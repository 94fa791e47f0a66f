"""A user's own file in grids and runs: found, imported in every process, and recorded with the results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ablations.cli import main
from ablations.grid import read_grid
from ablations.run import load
from memkit import registry
from memkit.user_modules import import_file
from small_grid import SMALL, grid_file

RULE = """
from memkit import build, register


@register("rule", "own")
def own(*, depth: int = 1):
    return build("rule", "titans", depth=depth, mini_batch=4)
"""
LMM = {"name": "lmm", "dim": 8, "depth": 1, "heads": 2}


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    with registry.scratch():
        yield


def test_a_grid_names_its_files_and_their_components(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(RULE)
    path = grid_file(tmp_path, baseline=LMM, variants={"own": {"rule": "own"}}, imports=["own.py"])
    grid = read_grid(path)
    assert grid.imports == [str(tmp_path / "own.py")]
    assert grid.architectures()["own"]["rule"] == "own"
    alone = grid_file(tmp_path, baseline=LMM, variants={"own": {"rule": "own"}})
    assert read_grid(alone, imports=[Path("own.py")]).imports == grid.imports


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = grid_file(tmp_path, **{**SMALL, "imports": ["missing.py"]})
    assert main(["ablate", str(path)]) == 2
    assert "there is no file" in capfd.readouterr().err
    assert main(["list", "rule", "--import", "nowhere.py"]) == 2
    assert "there is no file 'nowhere.py'" in capfd.readouterr().err


def test_a_run_knows_its_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.py").write_text(RULE)
    small = [part for key in ("dim", "depth", "heads") for part in ("--option", f"{key}={LMM[key]}")]
    command = ["train", "-a", "lmm", *small, "--option", "rule=own", "-t", "recall", "--steps", "1", "--out", "run"]
    task = ["--task-option", "length=16", "--task-option", "pairs=2", "--task-option", "vocab_size=16"]
    assert main([*command, *task, "--import", "own.py"]) == 0
    assert list(json.loads((tmp_path / "run" / "run.json").read_text())["imports"]) == [str(tmp_path / "own.py")]
    registry.forget(registry.factory("rule", "own").__module__)
    spec, _ = load(tmp_path / "run")  # as another process would
    assert spec.architecture["rule"] == "own" and "own" in registry.names("rule")
    (tmp_path / "own.py").write_text(RULE.replace("mini_batch=4", "mini_batch=2"))
    assert main([*command, *task, "--import", "own.py"]) == 2
    assert "holds another run" in capfd.readouterr().err


def test_a_file_is_run_again_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(RULE)
    assert import_file(path) == [("rule", "own")]
    first = registry.factory("rule", "own")
    assert import_file(path) == [("rule", "own")] and registry.factory("rule", "own") is first
    path.write_text(RULE.replace('"own"', '"new"'))
    assert import_file(path) == [("rule", "new")]
    with pytest.raises(ValueError, match="unknown rule 'own'"):
        registry.factory("rule", "own")


def test_what_lies_beside_a_file_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "beside_own.py").write_text("DEPTH = 1\n")
    (tmp_path / "own.py").write_text(
        "from beside_own import DEPTH\n" + RULE.replace("depth: int = 1", "depth: int = DEPTH")
    )
    assert import_file("own.py") == [("rule", "own")]
