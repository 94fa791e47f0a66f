"""Options of a layer's run: a `memkit.Run`, a mapping of its fields, or `recompute` and `products` for short."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal

import torch

from memkit.engine import Run, check_products, choose
from memkit.mixers.specs import Built
from memkit.registry import nearest
from memkit.rule import Rule

Products = Literal["bfloat16"]
"""Dtypes by name for the products of a memory's blocks, beside float32."""

RunSpec = dict[str, Any] | Annotated[Run, Built()]
FIELDS = [field.name for field in fields(Run)]


def layer_run(rule: Rule, run: RunSpec | None, recompute: int | None, products: str | None) -> Run:
    """Return the run of a layer with this rule; in mappings and in `products`, dtypes stand by name ("bfloat16").

    Raises `ValueError` for `run` beside `recompute` or `products`, for options out of range, and for a form or
    products that the rule does not have.
    """
    short = {name: x for name, x in {"recompute": recompute, "products": products}.items() if x is not None}
    if run is not None and short:
        raise ValueError(f"run= says how the layer runs, so put {' and '.join(short)} into it: run={{...}}.")
    made = run if isinstance(run, Run) else _from_mapping(short if run is None else run)
    choose(rule, made.form, 0)
    if made.products is not None:
        check_products(rule, made.form, made.products)
    return made


def recompute_of(run: RunSpec | None) -> int | None:
    """Return the option `recompute` of a run, given in either way."""
    return run.recompute if isinstance(run, Run) else run.get("recompute") if isinstance(run, Mapping) else None


def _from_mapping(options: Mapping[str, Any]) -> Run:
    if not isinstance(options, Mapping):
        raise ValueError(f"run must be a memkit.Run or a mapping of its fields; got {options!r}.")
    for name in options:
        if name not in FIELDS:
            raise ValueError(f"a run has no option {name!r}. {nearest(name, FIELDS)}")
    products = options.get("products")
    if products is None or isinstance(products, torch.dtype):
        return Run(**options)
    if products != "bfloat16":
        raise ValueError(f"products must be 'bfloat16', or None, which multiplies in float32; got {products!r}.")
    return Run(**{**options, "products": torch.bfloat16})
