"""Grid files: read strictly, and checked as a whole before any run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import memkit
from ablations.grid import build_empty, changed, read_grid, shipped, slug
from small_grid import grid_file, small

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
    names = ["multiresolution", "quickstart", "recall", "recall_attention", "smoke", "titans_table5"]
    assert shipped() == memkit.names("grid") == names
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
        ({"train": {"step": 3}}, ", train has no key 'step'. Did you mean 'steps'"),
        ({"train": {"steps": 0}}, "', train: steps = 0 does not fit"),
        ({"train": {"seed": 3}}, "its seeds are the key 'seeds'"),
        ({"baseline": {"name": "lmmm"}}, "baseline: unknown architecture 'lmmm'. Did you mean 'lmm'"),
        ({"baseline": {"dim": 8}}, "baseline: .*'name'"),
        ({"baseline": {"name": "lmm", "vocab_size": 3}}, "baseline: vocab_size follows from the task. Leave it out"),
        (
            {"variants": {"a": {"dmi": 8}}},
            "variant 'a': architecture 'transformer' has no option 'dmi'. Did you mean 'dim'",
        ),
        (
            {"variants": {"a": {"name": "lmm", "rule": "mime"}}},
            "'a': unknown rule 'mime'. Known: .* The file of one of your own stands in the grid's 'imports:'",
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


def test_a_fault_of_the_baseline_is_told_once_and_one_of_two_variants_twice(tmp_path: Path) -> None:
    baseline = {"name": "lmm", "dim": 8, "heads": 3}
    changes = {"a": {}, "b": {"depth": 1}, "c": {"heads": 2, "x": 1}, "d": {"heads": 2, "x": 1}}
    with pytest.raises(ValueError, match="baseline: heads = 3 does not divide") as caught:
        small(tmp_path, baseline=baseline, variants=changes)
    assert [line.split(": ")[0].split(", ")[-1] for line in str(caught.value).splitlines()] == [
        "baseline",
        "variant 'c'",
        "variant 'd'",
    ]


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


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="x.yaml' is not UTF-8 text"):
        read_grid(path)


def test_an_unknown_grid_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="no grid 'quikstart', .*Did you mean 'quickstart'"):
        read_grid("quikstart")


def test_checking_needs_no_memory_for_weights() -> None:
    model = build_empty({"name": "transformer", "dim": 1 << 14, "depth": 64, "heads": 64}, 256)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert sum(parameter.numel() for parameter in model.parameters()) > 10**11


def test_slugs() -> None:
    assert [slug(name) for name in ("+Attn (MAC)", "w/o momentum", "lmm", "++")] == [
        "attn-mac",
        "w-o-momentum",
        "lmm",
        "variant",
    ]
