"""Triton kernels of the form `triton`: tape and fold of all blocks of a call, forward and backward.

One program per row, a head of a batch row. Only these two steps of `dual` must run block after block. For a memory
silu(x W1) W2 and errors h * prediction + r, with A1, A2 the weights at which gradients are taken:

    tape    z = k A1,  a = silu(z),  e = h * (a A2) + r,  d = e A2^T,  g = d * silu'(z)
    fold    W1 <- c_ww W1 + c_ws S1 + k^T (l_w * g),  S1 <- c_sw W1 + c_ss S1 + k^T (l_s * g);  W2, S2 from a and e

A program works on a slice of hidden units at a time. Slices meet only in sums: the prediction a A2 forward, the
gradient of e backward. Hence two passes over the slices per block.

Shapes: k, r, e, predictions `[blocks, N, L, D]`; a, g `[blocks, N, L, HIDDEN]`; scalars `[blocks, N, 3, L]`: l_w, l_s,
h; transition `[blocks, N, 4]`: c_ww, c_ws, c_sw, c_ss. Matrices are `[D, HIDDEN]`, so W2, S2 and A2 are stored
transposed. states `[1 + blocks + 1, N, 4, D, HIDDEN]`: first the gradient point of block 0 (A1, unused, A2, unused),
then W1, S1, W2, S2 before each block and after the last. The gradient point of a later block is its own W1 and W2.

Tiles are loaded anew for each use: the registers of a program of 4 warps hold only 8 of 64 x 64 numbers.
"""
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false

import triton
import triton.language as tl


@triton.jit
def _silu(z):
    """Return silu and its first and second derivative."""
    p = tl.sigmoid(z)
    return z * p, p * (1 + z * (1 - p)), p * (1 - p) * (2 + z * (1 - 2 * p))


@triton.jit
def _tile(ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr):
    """Return the offsets of the first columns of a matrix with rows of `WIDTH` numbers."""
    return tl.arange(0, ROWS)[:, None] * WIDTH + tl.arange(0, COLUMNS)[None, :]


@triton.jit
def _scalars(scalars, L: tl.constexpr):
    """Return l_w, l_s and h of a block's tokens, `[L, 1]` each."""
    each = scalars + tl.arange(0, L)[:, None]
    return tl.load(each), tl.load(each + L), tl.load(each + 2 * L)


@triton.jit
def _transition(transition):
    """Return c_ww, c_ws, c_sw, c_ss of a block."""
    return tl.load(transition), tl.load(transition + 1), tl.load(transition + 2), tl.load(transition + 3)


