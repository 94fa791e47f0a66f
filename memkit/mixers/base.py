"""The one contract of every sequence component, and its common parts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from memkit.checks import not_negative
from memkit.documents import pieces
from memkit.masks import blank, check_masks
from memkit.state import State


@dataclass(frozen=True, kw_only=True)
class MixerState(State):
    """Base of mixer states.

    segment `[B]`: each row's document, -1 before the first, so that a change of `segment_ids` from one call to the next
    starts a new document too.
    """

    segment: Tensor


class Mixer(nn.Module):
    """A causal map from a sequence to a sequence of the same width, with its state as a value.

    `mixer(x, state=None, *, mask=None, segment_ids=None, write=True) -> (y, state)`

    - x, y `[B, T, D]`, any T >= 0; y is 0 at masked tokens.
    - mask `[B, T]` bool: False hides a token completely, at any place.
    - segment_ids `[B, T]` integers >= 0: a change starts a new document from `init_state`.
    - write=False reads without learning: memories keep their contents, while trackers of the position in the
      stream, such as a convolution's tail or an attention cache, move on.

    Any cut of a sequence into calls gives the same outputs as one call. Subclasses define `mix` and
    `init_state`; masked inputs arrive there as zeros. `state_type` is the class of their states, to refuse another
    mixer's in words.
    """

    dim: int
    state_type: ClassVar[type[MixerState]] = MixerState

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def init_state(self, batch: int) -> Any:
        """Return the state before the first token, for `batch` rows."""
        raise NotImplementedError(f"{type(self).__name__} has no init_state.")

    def mix(self, x: Tensor, state: Any, mask: Tensor | None, write: bool) -> tuple[Tensor, Any]:
        """Map one piece of a document, x `[B, T, D]` -> (y, state)."""
        raise NotImplementedError(f"{type(self).__name__} has no mix.")

    def check_state(self, state: Any, batch: int) -> None:
        """Raise `ValueError` unless the state is this mixer's, with `batch` rows."""
        what = type(self).__name__
        if not isinstance(state, self.state_type):
            raise ValueError(
                f"{what} goes on from its own {self.state_type.__name__}; got {type(state).__name__}. "
                f"Use a state that this mixer returned, or its init_state({batch})."
            )
        if state.segment.shape[0] != batch:
            raise ValueError(
                f"the state has {state.segment.shape[0]} rows and x has {batch}. Use state.select(rows), "
                f"or {what}.init_state({batch})."
            )

    @torch.no_grad()
    def state_bytes(self, tokens: int) -> int:
        """Return the bytes of one row's state after `tokens` tokens; mixers with a growing state override this."""
        not_negative("tokens", tokens)
        return self.init_state(1).bytes

    def begin(self, tokens: Tensor) -> Any:
        """Return one row's state after the persistent tokens `[P, D]` in front of a document (Titans eq. 19)."""
        return self(tokens[None], self.init_state(1))[1]

    def reset(self, state: Any, rows: Tensor) -> Any:
        """Start the rows marked True `[B]` afresh."""
        return state.merge(rows, self.init_state(rows.shape[0]))

    def forward(
        self,
        x: Tensor,
        state: Any = None,
        *,
        mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        write: bool = True,
    ) -> tuple[Tensor, Any]:
        """Run the mixer; see the class for the contract. Raises `ValueError` for shapes that do not fit."""
        check_sequence(self, x, state, mask, segment_ids)
        state = self.init_state(x.shape[0]) if state is None else state
        x = blank(x, mask)
        if segment_ids is None:
            y, state = self.mix(x, state, mask, write)
        else:
            y, state = self._documents(x, state, mask, segment_ids, write)
        return blank(y, mask), state

    def _documents(
        self, x: Tensor, state: Any, mask: Tensor | None, segment_ids: Tensor, write: bool
    ) -> tuple[Tensor, Any]:
        found, outputs = pieces(mask, segment_ids, state.segment), [x[:, :0]]
        # Split all at once: the backward pass of every single slice would write a whole [B, T, D].
        parts = x.split([piece.stop - piece.start for piece in found], 1) if found else ()
        for piece, part in zip(found, parts, strict=True):
            if piece.resets is not None:
                state = self.reset(state, piece.resets)
            valid = None if mask is None else mask[:, piece.start : piece.stop]
            y, state = self.mix(part, state, valid, write)
            state = replace(state, segment=piece.segment)
            outputs.append(y)
        return torch.cat(outputs, 1), state


def no_segment(batch: int, device: torch.device) -> Tensor:
    """Return the `segment` of rows before any document: -1 `[B]`. Raises `ValueError` for a negative batch."""
    not_negative("batch", batch)
    return torch.full((batch,), -1, dtype=torch.long, device=device)


def check_sequence(mixer: Mixer, x: Tensor, state: Any, mask: Tensor | None, segment_ids: Tensor | None) -> None:
    """Raise `ValueError` unless inputs fit the mixer and each other."""
    what = type(mixer).__name__
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{what} takes a floating-point tensor x [B, T, D]; got {kind}.")
    if x.dim() != 3 or x.shape[-1] != mixer.dim:
        raise ValueError(f"{what} takes x [B, T, D] with D = {mixer.dim}; got {tuple(x.shape)}.")
    check_masks(mask, segment_ids, *x.shape[:2])
    if state is not None:
        mixer.check_state(state, x.shape[0])
