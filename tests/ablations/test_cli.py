"""The command line: output, files written, and exit codes."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import memkit
from ablations.cli import main
from ablations.listing import print_component, print_rules
from memkit import DivergedError

TINY = ["--option", "dim=16", "--option", "depth=1", "--option", "heads=2"]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Messages on one line, and everything that is written without --out in a folder of the test's own."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)


# -- list


def test_list_names_every_component_of_every_kind(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    text = capfd.readouterr().out
    for kind in ("rule", "mixer", "architecture", "task", "grid"):
        assert all(name in text for name in memkit.names(kind))


def test_list_of_a_benchmark_says_how_to_run_it(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "benchmark", "triton"]) == 0
    text = capfd.readouterr().out
    assert text.rstrip().endswith("memkit bench triton") and "tell" not in text


def test_list_of_a_kind_has_the_first_line_of_each(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "task"]) == 0
    assert "Predict the next byte of real English" in capfd.readouterr().out


def test_list_of_a_component_has_its_options_and_defaults(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "task", "recall"]) == 0
    lines = capfd.readouterr().out.splitlines()
    row = next(line for line in lines if "vocab_size" in line and "│" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["vocab_size", "64", "int"]


def test_types_and_defaults_are_written_as_one_writes_them(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "architecture", "hybrid"]) == 0
    assert main(["list", "architecture", "lmm"]) == 0
    assert main(["list", "task", "text"]) == 0
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in capfd.readouterr().out.splitlines()]
    assert ["pattern", "required", "list[str | dict]"] in rows
    assert ["rule", "'titans'", "str | dict | Rule"] in rows
    assert ["feed_forward", "2.667", "float"] in rows
    assert ["surprise_limit", "None", "float | None"] in rows
    assert ["corpus", "'english'", "'english' | 'code' | 'both'"] in rows


@pytest.mark.parametrize("arguments", [["list"], ["list", "rule"]])
def test_list_shows_the_four_choices_of_every_rule(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    table = capfd.readouterr().out.partition("source")[2]
    rows = {line.split("  ")[0].strip(): line.split() for line in table.splitlines()}
    assert rows.keys() >= set(memkit.names("rule"))
    assert rows["mamba2"] == ["mamba2", "matrix", "dot", "decay", "GD", "solve", "2405.21060"]
    assert "".join(rows["kda"]) == "kdamatrixl2decaybychannelGDsolve2510.26692"
    assert "".join(rows["delta_product"]) == "delta_productmatrixl2decayGD,2stepssolve2502.10297"
    assert "".join(rows["moneta"]) == "monetax+LN(MLP-2)l3decay,l4GDdual2504.13173"


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_of_rules_fits(columns: int) -> None:
    console = Console(width=columns, file=io.StringIO(), color_system=None)
    print_rules(console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= columns
    assert not any("…" in line for line in lines), "nothing is cut off"


def test_list_of_a_rule_has_its_equations_and_its_form(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "rule", "ttt_mlp"]) == 0
    text = capfd.readouterr().out
    assert "l(W; k, v) = || f(k; W) - v ||^2                      (4)" in text
    assert "fused: every mini-batch of 16 tokens runs at once" in text


def test_what_a_component_is_flows_into_any_width() -> None:
    console = Console(width=80, file=io.StringIO(), color_system=None)
    print_component("rule", "atlas", console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    lines = text.partition("degree:")[2].partition("gated:")[0].strip().splitlines()
    assert all(len(line) > 60 for line in lines[:-1])


def test_list_of_a_grid_is_its_file(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "grid", "smoke"]) == 0
    assert "baseline: {name: lmm, dim: 16, depth: 1, heads: 2}" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "rul"], "unknown kind 'rul'. Did you mean 'rule'?"),
        (["list", "task", "recal"], "unknown task 'recal'. Did you mean 'recall'?"),
        (["ablate", "quikstart"], "Did you mean 'quickstart'?"),
        (["ablate", "smoke", "--text", "x.txt"], "task 'recall' has no option 'path'"),
        (["train", "--train-option", "LR=1"], "train has no key 'LR'. Did you mean 'lr'?"),
        (["train", "-a", "mine"], "The file of one of your own is given with --import."),
        (["train", "-a", "mamba"], "unknown architecture 'mamba'. Did you mean 'mamba2'?"),
        (["train", "--option", "dmi=8"], "no option 'dmi'. Did you mean 'dim'?"),
        (["train", "--option", "dim"], "an option is key=value"),
        (["train", "--train-option", "step=8"], "train has no key 'step'. Did you mean 'steps'?"),
        (
            ["train", "--train-option", "seed=3"],
            "seed=3 has a flag of its own, which says 0. Use --seed.",
        ),
        (["train", "--train-option", "steps=3", "--steps", "4"], "steps=3 has a flag of its own, which says 4"),
        (
            ["train", "--task-option", "path=a", "--text", "b"],
            "path=a has a flag of its own, which says b. Use",
        ),
        (["train", "--option", "vocab_size=3"], "vocab_size follows from the task. Leave it out"),
        (["train", "--text", "missing.txt"], "there is no file or folder 'missing.txt'"),
        (["report", "."], "holds no grid's results"),
        (["generate", "."], "holds no trained model"),
        (["ablat", "smoke"], "No such command"),
        (["ablate", "smoke", "--jobs", "0"], "--jobs"),
        (["ablate"], "Missing argument"),
    ],
)
def test_mistakes_are_told_in_one_message_and_exit_with_2(
    arguments: list[str], message: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(arguments) == 2
    captured = capfd.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err and captured.out == ""
    assert not list(tmp_path.iterdir())  # nothing is written before all is checked


@pytest.mark.parametrize("command", [[], ["list"], ["ablate"], ["report"], ["train"], ["generate"]])
def test_help(command: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    text = capfd.readouterr().out
    assert "Usage: memkit" in text
    assert "memkit " + command[0] in text.replace("Usage: memkit", "") if command else "ablate" in text


# -- ablate and report


def test_ablate_writes_a_report_and_report_writes_it_again(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["ablate", "smoke", "--seeds", "1", "--steps", "3", "--jobs", "1"]) == 0
    out = tmp_path / "runs" / "smoke"
    captured = capfd.readouterr()
    results = json.loads((out / "results.json").read_text())
    assert [one["status"] for one in results["runs"]] == ["finished"] * 3
    assert {one["step"] for one in results["runs"]} == {3}
    for one in results["runs"]:
        assert f"{one['held_out']['accuracy']:.3f}" in captured.out
        assert f"{one['variant']} (seed 0): {one['held_out']['accuracy']:.3f} accuracy" in captured.err
    assert "report.html" in captured.err and "3/3" in captured.err
    (out / "report.html").unlink()
    assert main(["report", str(out)]) == 0
    assert (out / "report.html").exists()
    assert capfd.readouterr().out == captured.out
    # the same again runs nothing; another grid is refused
    assert main(["ablate", "smoke", "--seeds", "1", "--steps", "3", "--jobs", "1"]) == 0
    assert "3 finished runs kept, 0 to run" in capfd.readouterr().err
    assert main(["ablate", "smoke", "--steps", "4", "--jobs", "1"]) == 2
    assert "holds another grid: definition.train.steps is 3 there and 4 here" in capfd.readouterr().err


def test_a_folder_that_cannot_be_is_told_in_one_message(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for command in (["ablate", "smoke", "--jobs", "1"], ["train", *TINY, "-t", "recall", "--steps", "1"]):
        assert main([*command, "--out", str(tmp_path / "file" / "below")]) == 2
        error = capfd.readouterr().err
        assert "below: Not a directory. Check the path" in error.replace("\n", " ") and "Traceback" not in error


def test_a_failed_run_exits_with_1(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    broken = {"title": "x"}
    monkeypatch.setattr("ablations.cli.ablate.run_grid", lambda *_, **__: broken)
    monkeypatch.setattr("ablations.cli.report.write_report", lambda folder: broken)
    monkeypatch.setattr("ablations.cli.report.print_table", lambda results, console: None)
    monkeypatch.setattr("ablations.cli.ablate.failed", lambda results: results is broken)
    assert main(["ablate", "smoke"]) == 1


def test_an_interrupt_exits_with_130_and_says_what_is_kept(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ablations.cli.ablate.run_grid", interrupt)
    assert main(["ablate", "smoke"]) == 130
    assert f"Finished runs are kept in {Path('runs', 'smoke')}" in capfd.readouterr().err
    monkeypatch.setattr("ablations.cli.train.train_one", interrupt)
    assert main(["train"]) == 130


# -- train and generate


def test_train_resumes_and_generates(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    novel = tmp_path / "novel.txt"
    novel.write_bytes(b"the cat sat on the mat. " * 60)
    command = ["train", "-a", "transformer", *TINY, "--text", str(novel), "--task-option", "length=16", "--out", "cat"]
    settings = ["--train-option", "eval_every=20", "--train-option", "lr=1e-2", "--steps", "40"]
    assert main([*command, *settings]) == 0
    assert "transformer on text (seed 0): " in capfd.readouterr().err
    result = json.loads((tmp_path / "cat" / "result.json").read_text())
    assert result["step"] == 40 and result["held_out"]["bits per byte"] < 3.0
    assert main([*command, *settings]) == 0  # finished: nothing to do
    assert main([*command, "--steps", "41"]) == 2
    assert "holds another run: train.steps is 40 there and 41 here" in capfd.readouterr().err

    novel.unlink()  # a trained model needs its text no more
    generate = ["generate", "cat", "--prompt", "the c", "--tokens", "12"]
    assert main([*generate, "--temperature", "0"]) == 0
    first = capfd.readouterr().out
    assert first.startswith("the c") and len(first.encode()) >= 5 + 12 + 1
    assert main([*generate, "--temperature", "0", "--seed", "5"]) == 0
    assert capfd.readouterr().out == first  # temperature 0 draws nothing
    texts = []
    for seed in ("1", "1", "2"):
        assert main([*generate, "--temperature", "2", "--seed", seed]) == 0
        texts.append(capfd.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    assert main(["generate", "cat", "--prompt", ""]) == 2
    assert "the prompt is empty" in capfd.readouterr().err


def test_a_run_that_diverges_exits_with_1(capfd: pytest.CaptureFixture[str]) -> None:
    wild = ["--train-option", "lr=1e30", "--train-option", "clip=null", "--train-option", "warmup=0.0", "--steps", "9"]
    assert main(["train", "-a", "transformer", *TINY, "-t", "recall", *wild, "--out", "wild"]) == 1
    assert "transformer on recall diverged at step" in capfd.readouterr().err
    assert main(["generate", "wild"]) == 2
    assert "whose tokens are not text" in capfd.readouterr().err


def test_bytes_that_are_no_text_are_replaced(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "ablations.cli.generate.continue_text", lambda *_: (bytes([65, 255, 66]).decode(errors="replace"), None)
    )
    assert main(["generate", "anything"]) == 0
    assert capfd.readouterr().out == f"A\ufffdB{os.linesep}"


def test_a_model_that_diverges_prints_what_it_made_and_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ablations.cli.generate.continue_text", lambda *_: ("The c", DivergedError("layer 1 diverged")))
    assert main(["generate", "anything"]) == 1
    captured = capfd.readouterr()
    assert captured.out == f"The c{os.linesep}" and "Error: layer 1 diverged" in captured.err
