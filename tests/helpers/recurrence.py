"""The literal Titans recurrence (arXiv 2501.00663) in numpy, with nothing of the engine.

One token after the other, one head of one row at a time, gradients derived by hand:

    l(M; k, v) = || M(k) - v ||^2                                  (12)
    M_t = (1 - alpha_t) M_{t-1} + S_t                              (13)
    S_t = eta_t S_{t-1} - theta_t grad l(M_{t'}; k_t, v_t)         (14, 16: t' = the last multiple of mini_batch)
    y_t = M_t(q_t)                                                 (15)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
Result = tuple[Array, list[Array], list[Array]]
"""y, final weights, final momenta."""

erf = np.vectorize(math.erf, otypes=[float])


def silu(z: Array) -> tuple[Array, Array]:
    s = 1 / (1 + np.exp(-z))
    return z * s, s * (1 + z * (1 - s))


def gelu(z: Array) -> tuple[Array, Array]:
    below = (1 + erf(z / math.sqrt(2))) / 2
    return z * below, below + z * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def relu(z: Array) -> tuple[Array, Array]:
    return np.maximum(z, 0), (z > 0).astype(float)


ACTIVATIONS = {"silu": silu, "gelu": gelu, "relu": relu}  # -> value and slope


@dataclass
class Norm:
    """What the residual memory puts around its layers: M(x) = x + gain * LN(z) + bias."""

    gain: Array
    bias: Array

    def forward(self, x: Array, z: Array) -> Array:
        return x + self.gain * self._normal(z)[0] + self.bias

    def backward(self, z: Array, error: Array) -> Array:
        normal, deviation = self._normal(z)
        error = error * self.gain
        return (error - error.mean() - normal * (error * normal).mean()) / deviation

    def _normal(self, z: Array) -> tuple[Array, Array]:
        deviation = np.sqrt(((z - z.mean()) ** 2).mean() + 1e-5)
        return (z - z.mean()) / deviation, deviation


@dataclass
class Memory:
    """A multi-layer perceptron for one token at a time."""

    activation: str = "silu"
    norm: Norm | None = None

    def layers(self, weights: list[Array], x: Array) -> tuple[Array, list[Array], list[Array]]:
        """The last layer's output, every layer's input, and the slopes of the activations between them."""
        inputs, slopes, z = [x], [], x @ weights[0]
        for weight in weights[1:]:
            hidden, slope = ACTIVATIONS[self.activation](z)
            inputs.append(hidden)
            slopes.append(slope)
            z = hidden @ weight
        return z, inputs, slopes

    def read(self, weights: list[Array], x: Array) -> Array:
        z = self.layers(weights, x)[0]
        return z if self.norm is None else self.norm.forward(x, z)

    def gradient(self, weights: list[Array], k: Array, v: Array) -> list[Array]:
        """grad of || M(k) - v ||^2 with respect to every weight."""
        z, inputs, slopes = self.layers(weights, k)
        error = 2 * (z - v) if self.norm is None else self.norm.backward(z, 2 * (self.norm.forward(k, z) - v))
        grads = [np.outer(inputs[-1], error)]
        for i in reversed(range(1, len(weights))):
            error = (weights[i] @ error) * slopes[i - 1]
            grads.insert(0, np.outer(inputs[i - 1], error))
        return grads


def recurrence(
    memory: Memory,
    tokens: Arrays,
    weights: list[Array],
    momenta: list[Array],
    *,
    mini_batch: int,
    read: str = "after",
    limit: float = math.inf,
) -> Result:
    """One head of one row: q, k `[T, K]`, v `[T, V]`, theta, eta, alpha `[T]` -> y, final weights, momenta."""
    outputs, seen = [], weights
    for t in range(len(tokens["q"])):
        before = weights
        if t % mini_batch == 0:
            seen = weights
        grads = memory.gradient(seen, tokens["k"][t], tokens["v"][t])
        if limit < math.inf:
            norm = math.sqrt(sum(np.sum(grad**2) for grad in grads))
            grads = [grad * min(1.0, limit / norm) for grad in grads]
        momenta = [tokens["eta"][t] * s - tokens["theta"][t] * g for s, g in zip(momenta, grads, strict=True)]
        weights = [(1 - tokens["alpha"][t]) * w + s for w, s in zip(weights, momenta, strict=True)]
        outputs.append(memory.read(weights if read == "after" else before, tokens["q"][t]))
    return np.stack(outputs), weights, momenta
