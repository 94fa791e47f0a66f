"""Nothing waits for the device: no number is read back, no shape depends on one, and none is sent from the host.

All runs on tensors that have a device of their own and no numbers ("meta"), where reading one raises; what would be
sent there is caught on its way. What cannot do without is listed, with the reason, and must be caught.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import memkit
from memkit.engine.inputs import gate_shape
from memkit.state import tensors
from mixers_to_compile import mixer
from ranks import MODELS, VOCAB
from ranks import model as small_model

BATCH, TOKENS, HEADS, WIDTH = 2, 18, 2, 4  # two mini-batches of the rules
DIM, LENGTH = 8, 5  # and of the mixers and models of the tests
READ_BACK = "meta tensor|register_meta function for torch.nonzero"

masked_or_not = pytest.mark.parametrize("masked", [False, True], ids=["all tokens", "masked"])


class NothingIsSent(TorchDispatchMode):
    """Raises where tensors of the host meet the device's; a single number may: it travels with the call."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tensors(tuple(tuple(x) if isinstance(x, list) else x for x in (*args, *(kwargs or {}).values())))
        here = [x for x in given if x.device.type == "cpu"]
        if any(x.dim() for x in here) or (here and "copy" in func.__name__):
            raise RuntimeError(f"{func} is given a tensor of the host")
        return func(*args, **(kwargs or {}))


