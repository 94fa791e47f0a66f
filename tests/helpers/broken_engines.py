"""Engines with one fault each, made from the real one, and the law that is to find the fault."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import memkit
from broken_rules import HONEST, decay_the_step
from memkit.engine import MemoryState
from memkit.engine.forms import dual
from memkit.engine.forms.fused import forward
from memkit.rule import Rule, Tokens
from memkit.state import map_tensors
from memkit.testing import Engine
from memkit.testing.strategies import pick

Result = tuple[Tensor, MemoryState]


class Aside:
    """What is kept beside states: values by the storage of a tensor that knows them again."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Tensor, Any]] = {}

    def put(self, key: Tensor, value: Any) -> None:
        self.kept[key.data_ptr()] = (key, value)  # the tensor too, so that its address is not used again

    def get(self, key: Tensor, default: Any) -> Any:
        return self.kept.get(key.data_ptr(), (key, default))[1]


def anew(state: MemoryState) -> MemoryState:
    """The same contents, at the start of a mini-batch."""
    return replace(state, offset=torch.zeros_like(state.offset), phase=0)


def drops_momentum(rule: Rule, *args: Any, **kwargs: Any) -> Result:
    """The momentum is not handed to the next call."""
    y, state = memkit.memorize(rule, *args, **kwargs)
    return y, replace(state, slots=map_tensors(torch.zeros_like, state.slots))


def keeps_momentum_aside() -> Any:
    """The momentum is in the engine, where no file will find it."""
    aside = Aside()

    def memorize(rule: Rule, q: Any, k: Any, v: Any, gates: Any, state: MemoryState, **kwargs: Any) -> Result:
        known = aside.get(state.weights["w1"], state.slots)
        y, after = memkit.memorize(rule, q, k, v, gates, replace(state, slots=known), **kwargs)
        aside.put(after.weights["w1"], after.slots)
        return y, replace(after, slots=map_tensors(torch.zeros_like, after.slots))

    return memorize


def masks_lr_only(
    rule: Rule, q: Any, k: Any, v: Any, gates: Any, state: Any, *, mask: Any = None, **kwargs: Any
) -> Result:
    """A mask that zeroes the learning rate, while momentum and decay go on."""
    if mask is None:
        return memkit.memorize(rule, q, k, v, gates, state, **kwargs)
    gates = {name: gate.nan_to_num(0.0, 0.0, 0.0).clamp(0, 1) for name, gate in gates.items()}
    gates["lr"] = torch.where(mask[..., None], gates["lr"], 0)
    q, k, v = (torch.where(mask[..., None, None], x, 0) for x in (q, k, v))
    y, state = memkit.memorize(rule, q, k, v, gates, state, **kwargs)
    return torch.where(mask[..., None, None], y, 0), state


def counts_padding(
    rule: Rule, q: Any, k: Any, v: Any, gates: Any, state: Any, *, mask: Any = None, **kwargs: Any
) -> Result:
    """Padding moves the mini-batches that come after it."""
    y, after = memkit.memorize(rule, q, k, v, gates, state, mask=mask, **kwargs)
    return y, replace(after, offset=(state.offset + q.shape[1]) % rule.period)


def misses_the_first_document(rule: Rule, q: Any, k: Any, v: Any, gates: Any, state: Any, **kwargs: Any) -> Result:
    """A document that starts with a call goes unnoticed."""
    unnamed = replace(state, segment=torch.full_like(state.segment, -1))
    return memkit.memorize(rule, q, k, v, gates, unnamed, **kwargs)


def block_is_meaning(
    rule: Rule, q: Any, k: Any, v: Any, gates: Any, state: Any, *, form: Any = "auto", block_size: int = 64
) -> Result:
    """Speed that changes the answer: each block begins a mini-batch of its own."""
    outputs, tokens = [], Tokens(q, k, v, gates)
    for start in range(0, q.shape[1], block_size):
        piece = pick(tokens, slice(None), slice(start, start + block_size))
        y, state = memkit.memorize(rule, *piece, anew(state) if start else state, form=form)
        outputs.append(y)
    return torch.cat(outputs, 1), state


