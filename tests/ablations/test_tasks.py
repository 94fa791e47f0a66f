"""The tasks: the data they draw, the data they hold out, and their metrics."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import memkit
from ablations.tasks import IGNORE
from ablations.tasks.base import bits, correct
from ablations.tasks.recall import POWER, RecallTask
from ablations.tasks.text import TextTask, unigram_entropy
from compare import ROUNDING, near


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def own_text(tmp_path: Path, size: int = 4000) -> tuple[Path, bytes]:
    """A text in which every place is known: the bytes 0..255 over and over would repeat, so draw them."""
    content = bytes(np.random.default_rng(0).integers(1, 256, size, dtype=np.uint8))
    path = tmp_path / "own.txt"
    path.write_bytes(content)
    return path, content


# -- text


def test_held_out_rows_are_the_last_tenth_each_byte_predicted_once(tmp_path: Path) -> None:
    path, content = own_text(tmp_path)
    rows = [batch for batch in TextTask(path=str(path), length=16).held_out()]
    predicted = b"".join(bytes(row.tolist()) for batch in rows for row in batch.targets)
    whole_rows = (400 - 1) // 16 * 16
    assert predicted == content[3600 + 1 : 3600 + 1 + whole_rows]
    for batch in rows:
        assert torch.equal(batch.ids[:, 1:], batch.targets[:, :-1])


def test_training_windows_are_the_text_and_never_held_out(tmp_path: Path) -> None:
    path, content = own_text(tmp_path)
    batch = TextTask(path=str(path), length=16).batch(generator(), 40_000)
    windows = {
        bytes([*ids, targets[-1]]) for ids, targets in zip(batch.ids.tolist(), batch.targets.tolist(), strict=True)
    }
    places = {content.find(window) for window in windows}
    assert min(places) == 0 and max(places) == 3600 - 17  # the first and the last window that there are


def test_held_out_bytes_thins_the_rows_evenly(tmp_path: Path) -> None:
    path, _ = own_text(tmp_path)
    every = torch.cat([b.ids for b in TextTask(path=str(path), length=16).held_out()])
    some = torch.cat([b.ids for b in TextTask(path=str(path), length=16, held_out_bytes=6 * 16).held_out()])
    assert len(every) == 24
    assert torch.equal(some, every[::4])


@pytest.mark.parametrize("corpus", ["english", "code", "both"])
def test_the_shipped_text_is_real_and_the_same_each_time(corpus: str) -> None:
    task, again = (memkit.build("task", "text", corpus=corpus) for _ in range(2))
    assert task.fingerprint() == again.fingerprint()
    assert 4.0 < task.yardstick.value < 5.0  # English and code both lie there; uniform bytes would be 8
    held_out = b"".join(bytes(row.tolist()) for batch in task.held_out() for row in batch.targets)
    assert len(held_out) > 30_000
    assert held_out.decode(errors="ignore").count(" ") > len(held_out) / 20


def test_both_holds_out_some_of_each() -> None:
    rows = {c: len(torch.cat([b.ids for b in TextTask(corpus=c).held_out()])) for c in ("english", "code", "both")}  # type: ignore[arg-type]
    assert rows["both"] == rows["english"] + rows["code"]


def test_no_paragraph_of_the_english_stands_in_both_splits() -> None:
    task = TextTask()
    training = bytes(task._bytes.tolist())
    held_out = b"".join(bytes(row.tolist()) for batch in task.held_out() for row in batch.targets)
    long = [part for part in held_out.split(b"\n\n")[1:-1] if len(part) > 80]
    assert len(long) > 50
    assert not [part for part in long if part in training]


def test_unigram_entropy_is_that_of_the_predicted_bytes(tmp_path: Path) -> None:
    path = tmp_path / "two.txt"
    path.write_bytes(b"ab" * 500)
    yardstick = TextTask(path=str(path), length=10).yardstick
    assert yardstick.value == pytest.approx(1.0, abs=1e-9)
    assert yardstick.label == "byte frequencies alone" and yardstick.means.endswith("how often each byte occurs")
    values = torch.tensor([3, 3, 3, 7, 9, 9])
    expected = -sum(c / 6 * math.log2(c / 6) for c in Counter(values.tolist()).values())
    assert unigram_entropy(values) == pytest.approx(expected, abs=1e-12)


def test_a_folder_is_read_in_order_without_hidden_and_binary_files(tmp_path: Path) -> None:
    folder = tmp_path / "novel"
    (folder / ".git").mkdir(parents=True)
    (folder / "part").mkdir()
    (folder / "b.txt").write_bytes(b"b" * 300)
    (folder / "a.txt").write_bytes(b"a" * 300)
    (folder / "part" / "c.txt").write_bytes(b"c" * 300)
    (folder / ".git" / "x").write_bytes(b"x" * 300)
    (folder / "picture").write_bytes(b"p\0" * 300)
    task = TextTask(path=str(folder), length=4)
    assert bytes(task._bytes.tolist()) == (b"a" * 300 + b"\n" + b"b" * 300 + b"\n" + b"c" * 300)[: 902 - 90]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no file or folder .*Check the path"), (b"", "holds no text"), (b"a" * 2569, "at least 2,570 bytes")],
)
def test_a_text_that_cannot_serve_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        TextTask(path=str(path))


def test_a_text_of_just_enough_bytes_serves(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"a" * 2570)
    assert [len(batch.ids) for batch in TextTask(path=str(path)).held_out()] == [1]


# -- recall


@given(
    pairs=st.integers(1, 6),
    room=st.integers(0, 9),
    keys=st.integers(0, 9),
    seed=st.integers(0, 2**32 - 1),
    noise=st.booleans(),
)
def test_rows_of_recall(pairs: int, room: int, keys: int, seed: int, noise: bool) -> None:
    length, half = 4 * pairs + room, pairs + 1 + keys
    task = RecallTask(length=length, pairs=pairs, vocab_size=2 * half, random_non_queries=noise)
    batch = task.batch(generator(seed), 3)
    for ids, targets in zip(batch.ids.tolist(), batch.targets.tolist(), strict=True):
        table = dict(zip(ids[0 : 2 * pairs : 2], ids[1 : 2 * pairs : 2], strict=True))
        assert len(table) == pairs and len(set(table.values())) == pairs  # each key once, each value once
        assert all(1 <= key < half <= value < 2 * half for key, value in table.items())
        asked = {place: target for place, target in enumerate(targets) if target != IGNORE}
        assert sorted(ids[place] for place in asked) == sorted(table)  # every key is asked for once
        assert all(place >= 2 * pairs and place % 2 == 0 for place in asked)
        assert all(table[ids[place]] == target for place, target in asked.items())
        rest = [token for place, token in enumerate(ids) if place >= 2 * pairs and place not in asked]
        assert all(0 <= token < 2 * half for token in rest)
        assert noise or not any(rest)


def test_gaps_follow_the_published_law() -> None:
    """How often each place is asked, against numpy's draws without replacement, as Zoology makes them."""
    task = RecallTask(length=24, pairs=3, vocab_size=32)
    count, places = 4_000, (24 - 6) // 2
    targets = task.batch(generator(1), count).targets[:, 6::2] != IGNORE
    ours = targets.double().mean(0).numpy()
    law = POWER * np.arange(1, places + 1) ** (POWER - 1)
    rng = np.random.default_rng(0)
    theirs = np.zeros(places)
    for _ in range(count):
        theirs[rng.choice(places, size=3, replace=False, p=law / law.sum())] += 1 / count
    assert np.abs(ours - theirs).max() < 5 * math.sqrt(2 * 0.25 / count)  # five standard errors


