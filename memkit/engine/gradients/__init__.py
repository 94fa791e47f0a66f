"""Backward passes written by hand, shared by the forms `fused` and `iterate`.

`vjp`: gradients of a block's products. `segments`: a memory cut at its products. `reading`: queries, with both.
"""