def reads_the_end(rule: Rule, q: Any, k: Any, v: Any, gates: Any, state: Any, **kwargs: Any) -> Result:
    """Queries are read after all of the call's writes."""
    _, after = memkit.memorize(rule, q, k, v, gates, state, **kwargs)
    return memkit.retrieve(rule, after, q), after


def forgets_the_anchor(rule: Rule, q: Any, k: Any, v: Any, gates: Any, state: Any, **kwargs: Any) -> Result:
    """Each call begins a mini-batch of its own."""
    return memkit.memorize(rule, q, k, v, gates, anew(state), **kwargs)


def call_is_one_batch(rule: Rule, q: Any, k: Any, v: Any, gates: Any, state: Any, **kwargs: Any) -> Result:
    """All of a call's gradients are taken at the weights it began with."""
    whole = replace(rule, mini_batch=max(rule.mini_batch, q.shape[1]))
    y, after = memkit.memorize(whole, q, k, v, gates, anew(state), **kwargs)
    return y, anew(after)


def nothing_ends_a_batch(rule: Rule, q: Any, k: Any, v: Any, gates: Any, state: Any, **kwargs: Any) -> Result:
    """A call without tokens begins a mini-batch."""
    y, after = memkit.memorize(rule, q, k, v, gates, state, **kwargs)
    return y, after if q.shape[1] else anew(after)


def writes_in_place(rule: Rule, q: Any, k: Any, v: Any, gates: Any, state: Any, **kwargs: Any) -> Result:
    """The caller's state changes under its feet."""
    y, after = memkit.memorize(rule, q, k, v, gates, state, **kwargs)
    with torch.no_grad():
        for name, weight in state.weights.items():
            weight.copy_(after.weights[name])
    return y, after


def fast_form_differs(rule: Rule, *args: Any, form: Any = "auto", **kwargs: Any) -> Result:
    """The fast form decays the step too, the definition does not."""
    if form != "scan":
        rule = replace(rule, retention=replace(rule.retention, keep=decay_the_step))
    return memkit.memorize(rule, *args, form=form, **kwargs)


def one_percent_more(module: Any, product: str) -> Any:
    """A loop over blocks folds 1 % too much into the state: `product` of a form's module, as the form calls it."""

    def memorize(rule: Rule, *args: Any, **kwargs: Any) -> Result:
        honest = getattr(module, product)

        def folded(*given: Any, **options: Any) -> Any:
            return map_tensors(lambda x: 1.01 * x, honest(*given, **options))

        with patch.object(module, product, folded):
            return memkit.memorize(rule, *args, **kwargs)

    return memorize


def grows(rule: Rule, q: Any, k: Any, v: Any, gates: Any, state: Any, **kwargs: Any) -> Result:
    """Old weights are kept, behind those that anybody reads."""
    y, after = memkit.memorize(rule, q, k, v, gates, state, **kwargs)
    return y, replace(after, slots={name: (*held, state.weights[name]) for name, held in after.slots.items()})


def detaches_lr(rule: Rule, q: Any, k: Any, v: Any, gates: Any, state: Any, **kwargs: Any) -> Result:
    """Nobody learns how much to write."""
    return memkit.memorize(rule, q, k, v, {**gates, "lr": gates["lr"].detach()}, state, **kwargs)


class CutInTheSecondPass(torch.autograd.Function):
    """The identity, with a backward that runs without a graph."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].detach()


def cuts_the_second_pass(rule: Rule, *args: Any, **kwargs: Any) -> Result:
    """Gradients are right, and constants: a gradient of them misses the outer loss's own bend."""
    y, after = memkit.memorize(rule, *args, **kwargs)
    return CutInTheSecondPass.apply(y), after  # type: ignore[return-value]


def fast_form_cuts_the_second_pass(rule: Rule, *args: Any, form: Any = "auto", **kwargs: Any) -> Result:
    """The same in every form but the definition."""
    run = memkit.memorize if form == "scan" else cuts_the_second_pass
    return run(rule, *args, form=form, **kwargs)


def rounds_to_half(rule: Rule, q: Any, k: Any, v: Any, gates: Any, state: Any, **kwargs: Any) -> Result:
    """Keys and values of single precision are taken in half of it."""
    k, v = (x.bfloat16().float() if x.dtype == torch.float32 else x for x in (k, v))
    return memkit.memorize(rule, q, k, v, gates, state, **kwargs)


