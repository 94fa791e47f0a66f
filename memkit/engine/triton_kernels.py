"""The kernels of `triton_dual`: tape and fold of all blocks of a call, forward and backward, one program a row.

A row is a head of a batch row. What its blocks hand on is all that has to be done one block after the other; in the
words of `dual`, for a memory silu(x W1) W2 and errors that are h * prediction + r:

    tape    z = k A1,  a = silu(z),  e = h * (a A2) + r,  d = e A2^T,  g = d * silu'(z)
    fold    W1 <- c_ww W1 + c_ws S1 + k^T (l_w * g),  S1 <- c_sw W1 + c_ss S1 + k^T (l_s * g);  W2, S2 from a and e

A program takes a slice of the hidden units at a time, as slices need each other for sums only: for the prediction
a A2 forward, and for the error's gradient backward. Hence two passes over the slices in every block.

Shapes: k, r, e, predictions `[blocks, N, L, D]`; a, g `[blocks, N, L, HIDDEN]`; `numbers` `[blocks, N, 3, L]`: l_w, l_s,
h; `folding` `[blocks, N, 4]`: c_ww, c_ws, c_sw, c_ss. Matrices are `[D, HIDDEN]`, those of the second layer transposed.
`states` `[1 + blocks + 1, N, 4, D, HIDDEN]`: what the gradients of block 0 see (A1, nothing, A2, nothing), then W1, S1,
W2, S2 before each block, whose W1, W2 are what the gradients of all later blocks see, and after the last.

Tiles are loaded again where they are needed: the registers of a program of 4 warps hold 8 of 64 x 64 numbers.
"""
# pyright: basic, reportMissingImports=false

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
def _times(a, b, PRECISION: tl.constexpr):
    """a b."""
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _plus(c, a, b, PRECISION: tl.constexpr):
    """c + a b."""
    return tl.dot(a, b, c, input_precision=PRECISION)


