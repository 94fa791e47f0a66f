"""The hybrid model, and the baselines that are special cases of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from compare import near
from memkit.registry import Config, build
from running_mean import Headless, RunningMean, registered
from small_model import VOCAB, text


@pytest.fixture
def mixers() -> Iterator[None]:
    with registered(mean=RunningMean, headless=Headless):
        yield


@pytest.mark.usefixtures("mixers")
def test_a_hybrid_cycles_its_pattern() -> None:
    pattern = ["mean", "headless", {"name": "mean", "gain": 2.0, "heads": 4}]
    made = build("architecture", "hybrid", vocab_size=VOCAB, dim=8, heads=2, depth=5, pattern=pattern)
    kinds = [type(mixer) for mixer in made.mixers]
    assert kinds == [RunningMean, Headless, RunningMean, RunningMean, Headless]
    assert [(mixer.heads, mixer.gain) for mixer in made.mixers] == [(2, 1), (1, 1), (4, 2), (2, 1), (1, 1)]
    assert made.mixers[0].out.weight is not made.mixers[3].out.weight
    assert build("architecture", "hybrid", vocab_size=VOCAB, dim=8, pattern=pattern).depth == 3
    assert pattern[2] == {"name": "mean", "gain": 2.0, "heads": 4}


@pytest.mark.usefixtures("mixers")
def test_a_hybrid_is_data() -> None:
    config = Config("architecture", "hybrid", {"vocab_size": 11, "dim": 8, "pattern": ["mean"], "feed_forward": 0})
    made = Config.from_yaml(config.to_yaml()).build()
    assert made.blocks[0].feed_forward is None


@pytest.mark.usefixtures("mixers")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": []}, "needs a pattern of at least one mixer"),
        ({"pattern": ["meen"]}, "unknown mixer 'meen'. Did you mean 'mean'"),
        ({"pattern": ["kda"]}, "unknown mixer 'kda'. There is a rule 'kda': .*'name': 'neural_memory', 'rule': 'kda'"),
        ({"pattern": ["mean", {"name": "headless", "heads": 2}]}, "mixer 'headless' has no option 'heads'"),
        ({"pattern": [{"name": "mean", "gane": 1.0}]}, "mixer 'mean' has no option 'gane'"),
        ({"pattern": [{"name": "mean", "dim": 8}]}, r"got \['dim'\] twice"),
        ({"pattern": [{"gain": 1.0}]}, "a mixer given as a mapping needs a 'name'"),
        ({"pattern": "mean"}, "option 'pattern' = 'mean' does not fit"),
        ({"depth": 0}, "depth must be an integer of at least 1; got 0"),
        ({"dim": -8}, "dim must be an integer of at least 1; got -8"),
        ({"vocab_size": 0}, "vocab_size must be an integer of at least 1"),
        ({"heads": 0}, "heads must be an integer of at least 1"),
        ({"heads": 3}, "heads = 3 does not divide dim = 8.*such as 6 or 9"),
    ],
)
def test_a_hybrid_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("architecture", "hybrid", **{"vocab_size": VOCAB, "dim": 8, "pattern": ["mean"], **options})


@pytest.mark.parametrize("name", ["transformer", "sliding_window"])
def test_the_baselines_stream_and_refuse_heads_that_do_not_divide(name: str) -> None:
    torch.manual_seed(0)
    made = build("architecture", name, vocab_size=VOCAB, dim=16, depth=2, heads=2).double()
    ids = text(2, 70)
    whole, _ = made(ids)
    start, state = made(ids[:, :66])
    near(torch.cat([start, made(ids[:, 66:], state)[0]], 1), whole)
    with pytest.raises(ValueError, match="heads"):
        build("architecture", name, vocab_size=VOCAB, dim=30, heads=4)


def test_a_window_forgets() -> None:
    torch.manual_seed(0)
    made = build("architecture", "sliding_window", vocab_size=VOCAB, dim=16, depth=1, heads=2, window=3)
    made, ids = made.double(), text(1, 9)
    changed = ids.clone()
    changed[:, 2] = (changed[:, 2] + 1) % VOCAB
    difference = (made(ids)[0] - made(changed)[0]).abs().amax((0, 2))
    assert difference[[0, 1, 5, 6, 7, 8]].max() < 1e-12
    assert difference[[2, 3, 4]].min() > 1e-9