def cancels(rule: Rule, *args: Any, **kwargs: Any) -> Result:
    """Every form but the definition takes its outputs for the differences of large numbers."""
    y, after = memkit.memorize(rule, *args, **kwargs)
    return (y if kwargs.get("form") == "scan" else (y + 1000) - 1000), after


def only_the_last_is_written(rule: Rule, q: Any, k: Any, v: Any, gates: Any, state: Any, **kwargs: Any) -> Result:
    """Of a call's tokens only the last one enters the state."""
    y, after = memkit.memorize(rule, q, k, v, gates, state, **kwargs)
    last = pick(Tokens(q, k, v, gates), slice(None), slice(max(0, q.shape[1] - 1), q.shape[1]))
    _, short = memkit.memorize(rule, *last, state, **kwargs)
    return y, replace(after, weights=short.weights)


def pads_and_decays(rule: Rule, q: Any, k: Any, v: Any, gates: Any, state: Any, **kwargs: Any) -> Result:
    """A call is padded to a multiple of 4 tokens, and the padding forgets as its last token did."""
    missing = -q.shape[1] % 4 if q.shape[1] else 0
    last = slice(-1, None)
    q_, k_, v_ = (torch.cat([x, *[torch.zeros_like(x[:, last])] * missing], 1) for x in (q, k, v))
    padded = {name: torch.cat([gate, *[gate[:, last]] * missing], 1) for name, gate in gates.items()}
    padded["lr"] = torch.cat([gates["lr"], *[torch.zeros_like(gates["lr"][:, last])] * missing], 1)
    y, after = memkit.memorize(rule, q_, k_, v_, padded, state, **kwargs)
    _, honest = memkit.memorize(rule, q, k, v, gates, state, **kwargs)
    return y[:, : q.shape[1]], replace(honest, weights=after.weights)


def one_memory_for_all(rule: Rule, q: Any, k: Any, v: Any, gates: Any, state: Any, **kwargs: Any) -> Result:
    """The batch shares one memory."""
    y, after = memkit.memorize(rule, q, k, v, gates, state, **kwargs)
    shared = {name: weight.mean(0, keepdim=True).expand_as(weight) for name, weight in after.weights.items()}
    return y, replace(after, weights=shared)


def one_memory_for_heads(rule: Rule, q: Any, k: Any, v: Any, gates: Any, state: Any, **kwargs: Any) -> Result:
    """The heads share one memory."""
    y, after = memkit.memorize(rule, q, k, v, gates, state, **kwargs)
    shared = {name: weight.mean(1, keepdim=True).expand_as(weight) for name, weight in after.weights.items()}
    return y, replace(after, weights=shared)


def underflows(rule: Rule, q: Any, k: Any, v: Any, gates: Any, state: Any, form: Any = "auto", **kwargs: Any) -> Result:
    """The fast form works with products of all momentum gates so far, and loses them where these are small."""
    if form != "scan":
        product = gates["momentum"].cumprod(1)
        gates = {**gates, "momentum": torch.where(product > 1e-2, gates["momentum"], 0)}
    return memkit.memorize(rule, q, k, v, gates, state, form=form, **kwargs)


def skips_masks_of_one_row(
    rule: Rule, q: Any, k: Any, v: Any, gates: Any, state: Any, *, mask: Any = None, **kwargs: Any
) -> Result:
    """A batch of one row is taken to have no padding."""
    if mask is not None and q.shape[0] == 1:
        q, k, v = (x.nan_to_num(0.0, 0.0, 0.0) for x in (q, k, v))
        gates = {name: gate.nan_to_num(0.0, 0.0, 0.0).clamp(0, 1) for name, gate in gates.items()}
        mask = None
    return memkit.memorize(rule, q, k, v, gates, state, mask=mask, **kwargs)


def drops_documents(
    rule: Rule, q: Any, k: Any, v: Any, gates: Any, state: Any, *, segment_ids: Any = None, **kwargs: Any
) -> Result:
    """Packed documents are read as one."""
    return memkit.memorize(rule, q, k, v, gates, state, **kwargs)


