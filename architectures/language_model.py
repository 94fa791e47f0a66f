"""The one language model: any stack of mixers between an embedding and its transpose.

tokens -> embedding -> [norm -> mixer -> residual, norm -> feed-forward -> residual] x depth -> norm -> head
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as run_checkpointed

from memkit.checks import in_range, not_negative, positive
from memkit.divergence import all_finite, generation_error
from memkit.masks import blank, check_masks
from memkit.mixers.base import Mixer
from memkit.state import State

NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class ModelState(State):
    """State of a language model: one mixer state per layer, from input to output."""

    layers: tuple[Any, ...]

    @property
    def segment(self) -> Tensor:
        """Each row's document `[B]`; -1 before the first."""
        return self.layers[0].segment


class SwiGLU(nn.Module):
    """`out(silu(gate(x)) * up(x))` (Shazeer 2020, eq. 6), hidden width `expansion * dim` rounded up to eights."""

    def __init__(self, dim: int, expansion: float, residual_scale: float) -> None:
        super().__init__()
        hidden = 8 * max(1, math.ceil(expansion * dim / 8 - 1e-9))  # 8/3 * 3 must not round up to 16
        self.gate_up = nn.Linear(dim, 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, dim, bias=False)
        nn.init.normal_(self.gate_up.weight, std=dim**-0.5)
        nn.init.normal_(self.out.weight, std=hidden**-0.5 * residual_scale)

    def forward(self, x: Tensor) -> Tensor:
        """x `[..., D]` -> `[..., D]`."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * up)


class Block(nn.Module):
    """A pre-norm residual block: a mixer, then a feed-forward unless its expansion is 0."""

    def __init__(self, mixer: Mixer, feed_forward: float, residual_scale: float) -> None:
        super().__init__()
        dim = mixer.dim
        self.mixer_norm = nn.RMSNorm(dim, eps=NORM_EPS)
        self.mixer = mixer
        self.feed_forward = (
            nn.Sequential(nn.RMSNorm(dim, eps=NORM_EPS), SwiGLU(dim, feed_forward, residual_scale))
            if feed_forward
            else None
        )

    def forward(
        self, x: Tensor, state: Any, mask: Tensor | None, segment_ids: Tensor | None, write: bool
    ) -> tuple[Tensor, Any]:
        """x `[B, T, D]` -> (x, the mixer's next state)."""
        y, state = self.mixer(self.mixer_norm(x), state, mask=mask, segment_ids=segment_ids, write=write)
        x = x + y
        return (x if self.feed_forward is None else x + self.feed_forward(x)), state


class LanguageModel(nn.Module):
    """A causal language model over built mixers, one per layer; the head is the embedding, transposed.

    `model(ids, state=None, *, mask=None, segment_ids=None, write=True) -> (logits, state)`

    ids `[B, T]` integers below `vocab_size`, logits `[B, T, vocab]`, any T >= 0. Mask, documents and
    `write` are as for a `Mixer`, and any cut of a sequence into calls gives the same logits.

    feed_forward is the SwiGLU's width in multiples of `dim`, rounded up to a multiple of 8; 0 for none.
    With `checkpoint=True` each block is computed again in the backward pass instead of being kept.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        mixers: Sequence[Mixer],
        *,
        feed_forward: float = 8 / 3,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        positive("vocab_size", vocab_size)
        positive("dim", dim)
        positive("depth, the number of mixers,", len(mixers))
        in_range("feed_forward", feed_forward, 0)
        for layer, mixer in enumerate(mixers):
            if mixer.dim != dim:
                raise ValueError(
                    f"layer {layer}, {type(mixer).__name__}, has dim = {mixer.dim} in a model of "
                    f"dim = {dim}. Build it with dim={dim}."
                )
        self.vocab_size, self.dim, self.depth, self.checkpoint = vocab_size, dim, len(mixers), checkpoint
        self.embedding = nn.Embedding(vocab_size, dim)
        # Tokens must stay audible beside the output of the first mixers, and logits begin within one nat of uniform.
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        scale = (2 * len(mixers)) ** -0.5  # 2 residual branches a layer keep the stream's variance near 1
        self.blocks = nn.ModuleList(Block(mixer, feed_forward, scale) for mixer in mixers)
        self.norm = nn.RMSNorm(dim, eps=NORM_EPS)

    def init_state(self, batch: int) -> ModelState:
        """Return the state before the first token, for `batch` rows."""
        not_negative("batch", batch)
        return ModelState(layers=tuple(mixer.init_state(batch) for mixer in self.mixers))

    def reset(self, state: ModelState, rows: Tensor) -> ModelState:
        """Reset the rows marked True `[B]`."""
        pairs = zip(self.mixers, state.layers, strict=True)
        return ModelState(layers=tuple(mixer.reset(layer, rows) for mixer, layer in pairs))

    def state_bytes(self, tokens: int) -> int:
        """Return the bytes of one row's state after `tokens` tokens."""
        not_negative("tokens", tokens)
        return sum(mixer.state_bytes(tokens) for mixer in self.mixers)

    def num_parameters(self) -> int:
        """Return the number of weights; the head is the embedding and counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def mixers(self) -> list[Mixer]:
        """The mixers, from input to output."""
        return [block.mixer for block in self.blocks]  # type: ignore[misc]

    def forward(
        self,
        ids: Tensor,
        state: ModelState | None = None,
        *,
        mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        write: bool = True,
    ) -> tuple[Tensor, ModelState]:
        """Return logits `[B, T, vocab]`, 0 at masked tokens, and the next state.

        mask `[B, T]` bool: False hides a token completely. segment_ids `[B, T]` >= 0: a change, also from one
        call to the next, starts a new document. write=False reads the memories and does not write to them.

        Raises `ValueError` for ids that are not `[B, T]` integers of the vocabulary, and for a mask,
        segment_ids or a state that do not fit them.
        """
        self._check(ids, state, mask, segment_ids)
        x, state = self._hidden(ids.long(), state, mask, segment_ids, write)
        return self._head(x), state

    @torch.no_grad()
    def generate(
        self,
        ids: Tensor,
        *,
        max_new_tokens: int = 64,
        state: ModelState | None = None,
        mask: Tensor | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, ModelState]:
        """Continue ids `[B, T]`, T >= 1, by `max_new_tokens` tokens.

        Returns ids `[B, T + max_new_tokens]`, the given ones first, and the state after all of them BUT THE
        LAST, so that the last column comes next:

            ids, state = model.generate(prompt)
            more, state = model.generate(ids[:, -1:], state=state)      # the same as one longer call

        temperature 0 takes the likeliest token; above it, tokens are drawn from softmax(logits /
        temperature), among the `top_k` likeliest if given. Prompts of unequal lengths are padded on the
        left, with `mask` `[B, T]` False there. Runs without gradients and in eval mode, and leaves every
        module's mode as it was. Raises `ValueError` for bad ids, an empty prompt and bad options, and
        `DivergedError`, with all tokens until then, for numbers that are not finite.
        """
        not_negative("max_new_tokens", max_new_tokens)
        in_range("temperature", temperature, 0)
        if top_k is not None:
            positive("top_k", top_k)
        self._check(ids, state, mask, None)
        _check_prompt(ids, mask)
        state = begun = self.init_state(ids.shape[0]) if state is None else state
        unread, valid, finite = ids.long(), mask, []
        text = [unread]
        with _eval_mode(self):
            for _ in range(max_new_tokens):
                x, state = self._hidden(unread, state, valid, None, True)
                logits = self._head(x[:, -1])
                finite.append(all_finite(logits))
                unread, valid = _choose(logits, temperature, top_k, generator), None
                text.append(unread)
            if max_new_tokens == 0:
                valid = None if mask is None else mask[:, :-1]
                state = self._hidden(unread[:, :-1], state, valid, None, True)[1]
            whole = torch.cat(text, 1)
            # One look, here: each waits for the device, and would leave it idle after every token.
            if not bool(torch.stack([*finite, all_finite(state)]).all()):
                raise generation_error(
                    self, whole[:, :-1], begun, None if mask is None else mask[:, : whole.shape[1] - 1]
                )
        return whole, state

    def _hidden(
        self, ids: Tensor, state: ModelState | None, mask: Tensor | None, segments: Tensor | None, write: bool
    ) -> tuple[Tensor, ModelState]:
        """Run everything but the head: ids `[B, T]` -> x `[B, T, D]`, 0 at masked tokens.

        Without a state each block begins its own as it runs: sharded weights are there only then.
        """
        ids = ids if mask is None else ids.masked_fill(~mask, 0)  # ids at masked tokens are not looked up
        x, layers = self.embedding(ids), []
        begun = [None] * self.depth if state is None else state.layers
        for block, layer in zip(self.blocks, begun, strict=True):
            if self.checkpoint and torch.is_grad_enabled():
                x, layer = run_checkpointed(block, x, layer, mask, segments, write, use_reentrant=False)
            else:
                x, layer = block(x, layer, mask, segments, write)
            layers.append(layer)
        return blank(self.norm(x), mask), ModelState(layers=tuple(layers))

    def _head(self, x: Tensor) -> Tensor:
        return F.linear(x, self.embedding.weight)

    def _check(self, ids: Tensor, state: ModelState | None, mask: Tensor | None, segment_ids: Tensor | None) -> None:
        """Raise `ValueError` unless the ids are `[B, T]` of the vocabulary and masks and state fit them."""
        if not isinstance(ids, Tensor):
            raise ValueError(f"ids must be a tensor of integers [B, T]; got {type(ids).__name__}. Use torch.tensor.")
        if ids.dim() != 2 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise ValueError(f"ids must be integers [B, T]; got {ids.dtype} {tuple(ids.shape)}.")
        check_masks(mask, segment_ids, *ids.shape)
        if state is not None:
            use = "Use a state that this model returned, or its init_state(batch)."
            if not isinstance(state, ModelState):
                raise ValueError(f"a model goes on from a ModelState; got {type(state).__name__}. {use}")
            if len(state.layers) != self.depth:
                raise ValueError(f"the state has {len(state.layers)} layers and the model {self.depth}. {use}")
            for mixer, layer in zip(self.mixers, state.layers, strict=True):
                mixer.check_state(layer, ids.shape[0])
        # Except on the CPU, a look at the ids would wait for the device, at every token of a decoder.
        if ids.device.type != "cpu" or torch.compiler.is_compiling():
            return
        real = ids if mask is None else ids[mask]
        if real.numel():
            low, high = (int(bound) for bound in real.long().aminmax())
            if low < 0 or high >= self.vocab_size:
                raise ValueError(
                    f"ids must lie in 0..{self.vocab_size - 1}; got {low if low < 0 else high}. "
                    "Is this the tokenizer that the model was built for?"
                )


def _check_prompt(ids: Tensor, mask: Tensor | None) -> None:
    """Raise `ValueError` unless there is a real last token to continue from."""
    if ids.shape[1] == 0:
        raise ValueError(
            "generate needs at least one token to continue from. With a state of `generate`, pass the last "
            "token of the ids that came with it: its state has not read that one yet."
        )
    if mask is not None and mask.device.type == "cpu" and not bool(mask[:, -1].all()):
        raise ValueError("a prompt ends in a masked token. Pad prompts on the left.")


def _choose(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    """Choose the next token of each row: logits `[B, vocab]` -> `[B, 1]`."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    # fp64 minus the maximum: no temperature overflows. Numbers that are not finite are reported later, not by the draw.
    logits = logits.nan_to_num()
    logits = (logits.double() - logits.amax(-1, keepdim=True).double()) / temperature
    if top_k is None:
        return torch.multinomial(logits.softmax(-1), 1, generator=generator)
    best = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
    return best.indices.gather(-1, torch.multinomial(best.values.softmax(-1), 1, generator=generator))


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch to eval mode, then restore every module's own: part of a model may be frozen in eval."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