class NothingIsMade(TorchFunctionMode):
    """Raises where a tensor of the device is made of numbers of the host."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor, Tensor.new_tensor) and made.device.type != "cpu":
            raise RuntimeError(f"{args[-1]} of the host is made a tensor")
        index = args[1] if func in (Tensor.__getitem__, Tensor.__setitem__) else ()
        if isinstance(index, list) or (isinstance(index, tuple) and any(isinstance(x, list) for x in index)):
            raise RuntimeError(f"a list of the host, {index}, is made a tensor")
        return made


@contextmanager
def nothing_waits() -> Iterator[None]:
    with NothingIsMade(), NothingIsSent():
        yield


def twice(function: Callable[[], Any]) -> None:
    """Once to make what is made once for each device, such as the indices of polynomial features, and once watched."""
    function()
    with nothing_waits():
        function()


def tokens_of(rule: memkit.Rule) -> dict[str, Any]:
    """Tokens, gates and the state for a rule."""
    shape = (BATCH, TOKENS, HEADS)
    q = torch.randn(*shape, WIDTH, requires_grad=True)
    k, v = (torch.randn(*shape, rule.pairs * WIDTH, requires_grad=True) for _ in range(2))
    needed = {name: gate for name, gate in rule.gates.items() if gate.default is None}
    gates = {name: torch.rand(gate_shape(rule, gate, k, v), requires_grad=True) for name, gate in needed.items()}
    sizes: dict[str, Any] = {"batch": BATCH, "heads": HEADS, "key_dim": WIDTH, "value_dim": WIDTH}
    return {"q": q, "k": k, "v": v, "gates": gates, "state": memkit.init_state(rule, **sizes, device="meta")}


def mask_if(masked: bool, tokens: int) -> Tensor | None:
    return torch.ones(BATCH, tokens, dtype=torch.bool) if masked else None


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    with torch.device("meta"):
        yield


# -- what must not wait


@masked_or_not
@pytest.mark.parametrize("name", memkit.names("rule"))
def test_no_rule_waits_for_the_device(name: str, masked: bool) -> None:
    rule, mask = memkit.build("rule", name), mask_if(masked, TOKENS)

    def train() -> None:
        y, state = memkit.memorize(rule, **tokens_of(rule), mask=mask)
        sum(x.square().sum() for x in (y, *state.weights.values())).backward()  # type: ignore[union-attr]

    @torch.no_grad()
    def decode() -> None:
        given = tokens_of(rule)
        gates, state = given.pop("gates"), given.pop("state")
        for t in range(3):
            now = slice(t, t + 1)
            here = {name: x[:, now] for name, x in given.items()}
            valid = None if mask is None else mask[:, now]
            y, state = memkit.memorize(
                rule, **here, gates={name: x[:, now] for name, x in gates.items()}, state=state, mask=valid
            )
            memkit.retrieve(rule, state, here["q"])

    twice(train)
    twice(decode)


@masked_or_not
@pytest.mark.parametrize("name", memkit.names("mixer"))
def test_no_mixer_waits_for_the_device(name: str, masked: bool) -> None:
    made, mask = mixer(name), mask_if(masked, LENGTH)
    x = torch.randn(BATCH, LENGTH, DIM, dtype=torch.double, requires_grad=True)
    with nothing_waits():
        made(x, mask=mask)[0].square().sum().backward()
    with torch.no_grad(), nothing_waits():
        state = made.init_state(BATCH)
        for t in range(4):
            y, state = made(x[:, t : t + 1], state, mask=None if mask is None else mask[:, t : t + 1])
        made(x[:, :1], state, write=False)


ONLINE = "hybrid"  # holds a deep memory that learns at every token: see below


@pytest.mark.parametrize("name", [name for name in MODELS if name != ONLINE])
def test_no_architecture_waits_for_the_device(name: str) -> None:
    model, ids = small_model(name), torch.zeros(BATCH, LENGTH, dtype=torch.long)
    with nothing_waits():
        logits, _ = model(ids)
        torch.nn.functional.cross_entropy(logits.view(-1, VOCAB), ids.flatten()).backward()
    with torch.no_grad(), nothing_waits():
        logits, state = model(ids[:, :1])
        model(ids[:, 1:2], state)


def test_recompute_with_a_limit_does_not_wait() -> None:
    rule = memkit.build("rule", "titans", surprise_limit=0.5)
    twice(lambda: memkit.memorize(rule, **tokens_of(rule), recompute=6)[0].sum().backward())


# -- what cannot do without

DEEP = {"name": "titans", "mini_batch": 1}


def online(**options: Any) -> None:
    rule = memkit.build("rule", DEEP)
    memkit.memorize(rule, **tokens_of(rule), **options)[0].sum().backward()


def packed() -> None:
    rule = memkit.build("rule", "titans")
    memkit.memorize(rule, **tokens_of(rule), segment_ids=torch.zeros(BATCH, TOKENS, dtype=torch.long))


def generated() -> None:
    small_model("lmm").generate(torch.zeros(BATCH, 3, dtype=torch.long), max_new_tokens=2)  # type: ignore[operator]


INHERENT: dict[str, tuple[Callable[[], None], str]] = {
    "iterate": (online, "rounds go on until nothing changes, and somebody must look; a fixed number of them does not"),
    "segment_ids": (packed, "documents run piece by piece, and how many pieces there are depends on the ids"),
    "generate": (generated, "its ids are checked once, after all of them were made"),
}


@pytest.mark.parametrize("name", INHERENT)
def test_listed_exceptions_do_wait_for_the_device(name: str) -> None:
    function, reason = INHERENT[name]
    assert reason
    with pytest.raises((RuntimeError, NotImplementedError), match=READ_BACK):
        function()


def test_a_fixed_number_of_rounds_does_not_wait() -> None:
    twice(lambda: online(form="iterate", rounds=3))


# -- the watchers see


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: (x > 0).nonzero(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x + torch.tensor([1.0, 2.0, 3.0], device="cpu"),
        lambda x: torch.tensor([1.0, 2.0], device="cpu").to(x.device),
        lambda x: torch.tensor(5, device=x.device),
        lambda x: x.new_tensor([1.0]),
        lambda x: x[[0, 1]],
    ],
)
def test_code_that_waits_is_caught(function: Callable[[Tensor], Any]) -> None:
    x = torch.zeros(3)
    with pytest.raises((RuntimeError, NotImplementedError)), nothing_waits():
        function(x)
