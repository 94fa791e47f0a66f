"""Inputs that do not fit: a `ValueError` with subject, reason and remedy, before any work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import memkit
from compare import near
from memkit import Rule
from memkit.state import tensors
from small_memory import BATCH, HEADS, TOKENS, WIDTH, Case, titans

RULE = titans()
SHAPE = (BATCH, TOKENS, HEADS)
ONLINE = titans(mini_batch=1)


def wide(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.double)


def gates(**changes: Any) -> dict[str, Any]:
    """The gates of titans with some changed, and those given as None left out."""
    return {name: gate for name, gate in (Case().gates | changes).items() if gate is not None}


def state_of(rule: Rule, tokens: int = 0) -> memkit.MemoryState:
    """The state of another rule after some tokens."""
    return Case(rule).memorize(slice(0, tokens))[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        # tokens
        ({"rule": "titans"}, r"rule must be a Rule; got 'titans'\. Make one with memkit\.build\('rule', name\)"),
        ({"q": None}, r"q must be a floating-point tensor; got NoneType"),
        ({"v": torch.zeros(*SHAPE, WIDTH).long()}, r"v must be a floating-point tensor; got torch\.int64"),
        ({"q": wide(BATCH, TOKENS, WIDTH)}, r"q and k are \[B, T, H, K\] .* q \(3, 11, 4\), .*: q does not fit"),
        ({"v": wide(BATCH, TOKENS - 1, HEADS, WIDTH)}, r"the same B, T and H; .*: v does not fit"),
        ({"k": wide(*SHAPE, WIDTH)[:1]}, r"does not fit"),
        ({"q": wide(*SHAPE, WIDTH + 1)}, r"q and k must be equally wide; got \(3, 11, 2, 5\) and \(3, 11, 2, 4\)"),
        # gates
        ({"gates": [1.0]}, r"gates is a mapping from names to tensors; got list"),
        ({"gates": gates(momentum=None)}, r"rule 'titans' needs the gate 'momentum'; got \['decay', 'lr'\]"),
        ({"gates": gates(lrr=wide(*SHAPE))}, r"rule 'titans' has no gate 'lrr'\. Did you mean 'lr'\?"),
        ({"gates": gates(lr=0.1)}, r"gate 'lr' must be a tensor; got 0\.1\. Use torch\.full"),
        ({"gates": gates(lr=wide(*SHAPE) * 1j)}, r"gate 'lr' must be real; got torch\.complex128"),
        ({"gates": gates(lr=wide(BATCH, TOKENS))}, r"'lr' .* per head, so it must be \(3, 11, 2\); got \(3, 11\)"),
        ({"gates": gates(decay=wide(*SHAPE, WIDTH))}, r"'decay' .* per head, so it must be \(3, 11, 2\)"),
        # masks and documents
        ({"mask": [[True] * TOKENS] * BATCH}, r"mask must be a tensor; got list"),
        ({"mask": torch.ones(BATCH, TOKENS)}, r"mask must be boolean .*got torch\.float32\. Use mask\.bool\(\)"),
        ({"mask": torch.ones(BATCH, 4).bool()}, r"mask must be \[B, T\] = \(3, 11\); got \(3, 4\)"),
        ({"segment_ids": torch.ones(BATCH, TOKENS)}, r"segment_ids must be integers; got torch\.float32"),
        ({"segment_ids": torch.ones(BATCH, TOKENS) * 1j}, r"segment_ids must be integers; got torch\.complex64"),
        ({"segment_ids": torch.ones(BATCH, TOKENS).bool()}, r"segment_ids must be integers; got torch\.bool"),
        ({"segment_ids": torch.ones(TOKENS).long()}, r"segment_ids must be \[B, T\] = \(3, 11\); got \(11,\)"),
        ({"segment_ids": torch.full((BATCH, TOKENS), -1)}, r"segment_ids must be at least 0; got -1"),
        # how it runs
        (
            {"form": "duel"},
            r"unknown form 'duel'\. Did you mean 'dual'\? Known: auto, dual, expand, .*, triton, write",
        ),
        ({"block_size": 0}, r"block_size must be an integer of at least 1; got 0"),
        ({"block_size": -64}, r"block_size must be an integer of at least 1; got -64"),
        ({"block_size": 2.5}, r"block_size must be an integer of at least 1; got 2\.5"),
        # states
        ({"state": None}, r"state must be a MemoryState from memkit\.init_state; got NoneType"),
        ({"state": Case().state.select([0, 1])}, r"the state's weight 'w1' is \(2, 2, 4, 8\), .* B = 3 rows .*select"),
        ({"state": state_of(titans(expansion=3))}, r"need weights \{'w1': \(4, 8\), .* holds \{'w1': \(4, 12\)"),
        ({"state": state_of(titans(depth=3))}, r"need weights .*, but the state holds .*'w3'"),
        ({"state": state_of(titans(optimizer="gradient_descent"))}, r"\(slots per weight: 0, and the rule keeps 1\)"),
        ({"state": state_of(ONLINE)}, r"not made for rule 'titans' \(anchors: 0, and the rule keeps 1\)"),
        ({"state": state_of(titans(mini_batch=16), 9)}, r"stands 9 tokens after .*, and the rule's end after 4"),
        ({"state": state_of(titans(residual=True))}, r"constants \[\], but the state holds \['bias', 'gain'\]"),
        ({"rule": titans(residual=True)}, r"constants \['bias', 'gain'\], but the state holds \[\]"),
        ({"rule": replace(RULE, window=3)}, r"\(carried tokens: 0, and the rule keeps 2\)"),
        ({"rule": replace(ONLINE, update_every=2), "state": state_of(ONLINE)}, r"\(unfinished writes: 0, and"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_memorize_and_observe_name_the_mistake(given: dict[str, Any], message: str) -> None:
    calls: list[Callable[..., Any]] = [Case(RULE).memorize]
    if not given.keys() & {"form", "block_size"}:
        calls.append(Case(RULE).observe)
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call(**given)


def test_heads_must_be_those_of_the_state() -> None:
    state = memkit.init_state(RULE, batch=BATCH, heads=HEADS + 1, key_dim=WIDTH, value_dim=WIDTH)
    with pytest.raises(ValueError, match=r"is \(3, 3, 4, 8\), but the tokens have B = 3 rows and H = 2 heads"):
        Case(RULE).memorize(state=state)


def test_widths_must_be_those_of_the_state() -> None:
    narrow = wide(*SHAPE, 3)
    with pytest.raises(ValueError, match=r"keys of width 3 and values of width 4 need weights"):
        Case(RULE).memorize(q=narrow, k=narrow)
    with pytest.raises(ValueError, match=r"keys of width 4 and values of width 3 need weights"):
        Case(RULE).memorize(v=narrow)


def test_the_dual_form_is_refused_where_it_is_not_exact() -> None:
    signed = replace(RULE.optimizer, name="sign", linear=False)
    cases = {
        r"its optimizer 'sign' is not linear in the gradient": replace(RULE, optimizer=signed),
        r"its retention 'decay' is not linear": replace(RULE, retention=replace(RULE.retention, linear=False)),
        r"it writes once every 3 tokens": replace(ONLINE, update_every=3),
    }
    for message, rule in cases.items():
        with pytest.raises(ValueError, match=rf"rule 'titans' has no dual form: {message}.*Use form='auto'"):
            Case(rule).memorize(form="dual")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rule": "titans"}, r"rule must be a Rule; got 'titans'"),
        ({"rule": ONLINE}, r"anchors: 1, and the rule keeps 0"),
        ({"q": [0.0]}, r"q must be a floating-point tensor; got list"),
        ({"q": wide(TOKENS, HEADS, WIDTH)}, r"q must be \[B, T, H, K\]; got \(11, 2, 4\)"),
        ({"q": wide(1, TOKENS, HEADS, WIDTH)}, r"the tokens have B = 1 rows and H = 2 heads"),
        ({"q": wide(*SHAPE, 3)}, r"keys of width 3"),
        ({"state": {}}, r"state must be a MemoryState .*got dict"),
    ],
)
def test_retrieve_names_the_mistake(given: dict[str, Any], message: str) -> None:
    case = Case(RULE)
    arguments: dict[str, Any] = {"rule": RULE, "state": case.state, "q": case.q} | given
    with pytest.raises(ValueError, match=message):
        memkit.retrieve(**arguments)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch": -1}, r"batch must be an integer of at least 0; got -1"),
        ({"heads": 0}, r"heads must be an integer of at least 1; got 0"),
        ({"heads": 2.0}, r"heads must be an integer of at least 1; got 2\.0"),
        ({"key_dim": -4}, r"key_dim must be an integer of at least 1; got -4"),
        ({"value_dim": 0}, r"value_dim must be an integer of at least 1; got 0"),
        ({"dtype": torch.bfloat16}, r"state is kept in float32 or better; got torch\.bfloat16"),
        ({"dtype": torch.int64}, r"state is kept in float32 or better; got torch\.int64"),
        ({"value_dim": 3}, r"a residual memory .* equally wide; got K = 4 and V = 3\. Use residual=False"),
    ],
)
def test_init_state_names_the_mistake(given: dict[str, Any], message: str) -> None:
    sizes: dict[str, Any] = {"batch": BATCH, "heads": HEADS, "key_dim": WIDTH, "value_dim": WIDTH} | given
    with pytest.raises(ValueError, match=message):
        memkit.init_state(titans(residual=True), **sizes)


def test_a_rules_name_is_no_rule() -> None:
    name: Any = "titans"
    for ask in (memkit.explain, lambda rule: memkit.init_state(rule, batch=1, heads=1, key_dim=2, value_dim=2)):
        with pytest.raises(ValueError, match=r"rule must be a Rule; got 'titans'\. Make one with memkit\.build"):
            ask(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mini_batch": 0}, r"rule 'titans': mini_batch is a count, so it must be an integer >= 1; got 0"),
        ({"depth": 0}, r"memory 'mlp': depth must be >= 1; got 0"),
        ({"expansion": -1}, r"memory 'mlp': expansion must be >= 1; got -1"),
        ({"surprise_limit": 0.0}, r"surprise_limit is a gradient norm, so it must be > 0, or None"),
        ({"activation": "tanh"}, r"option 'activation' = 'tanh' does not fit"),
        ({"optimizer": "momentun"}, r"unknown optimizer 'momentun'\. Did you mean 'momentum'\?"),
        ({"mini_bach": 4}, r"rule 'titans' has no option 'mini_bach'\. Did you mean 'mini_batch'\?"),
    ],
)
def test_building_a_rule_names_the_mistake(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        memkit.build("rule", "titans", **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"update_every": 2}, r"update_every=2 .* needs mini_batch=1 and window=1"),
        ({"read": "during"}, r"read is 'after' or 'before' .*; got 'during'"),
        ({"window": 0}, r"window is a count, so it must be an integer >= 1; got 0"),
        ({"effective": torch.tanh, "point": lambda weight, slots, gates: weight}, r"cannot be combined .*Keep one"),
    ],
)
def test_a_rule_without_meaning_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(RULE, **change)


def test_a_run_stands_for_its_fields() -> None:
    run = memkit.Run(form="dual", block_size=3)
    expected = Case().memorize(form="dual", block_size=3)
    for found, wanted in zip(tensors(Case().memorize(run=run)), tensors(expected), strict=True):
        assert torch.equal(found, wanted)
    for found, wanted in zip(Case().observe(run=run)[:2], Case().observe(form="dual")[:2], strict=True):
        near(found, wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"run": memkit.Run(), "form": "dual"}, r"cannot be combined with form=\. Put them into memkit\.Run"),
        ({"run": memkit.Run(), "recompute": 3, "block_size": 2}, "combined with block_size=, recompute="),
        ({"run": {"form": "dual"}}, r"run must be a memkit\.Run; got \{'form': 'dual'\}"),
    ],
)
def test_a_run_beside_its_fields_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Case().memorize(**options)


@pytest.mark.parametrize("name", ["memora", "omega", "gated_delta_net", "lact"])
def test_observing_refuses_products_as_memorizing_does(name: str) -> None:
    case = Case(memkit.build("rule", name), dtype=torch.float32)
    for call in (case.memorize, case.observe):
        with pytest.raises(ValueError, match=f"products=torch.bfloat16 is not for rule '{name}'"):
            call(run=memkit.Run(products=torch.bfloat16))


def test_what_is_observed_under_products_is_in_single_precision() -> None:
    found = Case(dtype=torch.float32).observe(run=memkit.Run(products=torch.bfloat16))
    expected = Case(dtype=torch.float32).observe()
    assert found.loss.dtype == found.surprise.dtype == torch.float32
    assert 0 < (found.loss - expected.loss).abs().max() < 0.05 * expected.loss.max()


@pytest.mark.parametrize("size", [64.0, 32.0, True])
def test_a_block_size_is_an_integer(size: Any) -> None:
    with pytest.raises(ValueError, match=f"block_size must be an integer of at least 1; got {size}"):
        Case().memorize(block_size=size)
