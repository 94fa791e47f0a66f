"""The textbook recurrences of matrix memories: plain loops in the symbols of their papers, with nothing of the engine.

One head of one row at a time, torch for its gradients only. Vectors are rows; where a paper writes S for the
transpose of the engine's matrix, its loop returns S^T, so that all can be compared alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

Found = tuple[Tensor, Tensor]
"""Outputs `[T, V]` and the final matrix, `[K, V]`."""


def linear_attention(S: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Found:
    """arXiv 2006.16236, eq. 7, 18, 20 without the normalizer."""

    def phi(x: Tensor) -> Tensor:
        return torch.where(x > 0, x + 1, x.exp())

    outputs = []
    for t in range(len(q)):
        S = S + torch.outer(phi(k[t]), v[t])
        outputs.append(phi(q[t]) @ S)
    return torch.stack(outputs), S


def retnet(S: Tensor, q: Tensor, k: Tensor, v: Tensor, *, gamma: float) -> Found:
    """arXiv 2307.08621, eq. 6."""
    outputs = []
    for t in range(len(q)):
        S = gamma * S + torch.outer(k[t], v[t])
        outputs.append(q[t] @ S)
    return torch.stack(outputs), S


def mamba2(h: Tensor, C: Tensor, B: Tensor, x: Tensor, *, a: Tensor, dt: Tensor) -> Found:
    """arXiv 2405.21060: h_t = a_t h_{t-1} + dt_t B_t x_t^T, y_t = C_t^T h_t."""
    outputs = []
    for t in range(len(x)):
        h = a[t] * h + dt[t] * torch.outer(B[t], x[t])
        outputs.append(C[t] @ h)
    return torch.stack(outputs), h


def gla(S: Tensor, q: Tensor, k: Tensor, v: Tensor, *, alpha: Tensor) -> Found:
    """arXiv 2312.06635; alpha `[T, K]`."""
    outputs = []
    for t in range(len(q)):
        S = torch.diag(alpha[t]) @ S + torch.outer(k[t], v[t])
        outputs.append(q[t] @ S)
    return torch.stack(outputs), S


def delta_net(W: Tensor, q: Tensor, k: Tensor, v: Tensor, *, beta: Tensor) -> Found:
    """arXiv 2102.11174: what is held under the key, and a step from there to the value."""
    S, outputs = W.T, []
    for t in range(len(q)):
        held = S @ k[t]
        S = S + beta[t] * torch.outer(v[t] - held, k[t])
        outputs.append(S @ q[t])
    return torch.stack(outputs), S.T


def gated_delta_net(W: Tensor, q: Tensor, k: Tensor, v: Tensor, *, alpha: Tensor, beta: Tensor) -> Found:
    """arXiv 2412.06464, eq. 10."""
    S, outputs, identity = W.T, [], torch.eye(len(W)).to(W)
    for t in range(len(q)):
        S = S @ (alpha[t] * (identity - beta[t] * torch.outer(k[t], k[t]))) + beta[t] * torch.outer(v[t], k[t])
        outputs.append(S @ q[t])
    return torch.stack(outputs), S.T


def delta_product(H: Tensor, q: Tensor, k: Tensor, v: Tensor, *, alpha: Tensor | None = None, beta: Tensor) -> Found:
    """arXiv 2502.10297: k `[T, n K]`, v `[T, n V]`, beta `[T, n]`; the product of Householders, then the sum."""
    outputs, identity = [], torch.eye(len(H)).to(H)
    for t in range(len(q)):
        keys, values = k[t].reshape(beta.shape[1], -1), v[t].reshape(beta.shape[1], -1)
        transition, written = identity, torch.zeros_like(H)
        for b, key, value in zip(beta[t], keys, values, strict=True):
            householder = identity - b * torch.outer(key, key)
            transition = householder @ transition
            written = householder @ written + b * torch.outer(key, value)
        H = transition @ (H if alpha is None else alpha[t] * H) + written
        outputs.append(q[t] @ H)
    return torch.stack(outputs), H


def longhorn(W: Tensor, q: Tensor, k: Tensor, x: Tensor, *, beta: Tensor) -> Found:
    """arXiv 2407.14207, the argmin itself: S (I + beta k k^T) = S_{t-1} + beta x k^T, solved."""
    S, outputs, identity = W.T, [], torch.eye(len(W)).to(W)
    for t in range(len(q)):
        normal = identity + beta[t] * torch.outer(k[t], k[t])
        S = torch.linalg.solve(normal, S + beta[t] * torch.outer(x[t], k[t]), left=False)
        outputs.append(S @ q[t])
    return torch.stack(outputs), S.T


def kda(S: Tensor, q: Tensor, k: Tensor, v: Tensor, *, alpha: Tensor, beta: Tensor) -> Found:
    """arXiv 2510.26692, eq. 1; alpha `[T, K]`."""
    outputs, identity = [], torch.eye(len(S)).to(S)
    for t in range(len(q)):
        erase = identity - beta[t] * torch.outer(k[t], k[t])
        S = erase @ torch.diag(alpha[t]) @ S + beta[t] * torch.outer(k[t], v[t])
        outputs.append(q[t] @ S)
    return torch.stack(outputs), S


def kda_with_momentum(S: Tensor, q: Tensor, k: Tensor, v: Tensor, *, alpha: Tensor, beta: Tensor, eta: Tensor) -> Found:
    """The same with the past steps of Titans (arXiv 2501.00663, eq. 14): Z_t = eta_t Z_{t-1} - beta_t grad."""
    outputs, Z = [], torch.zeros_like(S)
    for t in range(len(q)):
        faded = alpha[t][:, None] * S
        Z = eta[t] * Z - beta[t] * torch.outer(k[t], k[t] @ faded - v[t])
        S = faded + Z
        outputs.append(q[t] @ S)
    return torch.stack(outputs), S


def rwkv7(
    W: Tensor, r: Tensor, k: Tensor, v: Tensor, *, w: Tensor, a: Tensor, xi: Tensor, alpha: Tensor, removal: Tensor
) -> Found:
    """arXiv 2503.14456; w, a, xi, alpha `[T, K]`; removal `[T]`, 1 in the paper, scales what is erased."""
    S, outputs = W.T, []
    for t in range(len(r)):
        kappa = k[t] * xi[t]
        removed = kappa / kappa.square().sum().sqrt()
        replaced = k[t] * (1 - alpha[t] + alpha[t] * a[t])
        transition = torch.diag(w[t]) - removal[t] * torch.outer(removed, a[t] * removed)
        S = S @ transition + torch.outer(v[t], replaced)
        outputs.append(S @ r[t])
    return torch.stack(outputs), S.T


def ttt_linear(
    W: Tensor, q: Tensor, k: Tensor, v: Tensor, *, eta: Tensor, gain: Tensor, bias: Tensor, mini_batch: int
) -> Found:
    """arXiv 2407.04620, f(x) = x + LN(x W), the slope of the layer norm by hand."""

    def normal(z: Tensor) -> tuple[Tensor, Tensor]:
        deviation = ((z - z.mean()).square().mean() + 1e-5).sqrt()
        return (z - z.mean()) / deviation, deviation

    def f(x: Tensor, W: Tensor) -> Tensor:
        return x + gain * normal(x @ W)[0] + bias

    outputs, seen = [], W
    for t in range(len(q)):
        if t % mini_batch == 0:
            seen = W
        unit, deviation = normal(k[t] @ seen)
        error = gain * 2 * (f(k[t], seen) - v[t])
        slope = (error - error.mean() - unit * (error * unit).mean()) / deviation
        W = W - eta[t] * torch.outer(k[t], slope)
        outputs.append(f(q[t], W))
    return torch.stack(outputs), W