@triton.jit
def forward(
    k, r, scalars, transition, states, predictions, e, a, g, blocks, L: tl.constexpr, D: tl.constexpr,
    HIDDEN: tl.constexpr, SLICE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute predictions, e, a, g, and `states` from index 2 on."""
    SIZE: tl.constexpr = D * HIDDEN
    token, unit, matrix = _tile(L, D, D), _tile(L, SLICE, HIDDEN), _tile(D, SLICE, HIDDEN)
    row, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    for j in range(blocks):
        block = j * rows + row
        token_block, unit_block = block * L * D, block * L * HIDDEN
        keys, errors = k + token_block + token, e + token_block + token
        before, after = states + (block + rows) * 4 * SIZE, states + (block + 2 * rows) * 4 * SIZE
        anchor = states + tl.where(j == 0, block, block + rows) * 4 * SIZE
        l_w, l_s, h = _scalars(scalars + block * 3 * L, L)
        c_ww, c_ws, c_sw, c_ss = _transition(transition + 4 * block)
        prediction = tl.zeros_like(tl.load(r + token_block + token))
        for s in range(0, HIDDEN, SLICE):
            hidden, _, _ = _silu(tl.dot(tl.load(keys), tl.load(anchor + s + matrix), None, PRECISION))
            tl.store(a + unit_block + s + unit, hidden)
            prediction = tl.dot(hidden, tl.trans(tl.load(anchor + 2 * SIZE + s + matrix)), prediction, PRECISION)
        tl.store(predictions + token_block + token, prediction)
        tl.store(errors, h * prediction + tl.load(r + token_block + token))
        tl.debug_barrier()  # threads read results of other threads of this program
        for s in range(0, HIDDEN, SLICE):
            _, derivative, _ = _silu(tl.dot(tl.load(keys), tl.load(anchor + s + matrix), None, PRECISION))
            error = tl.dot(tl.load(errors), tl.load(anchor + 2 * SIZE + s + matrix), None, PRECISION) * derivative
            tl.store(g + unit_block + s + unit, error)
            keys_t, first = tl.trans(tl.load(keys)), s + matrix
            w, m = tl.load(before + first), tl.load(before + SIZE + first)
            tl.store(after + first, tl.dot(keys_t, l_w * error, c_ww * w + c_ws * m, PRECISION))
            tl.store(after + SIZE + first, tl.dot(keys_t, l_s * error, c_sw * w + c_ss * m, PRECISION))
            errors_t, hidden = tl.trans(tl.load(errors)), tl.load(a + unit_block + s + unit)
            second = 2 * SIZE + s + matrix
            w, m = tl.load(before + second), tl.load(before + SIZE + second)
            tl.store(after + second, tl.dot(errors_t, l_w * hidden, c_ww * w + c_ws * m, PRECISION))
            tl.store(after + SIZE + second, tl.dot(errors_t, l_s * hidden, c_sw * w + c_ss * m, PRECISION))
        tl.debug_barrier()


@triton.jit
def _through_write(total, x, l_w, l_s, grad, SIZE: tl.constexpr, PRECISION: tl.constexpr):
    """Return total + l_w * (x grad W) + l_s * (x grad S); `grad` points to the gradients after a block."""
    total += l_w * tl.dot(x, tl.load(grad), None, PRECISION)
    return total + l_s * tl.dot(x, tl.load(grad + SIZE), None, PRECISION)


@triton.jit
def _through_fold(before, after, c, SIZE: tl.constexpr):
    """Add to the gradients of W and S before a block, from those after it; arguments are pointers."""
    w, m = tl.load(after), tl.load(after + SIZE)
    tl.store(before, tl.load(before) + c[0] * w + c[2] * m)
    tl.store(before + SIZE, tl.load(before + SIZE) + c[1] * w + c[3] * m)


@triton.jit
def _second_layer(
    total, errors, hidden, grad_a, grad_z, before, after, l_w, l_s, c, HIDDEN: tl.constexpr, SLICE: tl.constexpr,
    SIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Go back through the second layer's writes: return total plus the gradient of e; store that of a in grad_z."""
    for s in range(0, HIDDEN, SLICE):
        to_a = _through_write(tl.load(grad_a + s), tl.load(errors), l_w, l_s, after + s, SIZE, PRECISION)
        tl.store(grad_z + s, to_a)
        total = tl.dot(l_w * tl.load(hidden + s), tl.trans(tl.load(after + s)), total, PRECISION)
        total = tl.dot(l_s * tl.load(hidden + s), tl.trans(tl.load(after + SIZE + s)), total, PRECISION)
        _through_fold(before + s, after + s, c, SIZE)
    return total


@triton.jit
def _first_layer(
    total, keys, errors, anchor, grad_g, grad_z, grad_d, derivatives, before, after, l_w, l_s, c, HIDDEN: tl.constexpr,
    SLICE: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Go back through the first layer's writes, g and d: return total plus the gradient of e.

    grad_z is complete but for the share through the prediction.
    """
    for s in range(0, HIDDEN, SLICE):
        a1, a2 = anchor + s, anchor + 2 * SIZE + s
        _, derivative, second_derivative = _silu(tl.dot(tl.load(keys), tl.load(a1), None, PRECISION))
        to_g = _through_write(tl.load(grad_g + s), tl.load(keys), l_w, l_s, after + s, SIZE, PRECISION)
        d = tl.dot(tl.load(errors), tl.load(a2), None, PRECISION)
        tl.store(derivatives + s, derivative)
        tl.store(grad_d + s, to_g * derivative)
        tl.store(grad_z + s, tl.load(grad_z + s) * derivative + to_g * d * second_derivative)
        total = tl.dot(to_g * derivative, tl.trans(tl.load(a2)), total, PRECISION)
        _through_fold(before + s, after + s, c, SIZE)
    return total


@triton.jit
def _prediction(
    keys, errors, grad_predictions, hidden, anchor, grad_z, grad_d, derivatives, grad_anchor, HIDDEN: tl.constexpr,
    SLICE: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Go back through the prediction and z to A1 and A2."""
    for s in range(0, HIDDEN, SLICE):
        to_a = tl.dot(tl.load(grad_predictions), tl.load(anchor + 2 * SIZE + s), None, PRECISION)
        to_z = tl.load(grad_z + s) + to_a * tl.load(derivatives + s)
        tl.store(grad_z + s, to_z)
        first, second = grad_anchor + s, grad_anchor + 2 * SIZE + s
        tl.store(first, tl.load(first) + tl.dot(tl.trans(tl.load(keys)), to_z, None, PRECISION))
        to_2 = tl.dot(tl.trans(tl.load(errors)), tl.load(grad_d + s), None, PRECISION)
        to_2 = tl.dot(tl.trans(tl.load(grad_predictions)), tl.load(hidden + s), to_2, PRECISION)
        tl.store(second, tl.load(second) + to_2)


@triton.jit
def backward(
    k, scalars, transition, states, e, a, grad_states, grad_e, grad_a, grad_g, grad_r, grad_predictions, grad_z, grad_d,
    derivatives, blocks, L: tl.constexpr, D: tl.constexpr, HIDDEN: tl.constexpr, SLICE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the gradients that need a loop over blocks: grad_r, grad_predictions, grad_z, grad_d; and silu'(z).

    grad_states comes in as the gradient that arrives at the states directly, and goes out as the total. A gradient has
    the shape of its tensor, `derivatives` that of z. All other gradients follow from these without a loop.
    """
    SIZE: tl.constexpr = D * HIDDEN
    token, unit, matrix = _tile(L, D, D), _tile(L, SLICE, HIDDEN), _tile(D, SLICE, HIDDEN)
    row, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    for step in range(blocks):
        j = blocks - 1 - step
        block = j * rows + row
        token_block, unit_block, state_block = block * L * D, block * L * HIDDEN, (block + rows) * 4 * SIZE
        anchor_block = tl.where(j == 0, state_block - rows * 4 * SIZE, state_block)
        l_w, l_s, h = _scalars(scalars + block * 3 * L, L)
        c = _transition(transition + 4 * block)
        keys, errors, scaled = k + token_block + token, e + token_block + token, grad_predictions + token_block + token
        hidden, to_a, to_g = a + unit_block + unit, grad_a + unit_block + unit, grad_g + unit_block + unit
        to_z, to_d, derivative = grad_z + unit_block + unit, grad_d + unit_block + unit, derivatives + unit_block + unit
        anchor, grad_anchor = states + anchor_block + matrix, grad_states + anchor_block + matrix
        before, after = grad_states + state_block + matrix, grad_states + state_block + rows * 4 * SIZE + matrix
        total = _second_layer(
            tl.load(grad_e + token_block + token), errors, hidden, to_a, to_z, before + 2 * SIZE, after + 2 * SIZE,
            l_w, l_s, c, HIDDEN, SLICE, SIZE, PRECISION,
        )  # fmt: skip
        tl.debug_barrier()  # threads read results of other threads of this program
        total = _first_layer(
            total, keys, errors, anchor, to_g, to_z, to_d, derivative, before, after,
            l_w, l_s, c, HIDDEN, SLICE, SIZE, PRECISION,
        )  # fmt: skip
        tl.store(grad_r + token_block + token, total)
        tl.store(scaled, h * total)
        tl.debug_barrier()
        _prediction(
            keys, errors, scaled, hidden, anchor, to_z, to_d, derivative, grad_anchor, HIDDEN, SLICE, SIZE, PRECISION
        )
        tl.debug_barrier()
