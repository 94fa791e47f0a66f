"""States are values: trees that are mapped, selected, merged and written to files, and never mutated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from architectures import LanguageModel, ModelState
from memkit.files import FORMAT_VERSION, STRUCTURE_KEY, VERSION_KEY, load_state, save_state
from memkit.state import State, fields, map_tensors, tensors
from running_mean import RunningMean


@dataclass(frozen=True, kw_only=True)
class Leaf(State):
    value: Tensor
    phase: int | None = None


@dataclass(frozen=True, kw_only=True)
class Bush(State):
    leaves: dict[str, Leaf]
    pair: tuple[Tensor, Tensor | None]
    mask: Tensor


def bush(fill: float = 0.0, phase: int = 3) -> Bush:
    values = torch.arange(6.0).reshape(3, 2) + fill
    return Bush(
        leaves={"a": Leaf(value=values, phase=phase), "b": Leaf(value=values + 10, phase=7)},
        pair=(torch.arange(3) + int(fill), None),
        mask=torch.tensor([True, False, True]),
    )


def assert_same(a: Any, b: Any) -> None:
    """The same structure, with equal tensors of equal dtype."""
    assert type(a) is type(b)
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, State):
        assert_same(fields(a), fields(b))
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for name in a:
            assert_same(a[name], b[name])
    elif isinstance(a, tuple):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            assert_same(left, right)
    else:
        assert a == b


def test_map_reaches_every_tensor_and_leaves_the_tree_alone() -> None:
    tree, before = bush(), bush()
    assert len(tensors(tree)) == 4
    doubled = tree.map(lambda x: x * 2 if x.dtype != torch.bool else x)
    assert torch.equal(doubled.leaves["b"].value, before.leaves["b"].value * 2)
    assert torch.equal(doubled.pair[0], before.pair[0] * 2)
    assert doubled.leaves["a"].phase == 3
    assert_same(tree, before)
    with pytest.raises(FrozenInstanceError):
        tree.mask = tree.mask  # type: ignore[misc]


def test_map_descends_into_plain_trees() -> None:
    tree = {"x": (torch.ones(2), 5, None), "y": Leaf(value=torch.ones(1))}
    found = map_tensors(lambda x: x + 1, tree)
    assert_same(found, {"x": (torch.full((2,), 2.0), 5, None), "y": Leaf(value=torch.full((1,), 2.0))})


def test_detach_cuts_the_graph() -> None:
    weight = torch.ones(3, 2, requires_grad=True)
    leaf = Leaf(value=weight * 2)
    assert leaf.value.requires_grad
    assert not leaf.detach().value.requires_grad
    assert torch.equal(leaf.detach().value, leaf.value)


def test_to_casts_floats_and_keeps_counters() -> None:
    low = torch.bfloat16
    for cast in (bush().to(low), bush().to(dtype=low), bush().to("cpu", low)):
        assert cast.leaves["a"].value.dtype == torch.bfloat16
        assert cast.pair[0].dtype == torch.long
        assert cast.mask.dtype == torch.bool
    assert bush().to("meta").mask.device.type == "meta"
    assert bush().to(device="meta").leaves["a"].value.dtype == torch.float32


def test_select_reorders_and_repeats_rows() -> None:
    picked = bush().select([2, 0, 2])
    assert picked.leaves["a"].value.tolist() == [[4.0, 5.0], [0.0, 1.0], [4.0, 5.0]]
    assert picked.pair[0].tolist() == [2, 0, 2]
    assert bush().select(slice(1, None)).mask.tolist() == [False, True]


def test_merge_takes_rows_and_forgets_facts_that_differ() -> None:
    rows = torch.tensor([False, True, False])
    merged = bush().merge(rows, bush(fill=100, phase=4))
    assert merged.leaves["a"].value.tolist() == [[0.0, 1.0], [102.0, 103.0], [4.0, 5.0]]
    assert merged.pair[0].tolist() == [0, 101, 2]
    assert merged.leaves["a"].phase is None  # rows differ now
    assert merged.leaves["b"].phase == 7


def test_bytes_counts_every_element() -> None:
    assert bush().bytes == 2 * 6 * 4 + 3 * 8 + 3 * 1


def test_a_state_class_name_is_taken_once() -> None:
    assert State.kinds["Leaf"] is Leaf
    with pytest.raises(ValueError, match=r"a state named 'Leaf' already exists in .*; rename yours"):
        type("Leaf", (State,), {"__module__": "elsewhere"})
    assert State.kinds["Leaf"] is Leaf


def test_a_file_gives_back_the_same_tree(tmp_path: Path) -> None:
    path = tmp_path / "bush.safetensors"
    save_state(bush(), path)
    assert_same(load_state(path), bush())
    assert os.listdir(tmp_path) == ["bush.safetensors"]  # nothing half-written stays


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool],
)
def test_files_keep_every_dtype_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    value = (torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3) * 100 + 0.1).to(dtype)
    save_state(Leaf(value=value, phase=None), tmp_path / "leaf")
    assert_same(load_state(tmp_path / "leaf"), Leaf(value=value, phase=None))


def test_files_keep_odd_values_and_shapes(tmp_path: Path) -> None:
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 5e-324], dtype=torch.float64)
    tree = {
        "odd": odd.view(torch.int64),
        "none left": torch.empty(0, 4),
        "scalar": torch.tensor(3.5),
        "facts": (1, -2, None, True, False, 0.1, "words", ()),
        "tensor": {"state": 1, "tuple": 2, "dict": {}},  # keys that the format uses itself
        "a.b": torch.zeros(1),
        "a": {"b": torch.ones(1)},  # spells the same path
    }
    save_state(tree, tmp_path / "tree")
    assert_same(load_state(tmp_path / "tree"), tree)
    for alone in (torch.ones(2), 7, None, (torch.ones(1),)):
        save_state(alone, tmp_path / "alone")
        assert_same(load_state(tmp_path / "alone"), alone)


def test_views_and_shared_memory_become_tensors_of_their_own(tmp_path: Path) -> None:
    base = torch.arange(6.0, requires_grad=True)
    tree = (base.expand(4, 6), base, base[::2], base.view(2, 3).t())
    save_state(tree, tmp_path / "views")
    found = load_state(tmp_path / "views")
    assert_same(found, tree)
    found[0][0] += 1
    assert torch.equal(found[0][1], base)
    assert torch.equal(found[1], base)
    assert not found[1].requires_grad


def test_a_loaded_state_does_not_hang_on_its_file(tmp_path: Path) -> None:
    path = tmp_path / "leaf"
    save_state(Leaf(value=torch.ones(1000)), path)
    found = load_state(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(found.value, torch.ones(1000))


def test_a_model_goes_on_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LanguageModel(11, 8, [RunningMean(dim=8), RunningMean(dim=8)]).to(torch.bfloat16)
    ids = torch.randint(11, (2, 9))
    _, state = model(ids)
    save_state(state, tmp_path / "model.safetensors")
    found = load_state(tmp_path / "model.safetensors")
    assert isinstance(found, ModelState)
    assert found.layers[1].total.dtype == torch.bfloat16
    assert torch.equal(model(ids, found)[0], model(ids, state)[0])


def test_a_fresh_process_finds_the_kinds_of_upper_storeys(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_state(ModelState(layers=()), path)
    script = f"from memkit.files import load_state; print(type(load_state({str(path)!r})).__module__)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "architectures.language_model"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "leaf"
    save_state(Leaf(value=torch.zeros(1)), path)

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_state(Leaf(value=torch.ones(1)), path)
    monkeypatch.undo()
    assert_same(load_state(path), Leaf(value=torch.zeros(1)))
    assert os.listdir(tmp_path) == ["leaf"]


def test_values_that_are_not_states_are_refused(tmp_path: Path) -> None:
    for tree, where in (
        ([1], "the state is a list"),
        ({"a": (1, {2})}, r"a\.1 is a set"),
        ({1: 2}, "is a dict"),
    ):
        with pytest.raises(ValueError, match=where):
            save_state(tree, tmp_path / "bad")
    with pytest.raises(ValueError, match="cannot be written as safetensors"):
        save_state(torch.ones(2, dtype=torch.complex128), tmp_path / "bad")
    assert os.listdir(tmp_path) == []


def write(path: Path, version: str, structure: Any) -> None:
    text = structure if isinstance(structure, str) else json.dumps(structure)
    save_file({"x": torch.ones(1)}, path, metadata={VERSION_KEY: version, STRUCTURE_KEY: text})


@pytest.mark.parametrize(
    ("version", "structure", "message"),
    [
        (
            str(FORMAT_VERSION + 1),
            {"tensor": "x"},
            rf"format {FORMAT_VERSION + 1}, .* up to {FORMAT_VERSION}\. Upgrade",
        ),
        ("one", {"tensor": "x"}, "not one that save_state wrote"),
        ("1", "{", "is not JSON"),
        ("1", "[" * 100_000, "is not JSON"),
        ("1", {"tensor": "y"}, r"does not fit its tensors: KeyError\('y'\)"),
        ("1", {"strange": 1}, "does not fit its tensors"),
        ("1", {"tuple": 1}, "does not fit its tensors"),
        ("1", {"state": "Leaf", "fields": {"weight": {"tensor": "x"}}}, "does not fit its tensors"),
        ("1", {"state": "Leaves", "fields": {}}, r"no installed component has a state 'Leaves'.*mean 'Leaf'"),
        ("1", {"state": "Path", "fields": {}}, "no installed component has a state 'Path'"),
    ],
)
def test_foreign_structures_are_refused(version: str, structure: Any, message: str, tmp_path: Path) -> None:
    write(tmp_path / "file", version, structure)
    with pytest.raises(ValueError, match=message):
        load_state(tmp_path / "file")


def test_foreign_and_broken_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    save_state(bush(), path)
    whole = path.read_bytes()
    for length in (0, 4, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="file' is not a whole safetensors file"):
            load_state(path)
    path.write_bytes(b"PK" + os.urandom(200))
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_state(path)
    save_file({"x": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="not one that save_state wrote"):
        load_state(path)
    for missing in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no state file"):
            load_state(missing)
