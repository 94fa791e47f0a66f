"""Look for the smallest example of every fault and for all laws that kill it, and write docs/laws.md.

python tests/helpers/fault_matrix.py            everything again: some minutes
python tests/helpers/fault_matrix.py --page     the page alone, from tests/data/faults.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from faults import FAULTS, LAWS, STORED, TRIED, Fault, stored
from memkit.testing import Law, Profile
from memkit.testing.component import Component
from memkit.testing.replay import line
from memkit.testing.runner import try_law

PAGE = Path(__file__).parents[2] / "docs" / "laws.md"
BRIEFLY, SEARCHED = Profile(5, shrink=False), Profile(40)

INTRODUCTION = """# The laws, and the faults they catch

memkit holds every rule, mixer and language model to these laws, and yours with `memkit check my_rule.py`. An equation
holds in float64 up to rounding, 1e-10 for values and 1e-8 for gradients, times 1 + the largest reference, unless a law
says otherwise. Faults: the number of deliberate faults that the law finds; the last section lists them. (This page is
written by `python tests/helpers/fault_matrix.py`.)
"""
TITLES = {
    "rule": "Rules",
    "mixer": "Mixers and language models",
    "model": "Language models only",
    "reference": "Mixers and their literal references",
}
PREFACES = {
    "reference": """The laws of mixers do not tell one mixer from another: memory as context keeps them all even if its
memory reads x instead of attention's output. So memkit's own mixers are compared with their papers too. Plain loops
over tokens, written from the equations without the engine, give with the same parameters the same outputs, memories,
and gradients of x and of every parameter, with masks, packed documents, cuts and calls that only read
(`tests/helpers/literal_laws.py` and its neighbors).
""",
}
COLUMNS = {
    "rule": ("rule with this fault", "law meant for it"),
    "mixer": ("mixer with this fault", "law meant for it"),
    "model": ("model with this fault", "law meant for it"),
    "reference": ("mixer that departs from its paper", "its reference"),
}
GROUPS = {
    "parts": "The parts of a rule",
    "gates": "Gates and declared linearity",
    "gradients": "Gradients",
    "forms": "Forms, cuts and causality",
    "state": "The state",
    "rows": "Rows, heads, masks and documents",
    "precision": "Single precision",
    "sequences": "Cuts, rows, state and learning",
    "sequence_masks": "Masks and documents",
    "literal_laws": "Literal references",
}
"""The module of a law -> the title of its group."""


def look(fault: Fault) -> dict[str, Any]:
    """The smallest example with which the law meant for a fault kills it, and all laws that do."""
    component = fault.broken()
    found = try_law(component, component.laws[fault.law], SEARCHED)
    if found.status != "failed" or found.example is None:
        raise SystemExit(f"{fault.id} is not killed by {fault.law!r}.")
    kills = [
        name
        for name, law in TRIED[fault.kind].items()
        if name == fault.law
        or (name in component.laws and law.applies(component.specimen) and _objects(component, law))
    ]
    return {"example": line(found.example), "killed by": kills}


def _objects(component: Component, law: Law) -> bool:
    """Whether a law finds a component wrong; one that only falls over is not found out."""
    return try_law(component, law, BRIEFLY).detail.startswith(f"law {law.name!r}: ")


def page(known: dict[str, dict[str, Any]]) -> str:
    """The laws with their equations by group, and the faults with their killers."""
    parts = [INTRODUCTION]
    for kind, laws in LAWS.items():
        mine = [known[fault.id]["killed by"] for fault in FAULTS if fault.kind == kind]
        groups = dict.fromkeys(_group(law) for law in laws.values())
        parts += [f"## {TITLES[kind]}\n", *([PREFACES[kind]] if kind in PREFACES else [])]
        for group in groups:
            parts += [f"### {group}\n"] if len(groups) > 1 else []
            parts += ["| law | equation | faults |", "|---|---|---|"]
            parts += [
                f"| **{name}** | {_cell(law)} | {sum(name in killers for killers in mine)} |"
                for name, law in laws.items()
                if _group(law) == group
            ]
            parts.append("")
    parts.append(
        "## The faults\n\n"
        f"The laws are tested themselves, by {len(FAULTS)} deliberate faults. The law meant for a fault must kill it, "
        "and pass the same component without the fault (`tests/laws/test_faults.py`).\n"
    )
    for kind in LAWS:
        parts += [f"| {' | '.join(COLUMNS[kind])} | other laws that kill it |", "|---|---|---|"]
        for fault in (fault for fault in FAULTS if fault.kind == kind):
            others = [name for name in known[fault.id]["killed by"] if name != fault.law]
            parts.append(f"| {fault.name} | {fault.law} | {', '.join(others)} |")
        parts.append("")
    return "\n".join(parts)


def _group(law: Law) -> str:
    """The title of a law's group."""
    return GROUPS[law.check.__module__.rpartition(".")[2]]


def _cell(law: Law) -> str:
    """The equation, then the details in italics, on one line of a table."""
    equation, *details = (" ".join(part.split()) for part in law.equation.replace("|", "\\|").split("\n\n"))
    return " ".join([equation, *(f"*{detail}*" for detail in details)])


def main() -> None:
    torch.set_num_threads(1)
    known = stored() if STORED.exists() and "--again" not in sys.argv else {}
    for fault in FAULTS:
        if fault.id not in known:
            known[fault.id] = look(fault)
            print(f"{fault.id}: {known[fault.id]}", flush=True)
            write({fault.id: known[fault.id] for fault in FAULTS if fault.id in known})
    PAGE.write_text(page(known), encoding="utf-8")


def write(known: dict[str, dict[str, Any]]) -> None:
    """Keep what is known, in the order of the faults."""
    STORED.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
