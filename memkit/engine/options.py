"""`Run`: options of how a memory runs, beside its rule and its tokens."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

import torch

from memkit.checks import in_range, not_negative, positive
from memkit.registry import nearest

FormName = Literal["auto", "scan", "dual", "fused", "solve", "iterate", "write", "expand", "step", "triton"]
FORM_NAMES: tuple[str, ...] = FormName.__args__


@dataclass(frozen=True, kw_only=True)
class Run:
    """Options of a run. None changes a rule's meaning; only `rounds`, `tolerance` and `products` round.

    form: "auto" takes the fastest exact form, or a form by name: "scan" (the definition, token by token), "fused"
        (blocks at once, as one node with a backward pass of its own), "dual" (the same blocks, as autograd sees them),
        "solve" (matrix memories, exact online), "iterate" (deep memories, exact online), "write" (one write every
        `update_every` tokens), "expand" (optimizers that transform their steps, as Muon does), "step" (one token after
        the other: a call of a single token, and rules that no faster form fits). `explain` says more. Never chosen by
        "auto", as nobody has measured it: "triton" ("dual" with a kernel, for an MLP of depth 2).
    block_size: tokens that the engine takes at once, at most; it never changes the answer.
    rounds, tolerance: when the fixed-point iterations of "iterate" stop. rounds: run exactly this many; only the first
        `rounds` + 1 gradient points of a block are then exact. tolerance: stop when the predicted relative change is
        below it (default: machine precision, which is exact); gradients converge to the same tolerance.
    recompute: keep for the backward pass only inputs, outputs and the state at every `recompute`th token, and run the
        tokens between again when gradients arrive. A step takes longer, and its memory grows by no more than inputs
        and outputs. Such gradients cannot be differentiated again; under `torch.compile` everything is kept, as with
        None.
    products: dtype of the matrix products inside blocks. torch.bfloat16 is faster on machines with units for it, and
        rounds keys, values, weights and errors as they enter a product; coefficients and carried state stay as they
        are. For rules that the form "fused" fits; a call of one token is not rounded. None: float32 or better.

    Raises `ValueError` for options that are out of range or do not fit each other.
    """

    form: FormName = "auto"
    block_size: int = 64
    rounds: int | None = None
    tolerance: float | None = None
    recompute: int | None = None
    products: torch.dtype | None = None

    def __post_init__(self) -> None:
        positive("block_size", self.block_size)
        if self.form not in FORM_NAMES:
            raise ValueError(f"unknown form {self.form!r}. {nearest(str(self.form), FORM_NAMES)}")
        if self.rounds is not None or self.tolerance is not None:
            self._check_iterations()
        if self.recompute is not None:
            positive("recompute", self.recompute)
        if self.products is not None and not (
            isinstance(self.products, torch.dtype) and self.products.is_floating_point and self.products.itemsize >= 2
        ):
            raise ValueError(
                f"products is a floating-point dtype of 16 bits or more, as torch.bfloat16; got {self.products!r}."
            )

    def _check_iterations(self) -> None:
        if self.form != "iterate":
            raise ValueError(f"rounds and tolerance are for form='iterate'; got form={self.form!r}.")
        if self.rounds is not None and self.tolerance is not None:
            raise ValueError("give rounds or tolerance, not both: a fixed number of rounds looks at no change.")
        if self.rounds is not None:
            not_negative("rounds", self.rounds)
        if self.tolerance is not None:
            in_range("tolerance", self.tolerance, 0.0)


DEFAULTS = {field.name: field.default for field in fields(Run)}


def run_from(run: Run | None, options: dict[str, Any]) -> Run:
    """The run that was given, or one of these options by name; `ValueError` for both.

    An option with its default value counts as not given.
    """
    given = {name: x for name, x in options.items() if type(x) is not type(DEFAULTS[name]) or x != DEFAULTS[name]}
    if run is None:
        return Run(**given)
    if not isinstance(run, Run):
        raise ValueError(f"run must be a memkit.Run; got {run!r}. Make one with memkit.Run(form=..., ...).")
    if given:
        raise ValueError(
            f"run= says how a memory runs, so it cannot be combined with {', '.join(f'{name}=' for name in given)}. "
            "Put them into memkit.Run(...)."
        )
    return run