def remembers_in_half(rule: Rule, *args: Any, **kwargs: Any) -> Result:
    """A state of single precision is kept in half of it between calls."""
    y, after = memkit.memorize(rule, *args, **kwargs)
    return y, map_tensors(lambda x: x.bfloat16().float() if x.dtype == torch.float32 else x, after)


def drops_pending(rule: Rule, *args: Any, **kwargs: Any) -> Result:
    """An unfinished write is not handed to the next call."""
    y, after = memkit.memorize(rule, *args, **kwargs)
    return y, replace(after, pending=map_tensors(torch.zeros_like, after.pending))


def drops_window(rule: Rule, *args: Any, **kwargs: Any) -> Result:
    """The tokens that a window looks back at are not handed to the next call."""
    y, after = memkit.memorize(rule, *args, **kwargs)
    window = None if after.window is None else replace(after.window, filled=torch.zeros_like(after.window.filled))
    return y, replace(after, window=window)


def reads_the_start(rule: Rule, state: MemoryState, q: Tensor) -> Tensor:
    """Reading without writing sees the initial weights."""
    return memkit.retrieve(rule, replace(state, weights=state.initial), q)


ENGINES: dict[str, tuple[str, Engine]] = {
    "momentum dropped at hand-off": ("split anywhere", Engine(drops_momentum)),
    "gradients at the call's initial weights": ("split anywhere", Engine(call_is_one_batch)),
    "mini-batch begun anew by each call": ("decode is prefill", Engine(forgets_the_anchor)),
    "mini-batch ended by no tokens": ("empty call", Engine(nothing_ends_a_batch)),
    "fast form decays the step too": ("forms agree", Engine(fast_form_differs)),
    "plain dual loop off by 1 %": ("forms agree", Engine(one_percent_more(dual, "fold_all"))),
    "fused loop off by 1 %": ("forms agree", Engine(one_percent_more(forward, "fold"))),
    "block size that means something": ("block size is speed", Engine(block_is_meaning)),
    "read after the whole call's write": ("causality", Engine(reads_the_end)),
    "reading without writing reads the start": ("retrieve is reading", Engine(retrieve=reads_the_start)),
    "mask that only zeroes lr": ("masked token", Engine(masks_lr_only)),
    "padding counted": ("left padding", Engine(counts_padding)),
    "document that starts with a call missed": ("documents apart", Engine(misses_the_first_document)),
    "state mutated": ("state is a value", Engine(writes_in_place)),
    "state that grows": ("state size", Engine(grows)),
    "state beside the state": ("save and load", Engine(keeps_momentum_aside())),
    "arithmetic in half precision": ("single precision", Engine(rounds_to_half)),
    "fast form that cancels large numbers": ("rounding", Engine(cancels)),
    "gradient cut": ("outer gradient", Engine(detaches_lr)),
    "gradient cut in the second pass": ("second gradient", Engine(cuts_the_second_pass)),
    "gradient cut in a fast form's second pass": ("second gradient", Engine(fast_form_cuts_the_second_pass)),
    "only a call's last token written": ("split anywhere", Engine(only_the_last_is_written)),
    "padding to a block forgets": ("decode is prefill", Engine(pads_and_decays)),
    "memory shared by the batch": ("rows apart", Engine(one_memory_for_all)),
    "memory shared by the heads": ("heads apart", Engine(one_memory_for_heads)),
    "products that underflow": ("forms agree", Engine(underflows)),
    "mask skipped for a batch of one": ("masked token", Engine(skips_masks_of_one_row)),
    "documents ignored": ("documents apart", Engine(drops_documents)),
    "state kept in half precision": ("single precision", Engine(remembers_in_half)),
}

OTHERS: dict[str, tuple[str, Rule, Engine]] = {
    "unfinished write dropped at hand-off": (
        "split anywhere",
        replace(HONEST, mini_batch=1, update_every=3),
        Engine(drops_pending),
    ),
    "window dropped at hand-off": ("split anywhere", replace(HONEST, window=3), Engine(drops_window)),
}
"""Faults that only some rules can have, each with a rule that can."""
