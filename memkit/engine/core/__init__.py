"""The heart: how a rule becomes blocks of matrix products. Read in this order.

`rows`: a state as flat rows. `tape`: the gradients of a block's writes, never formed. `coefficients`: what the
update does, learnt by probing it with units. `block`: reading and folding through coefficients.
Beside the heart: `window` (the Omega rule), `channels` (gates per key channel), `affine` (errors to solve for),
`obstacles` (what keeps a rule from being unrolled), `memory_state` (the public state).
"""
