"""`memkit check`: verdicts, exit codes, and messages about files that cannot be used."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ablations.cli import main
from check_command import HONEST, check, here, joined, write  # noqa: F401


def broken(text: str) -> set[str]:
    return {law.strip() for law in re.findall(r"^  FAILED {10}(.{25})", text, re.MULTILINE)}


def test_an_honest_rule_passes_and_fits_80_columns(capfd: pytest.CaptureFixture[str]) -> None:
    text = check(capfd, write(HONEST), "--profile", "quick", code=0)
    assert "rule own, profile quick, seed 0" in text
    assert re.search(r"^26 passed: \d+ examples in ", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 80
    assert main(["check", "own.py", "--law", "causality", "--law", "shapes", "--seed", "3"]) == 0
    assert re.search(r"^2 passed: 20 examples .* seed 3\.$", capfd.readouterr().out, re.MULTILINE)


def test_a_false_claim_to_be_linear_is_found_and_shown_again(capfd: pytest.CaptureFixture[str]) -> None:
    file = write(HONEST.replace("grad, ()", "grad.clamp(-0.1, 0.1), ()"))
    text = check(capfd, file, "--profile", "quick", code=1)
    assert (
        {"linear as declared", "forms agree"}
        <= broken(text)
        < {"linear as declared", "forms agree", "split anywhere"}
        | {
            "second gradient",
            "single precision",
            "rounding",
        }
    )
    assert "step of optimizer 'own'" in joined(text) and "Say linear=False" in joined(text)
    assert "step(1, 0, 0) grad + step(0, 1, 0) weight" in joined(text)  # the equation
    (again,) = re.findall(r'^ +memkit check (own.py --law "linear as declared" --example .*)$', text, re.MULTILINE)
    example = re.search(r'--example "(.*)"', again)
    assert example
    text = check(capfd, "own.py", "--law", "linear as declared", "--example", example[1], code=1)
    assert broken(text) == {"linear as declared"} and "1 example," in text
    # What it is told is taken: with the claim withdrawn all is well.
    check(capfd, file, "--profile", "quick", "--option", "linear=false", "--law", "forms agree", code=0)


@pytest.mark.parametrize(
    ("change", "law", "words"),
    [
        (("grad, ()", "grad / 0, ()"), "finite", ["elements that are", "from random weights"]),
        (
            ("grad, ()", "grad.sum(-1, keepdim=True), ()"),
            "shapes",
            ["the step of optimizer 'own' is (1, 2, 1), and must be"],
        ),
        (
            ("grad, ()", "grad.mT if grad.dim() > 1 else -grad, ()"),
            "shapes",
            ["the step of optimizer 'own' is (1, 3, 2), and must be (1, 2, 3): the weight."],
        ),
        (
            ("grad, ()", "grad"),
            "shapes",
            ["the step of optimizer 'own' gives a Tensor, and must give (step, slots)."],
        ),
        (("return -", "return "), "descent", ["d loss / d lr", "the sign"]),
        (
            ("grad, ()", 'grad * gates["gain"], ()'),
            "shapes",
            ["a part reads the gate 'gain', which it does not declare. Here there are ['lr', 'decay']."],
        ),
        (("grad, ()", 'grad * gates["gain"], ()'), "finite", ["KeyError: 'gain'", 'own.py: `return -gates["lr"] *']),
    ],
)
def test_a_faulty_rule_is_told_in_words_and_other_laws_go_on(
    change: tuple[str, str], law: str, words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    text = check(
        capfd, write(HONEST.replace(*change)), "--law", law, "--law", "state size", "--law", "heads apart", code=1
    )
    assert law in broken(text)
    assert all(word in joined(text) for word in words), text
    assert len(re.findall(r"^  (?:passed|FAILED) ", text, re.MULTILINE)) == 3


MEMORY = """
from dataclasses import dataclass, replace
from memkit.parts.memory import MLPMemory


