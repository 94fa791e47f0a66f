"""The kernels of `triton_dual`: tape and fold of all blocks of a call, forward and backward, one program a row.

A row is a head of a batch row. What its blocks hand on is all that has to be done one block after the other; in the
words of `dual`, for a memory silu(x W1) W2 and errors that are h * prediction + r:

    tape    z = k A1,  a = silu(z),  e = h * (a A2) + r,  d = e A2^T,  g = d * silu'(z)
    fold    W1 <- c_ww W1 + c_ws S1 + k^T (l_w * g),  S1 <- c_sw W1 + c_ss S1 + k^T (l_s * g);  W2, S2 from a and e

A program takes a slice of the hidden units at a time, as slices need each other for sums only: for the prediction
a A2 forward, and for the error's gradient backward. Hence two passes over the slices in every block.

Shapes: k, r, e, predictions `[blocks, N, L, D]`; a, g `[blocks, N, L, HIDDEN]`; `numbers` `[blocks, N, 3, L]`: l_w,
l_s, h; `folding` `[blocks, N, 4]`: c_ww, c_ws, c_sw, c_ss. Matrices are `[D, HIDDEN]`, so those of the second layer
lie transposed. `states` `[1 + blocks + 1, N, 4, D, HIDDEN]`: what the gradients of block 0 see (A1, nothing, A2,
nothing), then W1, S1, W2, S2 before each block, whose W1, W2 the gradients of all later blocks see, and after the last.

Tiles are loaded again where they are needed: the registers of a program of 4 warps hold 8 of 64 x 64 numbers.
"""
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false

import triton
import triton.language as tl


@triton.jit
def _silu(z):
    """silu, its slope, and the slope of that."""
    p = tl.sigmoid(z)
    return z * p, p * (1 + z * (1 - p)), p * (1 - p) * (2 + z * (1 - 2 * p))


@triton.jit
def _tile(ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr):
    """Offsets of the first columns of a matrix that is `WIDTH` wide."""
    return tl.arange(0, ROWS)[:, None] * WIDTH + tl.arange(0, COLUMNS)[None, :]


@triton.jit
def _numbers(numbers, L: tl.constexpr):
    """l_w, l_s and h of a block's tokens, `[L, 1]` each."""
    each = numbers + tl.arange(0, L)[:, None]
    return tl.load(each), tl.load(each + L), tl.load(each + 2 * L)


@triton.jit
def _folding(folding):
    """c_ww, c_ws, c_sw, c_ss of a block."""
    return tl.load(folding), tl.load(folding + 1), tl.load(folding + 2), tl.load(folding + 3)


