"""Settings and `key=value` pairs are read strictly."""

from __future__ import annotations

from typing import Any

import pytest

from ablations.settings import TrainConfig
from ablations.strict import assignments, parse


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stesp": 3}, "train has no key 'stesp'. Did you mean 'steps'"),
        ({"steps": 0}, "train: steps = 0 does not fit"),
        ({"steps": 1.5}, "train: steps = 1.5 does not fit"),
        ({"lr": "fast"}, "train: lr = 'fast' does not fit"),
        ({"lr": float("nan")}, "train: lr = nan does not fit"),
        ({"device": "gpuu"}, "device 'gpuu' is not a device's name"),
        ({"device": "xpu:9"}, "device 'xpu:9' is not available"),
        ({"dtype": "float16"}, "train: dtype = 'float16' does not fit"),
        ([], "train must be a mapping"),
    ],
)
def test_settings_are_strict(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(TrainConfig, given, "train")


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(ValueError, match=r"(?s)batch = 0.*stesp"):
        parse(TrainConfig, {"stesp": 1, "batch": 0}, "train")


def test_assignments_nest() -> None:
    assert assignments(["dim=64", "rule.depth=1", "rule.name=titans", "path=a=b", "lr=1e-3"]) == {
        "dim": 64,
        "rule": {"depth": 1, "name": "titans"},
        "path": "a=b",
        "lr": 1e-3,
    }
    for wrong in (["dim"], ["=3"], ["a..b=1"], ["dim=1", "dim=2"], ["rule=titans", "rule.depth=1"]):
        with pytest.raises(ValueError, match="option"):
            assignments(wrong)
