"""The comparison with titans-pytorch: our side of each setting runs, and measurements lead to a verdict."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SMALL = ["--dim", "8", "--heads", "2", "--tokens", "6", "--mini-batch", "4", "--batch", "2"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("peer_titans_pytorch")


@pytest.mark.parametrize("setting", ["token", "coarse", "decode"])
def test_our_side_of_each_setting_runs(script: ModuleType, setting: str) -> None:
    kept = ["--recompute", "4"] if setting != "decode" else []
    options = script.parse([setting, *SMALL, *kept, "--worker", "ours"])
    step, about = script.prepare(options)
    step()
    assert about["threads"] >= 1


def test_a_settings_sizes_may_be_given(script: ModuleType) -> None:
    coarse = script.parse(["coarse"])
    assert (coarse.tokens, coarse.batch, coarse.chunk, coarse.mini_batch) == (2048, 8, 64, 64)
    assert script.parse(["token", "--tokens", "9"]).tokens == 9


@pytest.mark.parametrize("wrong", [["decode", "--recompute", "8"], ["token", "--threads", "0"]])
def test_what_a_setting_does_not_do_is_not_said_of_it(
    script: ModuleType, wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        script.parse(wrong)
    assert f"error: {wrong[1]}" in capsys.readouterr().err


def test_figures_come_to_a_verdict(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["x", "coarse", "--peer-python", "elsewhere", "--pairs", "2", "--out=there"])
    result = {
        "workers": [{"threads": 3, "torch": "2.13"}, {"threads": 3, "torch": "2.12"}],
        "seconds": [(1.0, 5.0), (2.0, 6.0)],
        "median_seconds": [1.5, 5.5],
        "times_faster_in_each_pair": [5.0, 3.0],
        "peak_mib": [100.0, 500.0],
        "times_less_memory": 5.0,
    }
    found = script.benchmark(script.parse(["coarse", "--pairs", "2"]), result)
    assert [goal.verdict for goal in found.goals] == ["not resolved", "reached"]
    assert found.about["command"] == "python benchmarks/peer_titans_pytorch.py coarse --pairs 2"
    assert (found.about["threads"], found.about["torch"]) == ("3", "2.13 and 2.12"), "of the workers, not the driver"
    assert found.rows[0] == ("median of 2", "1.500 s", "5.500 s", "4.0 times")
    assert len(script.benchmark(script.parse(["decode"]), result).goals) == 1
