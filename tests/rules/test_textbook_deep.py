"""TTT-MLP and MIRAS' three rules equal their textbook recurrences, gradients included."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import memkit
from compare import ROUNDING, near
from memkit.engine import FormName as Form
from textbook_deep import Arrays, hold_to, residual_norm, slope

FORMS: tuple[Form, ...] = ("auto", "scan")
CHUNK = 4


def chunked(
    loss: Callable[[Tensor, Arrays], Tensor], *, use: Callable[[Tensor], Tensor] = lambda a: a
) -> Callable[..., tuple[Tensor, Arrays, dict[str, tuple[Tensor, ...]]]]:
    """A_t = alpha_t A_{t-1} - eta_t grad l(W), W = use(A) at the end of the chunk before; y_t = M(q_t).

    alpha = 1 where there is no gate. Where weights are bent they are read as they are used: the chunk's, and those
    of the next for the token that ends it.
    """

    def run(x: Arrays, w: Arrays, c: Arrays) -> tuple[Tensor, Arrays, dict[str, tuple[Tensor, ...]]]:
        y, bent = [], use is not None and any(use(a) is not a for a in w.values())
        used = w
        for t in range(len(x["q"])):
            if t % CHUNK == 0:
                used = {n: use(a) for n, a in w.items()}
            seen = {n: a.clone() for n, a in used.items()}
            grad = slope(loss(residual_norm(seen, c, x["k"][t]) - x["v"][t], {n: g[t] for n, g in x.items()}), seen)
            alpha = 1 - x["decay"][t] if "decay" in x else 1.0
            w = {n: alpha * a - x["lr"][t] * grad[n] for n, a in w.items()}
            read = w
            if bent:
                read = {n: use(a) for n, a in w.items()} if t % CHUNK == CHUNK - 1 else used
            y.append(residual_norm(read, c, x["q"][t]))
        return torch.stack(y), w, {}

    return run


def squared(e: Tensor, g: Arrays) -> Tensor:
    return (e * e).sum()


def huber(e: Tensor, g: Arrays) -> Tensor:
    size = (e * e).sum().sqrt()
    return size**2 / 2 if size <= g["delta"] else g["delta"] * (size - g["delta"] / 2)


def huber_of_entries(e: Tensor, g: Arrays) -> Tensor:
    delta = g["delta"]
    return torch.stack([z * z / 2 if z.abs() <= delta else delta * (z.abs() - delta / 2) for z in e]).sum()


@pytest.mark.parametrize("form", FORMS)
def test_ttt_mlp(form: Form) -> None:
    rule = memkit.build("rule", "ttt_mlp", mini_batch=CHUNK)
    hold_to(chunked(squared), rule, form=form, lr=(0.0, 0.05))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("of", "loss"), [("norm", huber), ("entries", huber_of_entries)])
def test_yaad(of: str, loss: Callable[[Tensor, Arrays], Tensor], form: Form) -> None:
    rule = memkit.build("rule", "yaad", of=of, mini_batch=CHUNK)
    corner = (1.0, 4.0) if of == "norm" else (0.5, 2.0)  # errors lie on both sides of it
    hold_to(chunked(loss), rule, form=form, lr=(0.0, 0.05), decay=(0.0, 0.2), delta=corner)


@pytest.mark.parametrize("form", FORMS)
def test_moneta(form: Form) -> None:
    def l3(e: Tensor, g: Arrays) -> Tensor:
        return (e.abs() ** 3).sum()

    def divided(a: Tensor) -> Tensor:
        return a / ((a**4).sum() ** 0.25) ** (4 - 2)

    rule = memkit.build("rule", "moneta", mini_batch=CHUNK)
    hold_to(chunked(l3, use=divided), rule, form=form, lr=(0.0, 0.02), decay=(0.0, 0.2))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("over", "axes"), [("inputs", 0), ("matrix", (0, 1))])
def test_memora_keeps_the_logarithms_of_its_weights(over: str, axes: int | tuple[int, int], form: Form) -> None:
    """Eq. 27 to the letter, a softmax a token; the raw weights are logarithms up to what a softmax does not see."""

    def softmax(a: Tensor) -> Tensor:
        return torch.exp(a) / torch.exp(a).sum(axes, keepdim=True)

    def run(x: Arrays, w: Arrays, c: Arrays) -> tuple[Tensor, Arrays, dict[str, tuple[Tensor, ...]]]:
        y, now, seen = [], {n: softmax(a) for n, a in w.items()}, w
        for t in range(len(x["q"])):
            if t % CHUNK == 0:
                seen = {n: a.clone() for n, a in now.items()}
            e = residual_norm(seen, c, x["k"][t]) - x["v"][t]
            grad = slope((e * e).sum(), seen)
            now = {n: softmax((1 - x["decay"][t]) * a.log() - x["lr"][t] * grad[n]) for n, a in now.items()}
            y.append(residual_norm(now if t % CHUNK == CHUNK - 1 else seen, c, x["q"][t]))
            # The raw weight itself, of which `now` is the softmax.
            w = {n: (1 - x["decay"][t]) * a - x["lr"][t] * grad[n] for n, a in w.items()}
        for n, a in w.items():
            near(softmax(a) / now[n], torch.ones_like(a), tolerance=ROUNDING / 2)
        return torch.stack(y), w, {}

    rule = memkit.build("rule", "memora", over=over, mini_batch=CHUNK)
    hold_to(run, rule, form=form, lr=(0.0, 0.05), decay=(0.0, 0.2))
