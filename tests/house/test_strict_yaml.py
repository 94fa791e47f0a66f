"""YAML is read strictly, by grids, options and configs alike."""

from __future__ import annotations

from typing import Any

import pytest

from memkit.strict_yaml import dump_yaml, load_yaml


def test_floats_with_an_exponent_are_numbers() -> None:
    text = "[3e-3, 1E6, -2e+5, 1.5e3, 1.e-2, .5e-1, 1_0e2, 12, 0.25]"
    assert load_yaml(text, "it") == [3e-3, 1e6, -2e5, 1.5e3, 1e-2, 0.05, 1000.0, 12, 0.25]
    assert load_yaml("[1e, e3, 1e-3x, .e3, 1-2, .]", "it") == ["1e", "e3", "1e-3x", ".e3", "1-2", "."]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", r"it is not valid YAML: the key 'a' is given twice \(line 2, column 1\)\."),
        ("x: {b: 1, b: 1}", r"the key 'b' is given twice \(line 1, column 11\)"),
        ("[{1: 1, 0x1: 2}]", "the key 1 is given twice"),
        ("a: [1", r"it is not valid YAML: while parsing .* \(line 1, column 4\): expected .*"),
        ("? [1]\n: 2", r"found unhashable key \(line 1, column 3\)"),
        ("!!python/object:os.system {}", "could not determine a constructor"),
    ],
)
def test_a_mistake_is_named_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        load_yaml(text, "it")
    assert "\n" not in str(raised.value)


def test_a_merge_gives_no_key_twice() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: {<<: [*a, *a], z: 4}"
    assert load_yaml(text, "it") == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 1, "y": 2, "z": 4}}


@pytest.mark.parametrize("data", ["1e-3", "1.5e3", ".5e1", "12", "true", 1e-3, 1.5e300, [1, "x"], {"b": 1, "a": None}])
def test_what_is_written_is_read_as_it_was(data: Any) -> None:
    again = load_yaml(dump_yaml(data), "it")
    assert again == data and type(again) is type(data)
    assert not isinstance(data, dict) or list(again) == list(data)