@dataclass(frozen=True)
class Memory(MLPMemory):
    linear: bool = False

    def forward(self, linear, x, constants):
        return linear("w2", linear("w1", x))


@register("rule", "deep")
def deep():
    return replace(own(), name="deep", memory=Memory(2, 1, "silu", False))
"""


@pytest.mark.parametrize(
    ("change", "law", "words"),
    [
        (
            ("linear: bool = False", "linear: bool = True"),
            "linear as declared",
            "found a linear memory is one matrix, but this one has the weights ['w1', 'w2']. look at",
        ),
        (
            ('linear("w1", x))', 'linear("w1", x).detach())'),
            "causality",
            "its loss does not depend on the weights ['w1'], so no write would change them. Look for .detach()",
        ),
    ],
)
def test_a_faulty_memory_is_told_in_words(
    change: tuple[str, str], law: str, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    text = check(capfd, write(HONEST + MEMORY.replace(*change)), "--law", law, code=1)
    assert broken(text) == {law} and words in joined(text)


def test_a_law_that_falls_over_says_what_was_raised_and_gives_no_hint(capfd: pytest.CaptureFixture[str]) -> None:
    text = joined(check(capfd, write(HONEST.replace("grad, ()", "grad")), "--law", "finite", code=1))
    assert "it raised ValueError: not enough values to unpack" in text and "look at" not in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\ny = x +\n", "own.py does not import: SyntaxError: invalid syntax, in line 2 of own.py: `y = x +`."),
        (
            "import nothing_of_the_kind\n",
            "ModuleNotFoundError: No module named 'nothing_of_the_kind', in line 1 of own.py",
        ),
        ("x = 1\n", "own.py registers no rule, mixer or architecture. Decorate a function that makes one: @memkit."),
        (
            HONEST.replace('@register("rule", "own")', "") + "\nkept = own()\n",
            "It holds the Rule 'kept', but not under a name.",
        ),
        (HONEST.replace('"own")', '"titans")'), "rule 'titans' is already registered by memkit.rules.titans.titans"),
        (
            HONEST.replace("mini_batch=2", "mini_batch=0"),
            "mini_batch is a count, so it must be an integer >= 1; got 0, in line",
        ),
        (HONEST.replace("return Rule(", "return dict("), "rule 'own' must make a memkit.Rule; it made a dict."),
        (HONEST.replace("*, depth: int", "width, *, depth: int"), "rule 'own' needs the option width"),
    ],
)
def test_a_file_that_cannot_be_used_says_so(text: str, words: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert words in joined(check(capfd, write(text), code=2))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.py"], "there is no file 'missing.py'"),
        (["titan"], "Did you mean 'titans'?"),
        (["titans", "--law", "causalty"], "there is no law 'causalty' for titans. Did you mean 'causality'?"),
        (["titans", "--profile", "nightli"], "Did you mean 'nightly'?"),
        (["titans", "--kind", "rules"], "Did you mean 'rule'?"),
        (["titans", "--option", "dpeth=1"], "has no option 'dpeth'. Did you mean 'depth'?"),
        (["titans", "--shard", "3/2"], "a shard is i/n"),
        (["titans", "--example", "seed=1"], "name it with --law"),
        (["titans", "--law", "shapes", "--example", "sede=1"], "Did you mean 'seed'?"),
        (["titans", "--law", "shapes", "--example", "seed"], "an example is written like"),
        (["titans", "--law", "shapes", "--example", "seed='1'"], "the example's seed is like 0; got '1'."),
    ],
)
def test_mistakes_exit_with_2(arguments: list[str], words: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert words in joined(check(capfd, *arguments, code=2))


def test_one_bad_component_does_not_stop_the_others(capfd: pytest.CaptureFixture[str]) -> None:
    second = '\n\n@register("rule", "worse")\ndef worse():\n    raise RuntimeError("no")\n'
    text = joined(check(capfd, write(HONEST + second), "--law", "shapes", code=2))
    assert "rule worse cannot be made: RuntimeError: no, in line" in text
    assert "1 passed, 1 could not be used" in text


def test_a_rule_that_leaves_does_not_take_the_check_with_it(capfd: pytest.CaptureFixture[str]) -> None:
    leaves = HONEST.replace('return -gates["lr"] * grad, ()', "raise SystemExit(3)")
    text = check(capfd, write(leaves), "--law", "finite", "--law", "inner gradient", code=1)
    assert broken(text) == {"finite"} and "it raised SystemExit: 3, in line" in joined(text)
    assert "passed          inner gradient" in text


def test_exemptions_are_strict(capfd: pytest.CaptureFixture[str]) -> None:
    kept = HONEST.replace('"own")', '"own", exempt={"shapes": "why not"})')
    text = joined(check(capfd, write(kept), "--law", "shapes", "--law", "finite", code=1))
    assert "it is exempt (why not), but kept. Remove the exemption." in text
    wanted = HONEST.replace('"own")', '"own", exempt={"descent": "it climbs"})').replace("return -", "return ")
    text = joined(check(capfd, write(wanted), "--law", "descent", code=0))
    assert "exempt descent it climbs" in text and "1 exempt" in text
    unknown = HONEST.replace('"own")', '"own", exempt={"decent": "it climbs"})')
    assert "there is no law 'decent' for own. Did you mean 'descent'?" in joined(check(capfd, write(unknown), code=2))


def test_mixers_and_architectures_are_checked_by_name(capfd: pytest.CaptureFixture[str]) -> None:
    text = check(capfd, "mamba2", "--law", "causality", "--profile", "quick", code=0)
    assert [line.split(",")[0] for line in text.splitlines() if "profile quick, seed 0" in line][:3] == [
        "rule mamba2",
        "mixer mamba2",
        "architecture mamba2",
    ]
    text = check(capfd, "mamba2", "--kind", "mixer", "--law", "causality", "--profile", "quick", code=0)
    assert "rule mamba2" not in text and "mixer mamba2" in text


def test_a_long_check_is_divided_kept_and_resumed(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    check(capfd, "mamba2", "--kind", "rule", "--law", "shapes", "--examples", "250", "--out", "kept", code=0)
    path = tmp_path / "kept" / "verdicts.jsonl"
    lines = path.read_text().splitlines()
    assert [json.loads(line)["unit"] for line in lines] == [f"rule mamba2 | shapes | {part}" for part in range(3)]
    assert [json.loads(line)["examples"] for line in lines] == [84] * 3
    path.write_text("\n".join(lines[:2]) + "\n" + lines[2][:30])  # killed while it wrote the third
    command = ["mamba2", "--kind", "rule", "--law", "shapes", "--examples", "250"]
    text = check(capfd, *command, "--out", "kept", "--jobs", "2", code=0)
    assert "1 passed: 252 examples" in text
    redone = [json.loads(line) for line in path.read_text().splitlines()]
    assert [{**one, "seconds": 0} for one in redone] == [{**json.loads(line), "seconds": 0} for line in lines]
    assert "holds another check" in joined(check(capfd, *command, "--seed", "1", "--out", "kept", code=2))
    assert "84 examples" in check(capfd, *command, "--shard", "2/3", code=0)


def test_an_interrupt_exits_with_130_and_says_what_is_kept(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ablations.checking.command.check", interrupt)
    assert "Verdicts are kept in there" in check(capfd, "titans", "--out", "there", code=130)


def test_numbers_that_are_none_are_told_by_every_law(capfd: pytest.CaptureFixture[str]) -> None:
    text = check(capfd, write(HONEST.replace("grad, ()", "grad * float('nan'), ()")), "--profile", "quick", code=1)
    assert "finite" in broken(text) and "passed          state size" in text
    assert "the reference of y reaches nan" in joined(text)
    assert len(re.findall(r"^  (?:passed|FAILED) ", text, re.MULTILINE)) == 26
