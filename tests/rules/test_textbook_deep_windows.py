"""OmegaNet, Atlas and LaCT equal their textbook recurrences, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import memkit
from memkit.engine import FormName as Form
from textbook_deep import Arrays, gelu, hold_to, monomials, silu, slope

FORMS: tuple[Form, ...] = ("auto", "scan")
CHUNK, WINDOW = 4, 3
Ends = tuple[Tensor, Arrays, dict[str, tuple[Tensor, ...]]]


def memory(w: Arrays, x: Tensor) -> Tensor:
    """ATLAS eq. 42 and, with three matrices, 43."""
    phi = monomials(x)
    hidden = gelu(phi @ w["w1"]) if "w3" not in w else silu(phi @ w["w1"]) * (phi @ w["w3"])
    return x + hidden @ w["w2"]


def omega_loss(w: Arrays, x: Arrays, t: int) -> Tensor:
    """sum_{i=t-c+1..t} gamma_i || M(phi(k_i)) - v_i ||^2, shorter at the start."""
    total = torch.zeros((), dtype=torch.double)
    for i in range(max(0, t - WINDOW + 1), t + 1):
        total = total + x["weight"][i] * ((memory(w, x["k"][i]) - x["v"][i]) ** 2).sum()
    return total


def newton_schulz(s: Tensor, steps: int) -> Tensor:
    x = s / ((s * s).sum() + 1e-3**2).sqrt()
    for _ in range(steps):
        x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
    return x


@pytest.mark.parametrize("form", FORMS)
def test_omega(form: Form) -> None:
    def run(x: Arrays, w: Arrays, c: Arrays) -> Ends:
        y, seen = [], w
        for t in range(len(x["q"])):
            if t % CHUNK == 0:
                seen = w
            here = {n: a.clone() for n, a in seen.items()}
            grad = slope(omega_loss(here, x, t), here)
            w = {n: (1 - x["decay"][t]) * a - x["lr"][t] * grad[n] for n, a in w.items()}
            y.append(memory(w, x["q"][t]))
        return torch.stack(y), w, {}

    rule = memkit.build("rule", "omega", mini_batch=CHUNK, window=WINDOW)
    hold_to(run, rule, form=form, lr=(0.0, 0.01), decay=(0.0, 0.2), weight=(0.0, 1.0))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gated", [False, True])
def test_atlas(gated: bool, form: Form) -> None:
    def run(x: Arrays, w: Arrays, c: Arrays) -> Ends:
        y, seen, s = [], w, {n: torch.zeros_like(a) for n, a in w.items()}
        for t in range(len(x["q"])):
            if t % CHUNK == 0:
                seen = w
            here = {n: a.clone() for n, a in seen.items()}
            grad = slope(omega_loss(here, x, t), here)
            s = {n: x["momentum"][t] * a + grad[n] for n, a in s.items()}
            w = {n: (1 - x["decay"][t]) * a - x["lr"][t] * newton_schulz(s[n], 5) for n, a in w.items()}
            y.append(memory(w, x["q"][t]))
        return torch.stack(y), w, {n: (a,) for n, a in s.items()}

    rule = memkit.build("rule", "atlas", mini_batch=CHUNK, window=WINDOW, gated=gated, expansion=2, degree=2)
    assert memkit.explain(rule).startswith("expand:")
    ranges = {"lr": (0.0, 0.1), "momentum": (0.0, 0.9), "decay": (0.0, 0.2), "weight": (0.1, 1.0)}
    hold_to(run, rule, width=3, form=form, **ranges)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("optimizer", ["muon", "heavy_ball"])
def test_lact(optimizer: str, form: Form) -> None:
    """Apply, then update: a chunk reads the weights from before it."""
    turn = {"muon": lambda s: newton_schulz(s, 5), "heavy_ball": lambda s: s}[optimizer]

    def f(w: Arrays, x: Tensor) -> Tensor:
        return (silu(x @ w["w1"]) * (x @ w["w3"])) @ w["w2"]

    def run(x: Arrays, w: Arrays, c: Arrays) -> Ends:
        lengths = {n: (a * a).sum(0).sqrt() for n, a in w.items()}
        y, s = [], {n: torch.zeros_like(a) for n, a in w.items()}
        for start in range(0, len(x["q"]), CHUNK):
            tokens = range(start, min(start + CHUNK, len(x["q"])))
            y += [f(w, x["q"][i]) for i in tokens]
            if len(tokens) == CHUNK:
                here = {n: a.clone() for n, a in w.items()}
                loss = torch.stack([-x["weight"][i] * (f(here, x["k"][i]) @ x["v"][i]) for i in tokens]).sum()
                grad = slope(loss, here)
                s = {n: x["momentum"][tokens[-1]] * a + grad[n] for n, a in s.items()}
                w = {n: a - turn(s[n]) for n, a in w.items()}
                w = {n: a / (a * a).sum(0).sqrt() * lengths[n] for n, a in w.items()}
        return torch.stack(y), w, {n: (a, (lengths[n] ** 2)[None]) for n, a in s.items()}

    rule = memkit.build("rule", "lact", update_every=CHUNK, optimizer=optimizer)
    hold_to(run, rule, form=form, momentum=(0.0, 0.9), weight=(0.1, 2.0))