def test_random_tokens_change_nothing_but_the_rest() -> None:
    plain = RecallTask().batch(generator(3), 8)
    noisy = RecallTask(random_non_queries=True).batch(generator(3), 8)
    assert torch.equal(plain.targets, noisy.targets)
    assert torch.equal(plain.ids[plain.ids != 0], noisy.ids[plain.ids != 0])
    assert (noisy.ids[plain.ids == 0] != 0).double().mean() > 0.9


def test_held_out_recall_is_fixed_and_unlike_training() -> None:
    one, two = RecallTask(), RecallTask()
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(one.held_out(), two.held_out(), strict=True))
    held_out = {tuple(row) for batch in one.held_out() for row in batch.ids.tolist()}
    assert len(held_out) == 512
    assert not held_out & {tuple(row) for row in one.batch(generator(0), 2000).ids.tolist()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": 17}, "4 \\* pairs <= length. Use length=68 or more, or pairs=16"),
        ({"pairs": 0}, "pairs must be an integer of at least 1"),
        ({"vocab_size": 9}, "has 3 keys, fewer than the 4 pairs. Use vocab_size=10"),
        ({"pair": 2}, "Did you mean 'pairs'"),
        ({"length": 64.5}, "'length' = 64.5 does not fit"),
    ],
)
def test_recall_refuses_what_does_not_fit(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        memkit.build("task", "recall", **options)


def test_the_smallest_vocabulary_of_recall_works() -> None:
    assert RecallTask(vocab_size=10).batch(generator(), 4).ids.max() <= 9


# -- metrics


def test_bits_and_correct() -> None:
    logits = torch.randn(50, 16, generator=generator(), dtype=torch.float64)
    targets = torch.randint(16, (50,), generator=generator(1))
    expected = -F.log_softmax(logits, -1)[torch.arange(50), targets] / math.log(2)
    near(bits(logits, targets), expected, tolerance=ROUNDING)
    assert bits(torch.zeros(1, 256), torch.tensor([3])).item() == pytest.approx(8.0)
    sure = F.one_hot(targets, 16).double()
    assert correct(sure, targets).mean() == 1.0
    assert correct(sure, (targets + 1) % 16).mean() == 0.0


def test_metrics_say_which_direction_is_better_and_what_solves_a_task() -> None:
    directions = {m.name: m.direction for name in ("text", "recall") for m in memkit.build("task", name).metrics}
    assert directions == {"bits per byte": "lower", "accuracy": "higher", "loss": "lower"}
    assert memkit.build("task", "recall").yardstick.value == 0.25  # 1 / pairs
    assert [m.solved for m in memkit.build("task", "recall").metrics] == [0.9, None]