@triton.jit
def forward(
    k, r, numbers, folding, states, predictions, e, a, g, blocks, L: tl.constexpr, D: tl.constexpr,
    HIDDEN: tl.constexpr, SLICE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Fill predictions, e, a, g, and `states` from its third on."""
    SIZE: tl.constexpr = D * HIDDEN
    token, unit, part = _tile(L, D, D), _tile(L, SLICE, HIDDEN), _tile(D, SLICE, HIDDEN)
    row, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    for j in range(blocks):
        block = j * rows + row
        here, there = block * L * D, block * L * HIDDEN
        keys, errors = k + here + token, e + here + token
        now, after = states + (block + rows) * 4 * SIZE, states + (block + 2 * rows) * 4 * SIZE
        anchor = states + tl.where(j == 0, block, block + rows) * 4 * SIZE
        l_w, l_s, h = _numbers(numbers + block * 3 * L, L)
        c_ww, c_ws, c_sw, c_ss = _folding(folding + 4 * block)
        prediction = tl.zeros_like(tl.load(r + here + token))
        for s in range(0, HIDDEN, SLICE):
            hidden, _, _ = _silu(tl.dot(tl.load(keys), tl.load(anchor + s + part), None, PRECISION))
            tl.store(a + there + s + unit, hidden)
            prediction = tl.dot(hidden, tl.trans(tl.load(anchor + 2 * SIZE + s + part)), prediction, PRECISION)
        tl.store(predictions + here + token, prediction)
        tl.store(errors, h * prediction + tl.load(r + here + token))
        tl.debug_barrier()  # threads read what others of this program have written
        for s in range(0, HIDDEN, SLICE):
            _, slope, _ = _silu(tl.dot(tl.load(keys), tl.load(anchor + s + part), None, PRECISION))
            error = tl.dot(tl.load(errors), tl.load(anchor + 2 * SIZE + s + part), None, PRECISION) * slope
            tl.store(g + there + s + unit, error)
            into, w, m = tl.trans(tl.load(keys)), tl.load(now + s + part), tl.load(now + SIZE + s + part)
            tl.store(after + s + part, tl.dot(into, l_w * error, c_ww * w + c_ws * m, PRECISION))
            tl.store(after + SIZE + s + part, tl.dot(into, l_s * error, c_sw * w + c_ss * m, PRECISION))
            into, hidden = tl.trans(tl.load(errors)), tl.load(a + there + s + unit)
            second = 2 * SIZE + s + part
            w, m = tl.load(now + second), tl.load(now + SIZE + second)
            tl.store(after + second, tl.dot(into, l_w * hidden, c_ww * w + c_ws * m, PRECISION))
            tl.store(after + SIZE + second, tl.dot(into, l_s * hidden, c_sw * w + c_ss * m, PRECISION))
        tl.debug_barrier()


@triton.jit
def _through_write(total, x, l_w, l_s, grad, SIZE: tl.constexpr, PRECISION: tl.constexpr):
    """total + l_w * (x W) + l_s * (x S), for W and S after a block or their gradients, by their addresses."""
    total += l_w * tl.dot(x, tl.load(grad), None, PRECISION)
    return total + l_s * tl.dot(x, tl.load(grad + SIZE), None, PRECISION)


@triton.jit
def _through_fold(before, after, fold, SIZE: tl.constexpr):
    """Add to the gradients of W and S before a block what comes from those after it, by their addresses."""
    w, m = tl.load(after), tl.load(after + SIZE)
    tl.store(before, tl.load(before) + fold[0] * w + fold[2] * m)
    tl.store(before + SIZE, tl.load(before + SIZE) + fold[1] * w + fold[3] * m)


@triton.jit
def _second_layer(
    total, errors, hidden, grad_a, grad_z, before, after, l_w, l_s, fold, HIDDEN: tl.constexpr, SLICE: tl.constexpr,
    SIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Through the second layer's writes: total plus the gradient at e; grad_z holds that at a, for the time being."""
    for s in range(0, HIDDEN, SLICE):
        to_a = _through_write(tl.load(grad_a + s), tl.load(errors), l_w, l_s, after + s, SIZE, PRECISION)
        tl.store(grad_z + s, to_a)
        total = tl.dot(l_w * tl.load(hidden + s), tl.trans(tl.load(after + s)), total, PRECISION)
        total = tl.dot(l_s * tl.load(hidden + s), tl.trans(tl.load(after + SIZE + s)), total, PRECISION)
        _through_fold(before + s, after + s, fold, SIZE)
    return total


@triton.jit
def _first_layer(
    total, keys, errors, anchor, grad_g, grad_z, grad_d, slopes, before, after, l_w, l_s, fold, HIDDEN: tl.constexpr,
    SLICE: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Through the first layer's writes, g and d: total plus the gradient at e; grad_z lacks the prediction's share."""
    for s in range(0, HIDDEN, SLICE):
        a1, a2 = anchor + s, anchor + 2 * SIZE + s
        _, slope, curve = _silu(tl.dot(tl.load(keys), tl.load(a1), None, PRECISION))
        to_g = _through_write(tl.load(grad_g + s), tl.load(keys), l_w, l_s, after + s, SIZE, PRECISION)
        d = tl.dot(tl.load(errors), tl.load(a2), None, PRECISION)
        tl.store(slopes + s, slope)
        tl.store(grad_d + s, to_g * slope)
        tl.store(grad_z + s, tl.load(grad_z + s) * slope + to_g * d * curve)
        total = tl.dot(to_g * slope, tl.trans(tl.load(a2)), total, PRECISION)
        _through_fold(before + s, after + s, fold, SIZE)
    return total


@triton.jit
def _prediction(
    keys, errors, grad_predictions, hidden, anchor, grad_z, grad_d, slopes, grad_anchor, HIDDEN: tl.constexpr,
    SLICE: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Through the prediction and z to the weights that gradients see."""
    for s in range(0, HIDDEN, SLICE):
        to_a = tl.dot(tl.load(grad_predictions), tl.load(anchor + 2 * SIZE + s), None, PRECISION)
        to_z = tl.load(grad_z + s) + to_a * tl.load(slopes + s)
        tl.store(grad_z + s, to_z)
        first, second = grad_anchor + s, grad_anchor + 2 * SIZE + s
        tl.store(first, tl.load(first) + tl.dot(tl.trans(tl.load(keys)), to_z, None, PRECISION))
        to_2 = tl.dot(tl.trans(tl.load(errors)), tl.load(grad_d + s), None, PRECISION)
        to_2 = tl.dot(tl.trans(tl.load(grad_predictions)), tl.load(hidden + s), to_2, PRECISION)
        tl.store(second, tl.load(second) + to_2)


@triton.jit
def backward(
    k, numbers, folding, states, e, a, grad_states, grad_e, grad_a, grad_g, grad_r, grad_predictions, grad_z, grad_d,
    slopes, blocks, L: tl.constexpr, D: tl.constexpr, HIDDEN: tl.constexpr, SLICE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Turn grad_states from what arrives at the states alone into the whole; fill what stands behind grad_g.

    Shapes are those of what the gradients belong to; slopes, silu'(z), as z. With all of them at hand the other
    gradients wait for no block.
    """
    SIZE: tl.constexpr = D * HIDDEN
    token, unit, part = _tile(L, D, D), _tile(L, SLICE, HIDDEN), _tile(D, SLICE, HIDDEN)
    row, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    for step in range(blocks):
        j = blocks - 1 - step
        block = j * rows + row
        here, there, now = block * L * D, block * L * HIDDEN, (block + rows) * 4 * SIZE
        seen = tl.where(j == 0, now - rows * 4 * SIZE, now)
        l_w, l_s, h = _numbers(numbers + block * 3 * L, L)
        fold = _folding(folding + 4 * block)
        keys, errors, scaled = k + here + token, e + here + token, grad_predictions + here + token
        hidden, to_a, to_g = a + there + unit, grad_a + there + unit, grad_g + there + unit
        to_z, to_d, slope = grad_z + there + unit, grad_d + there + unit, slopes + there + unit
        anchor, grad_anchor = states + seen + part, grad_states + seen + part
        before, after = grad_states + now + part, grad_states + now + rows * 4 * SIZE + part
        total = _second_layer(
            tl.load(grad_e + here + token), errors, hidden, to_a, to_z, before + 2 * SIZE, after + 2 * SIZE,
            l_w, l_s, fold, HIDDEN, SLICE, SIZE, PRECISION,
        )  # fmt: skip
        tl.debug_barrier()  # threads read what others of this program have written
        total = _first_layer(
            total, keys, errors, anchor, to_g, to_z, to_d, slope, before, after,
            l_w, l_s, fold, HIDDEN, SLICE, SIZE, PRECISION,
        )  # fmt: skip
        tl.store(grad_r + here + token, total)
        tl.store(scaled, h * total)
        tl.debug_barrier()
        _prediction(
            keys, errors, scaled, hidden, anchor, to_z, to_d, slope, grad_anchor, HIDDEN, SLICE, SIZE, PRECISION
        )
        tl.debug_barrier()