@triton.jit
def forward(
    k,
    r,
    numbers,
    folding,
    states,
    predictions,
    e,
    a,
    g,
    blocks,
    L: tl.constexpr,
    D: tl.constexpr,
    HIDDEN: tl.constexpr,
    SLICE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Fill predictions, e, a, g, and `states` from its third on."""
    SIZE: tl.constexpr = D * HIDDEN
    token, unit, part = _tile(L, D, D), _tile(L, SLICE, HIDDEN), _tile(D, SLICE, HIDDEN)
    row, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    for j in range(blocks):
        block = j * rows + row
        here, there = block * L * D, block * L * HIDDEN
        now, after = states + (block + rows) * 4 * SIZE, states + (block + 2 * rows) * 4 * SIZE
        anchor = states + tl.where(j == 0, block, block + rows) * 4 * SIZE
        l_w, l_s, h = _numbers(numbers + block * 3 * L, L)
        c_ww, c_ws = tl.load(folding + 4 * block), tl.load(folding + 4 * block + 1)
        c_sw, c_ss = tl.load(folding + 4 * block + 2), tl.load(folding + 4 * block + 3)

        prediction = tl.zeros_like(tl.load(r + here + token))
        for s in range(0, HIDDEN, SLICE):
            hidden, _, _ = _silu(_times(tl.load(k + here + token), tl.load(anchor + s + part), PRECISION))
            tl.store(a + there + s + unit, hidden)
            prediction = _plus(prediction, hidden, tl.trans(tl.load(anchor + 2 * SIZE + s + part)), PRECISION)
        tl.store(predictions + here + token, prediction)
        tl.store(e + here + token, h * prediction + tl.load(r + here + token))
        tl.debug_barrier()  # threads read what others have written

        for s in range(0, HIDDEN, SLICE):
            _, slope, _ = _silu(_times(tl.load(k + here + token), tl.load(anchor + s + part), PRECISION))
            error = _times(tl.load(e + here + token), tl.load(anchor + 2 * SIZE + s + part), PRECISION) * slope
            tl.store(g + there + s + unit, error)
            into, w, m = tl.trans(tl.load(k + here + token)), tl.load(now + s + part), tl.load(now + SIZE + s + part)
            tl.store(after + s + part, _plus(c_ww * w + c_ws * m, into, l_w * error, PRECISION))
            tl.store(after + SIZE + s + part, _plus(c_sw * w + c_ss * m, into, l_s * error, PRECISION))
            into, hidden = tl.trans(tl.load(e + here + token)), tl.load(a + there + s + unit)
            second = 2 * SIZE + s + part
            w, m = tl.load(now + second), tl.load(now + SIZE + second)
            tl.store(after + second, _plus(c_ww * w + c_ws * m, into, l_w * hidden, PRECISION))
            tl.store(after + SIZE + second, _plus(c_sw * w + c_ss * m, into, l_s * hidden, PRECISION))
        tl.debug_barrier()


@triton.jit
def _through_write(total, x, l_w, l_s, left, SIZE: tl.constexpr, PRECISION: tl.constexpr):
    """total + l_w * (x W) + l_s * (x S), whose addresses begin at `left`."""
    total += l_w * _times(x, tl.load(left), PRECISION)
    return total + l_s * _times(x, tl.load(left + SIZE), PRECISION)


@triton.jit
def _through_fold(before, after, c_ww, c_ws, c_sw, c_ss, SIZE: tl.constexpr):
    """Add to the gradients of W and S before a block what comes from those after it, by their addresses."""
    w, m = tl.load(after), tl.load(after + SIZE)
    tl.store(before, tl.load(before) + c_ww * w + c_sw * m)
    tl.store(before + SIZE, tl.load(before + SIZE) + c_ws * w + c_ss * m)


@triton.jit
def backward(
    k,
    numbers,
    folding,
    states,
    e,
    a,
    grad_states,
    grad_e,
    grad_a,
    grad_g,
    grad_r,
    grad_predictions,
    grad_z,
    grad_d,
    slopes,
    blocks,
    L: tl.constexpr,
    D: tl.constexpr,
    HIDDEN: tl.constexpr,
    SLICE: tl.constexpr,
    PRECISION: tl.constexpr,
):
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
        here, there = block * L * D, block * L * HIDDEN
        l_w, l_s, h = _numbers(numbers + block * 3 * L, L)
        c_ww, c_ws = tl.load(folding + 4 * block), tl.load(folding + 4 * block + 1)
        c_sw, c_ss = tl.load(folding + 4 * block + 2), tl.load(folding + 4 * block + 3)
        seen = tl.where(j == 0, block, block + rows) * 4 * SIZE
        anchor, target = states + seen, grad_states + seen
        before, after = grad_states + (block + rows) * 4 * SIZE, grad_states + (block + 2 * rows) * 4 * SIZE

        total = tl.load(grad_e + here + token)
        for s in range(0, HIDDEN, SLICE):
            first, second, of_s = s + part, 2 * SIZE + s + part, s + unit
            z = _times(tl.load(k + here + token), tl.load(anchor + s + part), PRECISION)
            _, slope, curve = _silu(z)
            tl.store(slopes + there + of_s, slope)
            to_g = tl.load(grad_g + there + of_s)
            to_g = _through_write(to_g, tl.load(k + here + token), l_w, l_s, after + first, SIZE, PRECISION)
            tl.store(grad_d + there + of_s, to_g * slope)
            d = _times(tl.load(e + here + token), tl.load(anchor + 2 * SIZE + s + part), PRECISION)
            to_z = to_g * d * curve
            total = _plus(total, to_g * slope, tl.trans(tl.load(anchor + 2 * SIZE + s + part)), PRECISION)
            to_a = tl.load(grad_a + there + of_s)
            to_a = _through_write(to_a, tl.load(e + here + token), l_w, l_s, after + second, SIZE, PRECISION)
            tl.store(grad_z + there + of_s, to_z + to_a * slope)
            total = _plus(total, l_w * tl.load(a + there + of_s), tl.trans(tl.load(after + second)), PRECISION)
            total = _plus(total, l_s * tl.load(a + there + of_s), tl.trans(tl.load(after + SIZE + second)), PRECISION)
            _through_fold(before + first, after + first, c_ww, c_ws, c_sw, c_ss, SIZE)
            _through_fold(before + second, after + second, c_ww, c_ws, c_sw, c_ss, SIZE)
        tl.store(grad_r + here + token, total)
        tl.store(grad_predictions + here + token, h * total)
        tl.debug_barrier()  # threads read what others have written

        for s in range(0, HIDDEN, SLICE):
            of_s = s + unit
            to_a = _times(tl.load(grad_predictions + here + token), tl.load(anchor + 2 * SIZE + s + part), PRECISION)
            to_z = tl.load(grad_z + there + of_s) + to_a * tl.load(slopes + there + of_s)
            tl.store(grad_z + there + of_s, to_z)
            first, second = target + s + part, target + 2 * SIZE + s + part
            tl.store(first, tl.load(first) + _times(tl.trans(tl.load(k + here + token)), to_z, PRECISION))
            to_2 = _times(tl.trans(tl.load(e + here + token)), tl.load(grad_d + there + of_s), PRECISION)
            to_2 = _plus(to_2, tl.trans(tl.load(grad_predictions + here + token)), tl.load(a + there + of_s), PRECISION)
            tl.store(second, tl.load(second) + to_2)
        tl.debug_barrier()
