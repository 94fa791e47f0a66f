"""States as files: any state tree of the package in one safetensors file, without pickle.

The tensors lie under dotted names; the structure around them, as JSON, is in the file's metadata. Reading
a file can therefore build only what this package (or a component that is installed) defines as a state.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from memkit.atomic import write_whole
from memkit.registry import discover, nearest
from memkit.state import State, Tree, fields

FORMAT_VERSION = 1
VERSION_KEY = "memkit.state"
STRUCTURE_KEY = "memkit.structure"


def save_state(state: Tree, path: str | os.PathLike[str]) -> None:
    """Write a state tree, a model's included, as one safetensors file.

    Values, dtypes and structure come back exactly; gradients' history and devices are not kept, and memory
    that tensors share is written once for each. The file appears under its name only when it is whole.
    Raises `ValueError` for what is not a state tree and `OSError` where the folder cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_describe(state, (), tensors))
    metadata = {VERSION_KEY: str(FORMAT_VERSION), STRUCTURE_KEY: structure}
    try:
        content = save(tensors, metadata)
    except (KeyError, ValueError, RuntimeError, SafetensorError) as error:  # a layout or dtype it lacks
        raise ValueError(f"this state cannot be written as safetensors: {error}.") from error
    write_whole(path, content)


def load_state(path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Any:
    """Read what `save_state` wrote, onto `device`.

    Raises `ValueError` for a file that is cut short, is none of `save_state`'s, was written by a newer
    format, or holds a kind of state that is not installed; `OSError` where there is no file to read.
    """
    if not Path(path).is_file():  # safetensors' own errors for these do not say which file
        raise FileNotFoundError(f"there is no state file {str(path)!r}.")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            structure = _structure(metadata, path)
            # A copy, since the tensors are windows into the file as it lies on the disk.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is not a whole safetensors file: {error}.") from error
    try:
        return _rebuild(structure, tensors)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the structure in {str(path)!r} does not fit its tensors: {error!r}.") from error


def _describe(tree: Tree, path: tuple[str, ...], tensors: dict[str, Tensor]) -> Any:
    """The structure of a tree as JSON; its tensors are added to `tensors` under dotted names."""
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    if isinstance(tree, Tensor):
        name = ".".join(path) or "tensor"
        while name in tensors:  # two paths may spell the same, since a dict's keys may hold dots
            name += "_"
        tensors[name] = tree.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(tree, State):
        return {"state": type(tree).__name__, "fields": _describe_all(fields(tree), path, tensors)}
    if isinstance(tree, dict) and all(isinstance(key, str) for key in tree):
        return {"dict": _describe_all(tree, path, tensors)}
    if isinstance(tree, tuple):
        return {"tuple": [_describe(value, (*path, str(i)), tensors) for i, value in enumerate(tree)]}
    raise ValueError(
        f"{'.'.join(path) or 'the state'} is a {type(tree).__name__}, which no state tree holds. "
        "Use states, tensors, tuples, dicts with names as keys, numbers and None."
    )


def _describe_all(named: Mapping[str, Tree], path: tuple[str, ...], tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {name: _describe(value, (*path, name), tensors) for name, value in named.items()}


def _structure(metadata: Mapping[str, str], path: str | os.PathLike[str]) -> Any:
    """The structure that a file's metadata tells, if it is of a format that is known here."""
    version = metadata.get(VERSION_KEY, "")
    if not version.isdecimal() or STRUCTURE_KEY not in metadata:
        raise ValueError(f"{str(path)!r} is a safetensors file, but not one that save_state wrote.")
    if int(version) > FORMAT_VERSION:
        raise ValueError(
            f"{str(path)!r} has state format {version}, and this memkit reads up to {FORMAT_VERSION}. Upgrade memkit."
        )
    try:
        return json.loads(metadata[STRUCTURE_KEY])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the structure in {str(path)!r} is not JSON: {error}.") from error


def _rebuild(node: Any, tensors: Mapping[str, Tensor]) -> Tree:
    """The tree that `_describe` told of."""
    if not isinstance(node, dict):
        return node
    if "tensor" in node:
        return tensors[node["tensor"]]
    if "tuple" in node:
        return tuple(_rebuild(child, tensors) for child in node["tuple"])
    named = node["fields"] if "state" in node else node["dict"]
    values = {name: _rebuild(child, tensors) for name, child in named.items()}
    return _kind(node["state"])(**values) if "state" in node else values


def _kind(name: str) -> type[State]:
    """The state class of a name, looked for among the components that are installed too."""
    if name not in State.kinds:
        discover()
    if name not in State.kinds:
        raise ValueError(
            f"no installed component has a state {name!r}. Install or import the one that wrote the file. "
            f"{nearest(name, State.kinds)}"
        )
    return State.kinds[name]
