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
from memkit.testing.examples import line
from memkit.testing.subjects import Subject
from memkit.testing.trying import try_law

PAGE = Path(__file__).parents[2] / "docs" / "laws.md"
BRIEFLY, SEARCHED = Profile(5, shrink=False), Profile(40)

INTRODUCTION = """# The laws, and what they catch

Every rule, mixer and language model of memkit is held to these laws, and so is yours: `memkit check my_rule.py`.
All are equalities in float64 up to rounding (1e-10, gradients 1e-8, of 1 + the largest reference), unless they
say otherwise. This page is written by `python tests/helpers/fault_matrix.py`.
"""
TITLES = {
    "rule": "Rules",
    "mixer": "Mixers and language models",
    "model": "Language models, besides",
    "reference": "Mixers held to a literal reference",
}
PREFACES = {
    "reference": """The laws of mixers cannot tell one mixer from another: memory as a context keeps all of them even
when its memory reads x in place of attention's output. So memkit's own mixers are held to their papers too: plain
loops over tokens, written from the equations without the engine, give with the same parameters the same outputs,
memories and gradients of x and of every parameter, with masks, packed documents, cuts and calls that only read
(`tests/helpers/literal_laws.py` and its neighbors).
""",
}
COLUMNS = {
    "rule": ("rule with this fault", "the law meant for it"),
    "mixer": ("mixer with this fault", "the law meant for it"),
    "model": ("model with this fault", "the law meant for it"),
    "reference": ("mixer that departs from its paper", "its reference"),
}


def look(fault: Fault) -> dict[str, Any]:
    """The smallest example with which the law meant for a fault kills it, and all laws that do."""
    subject = fault.broken()
    found = try_law(subject, subject.laws[fault.law], SEARCHED)
    if found.status != "failed" or found.example is None:
        raise SystemExit(f"{fault.id} is not killed by {fault.law!r}.")
    kills = [
        name
        for name, law in TRIED[fault.kind].items()
        if name == fault.law or (name in subject.laws and law.applies(subject.specimen) and _objects(subject, law))
    ]
    return {"example": line(found.example), "killed by": kills}


def _objects(subject: Subject, law: Law) -> bool:
    """Whether a law finds a component wrong; one that only falls over is not found out."""
    return try_law(subject, law, BRIEFLY).detail.startswith(f"law {law.name!r}: ")


def page(known: dict[str, dict[str, Any]]) -> str:
    """The laws with their equations, and the faults with their killers."""
    parts = [INTRODUCTION]
    for kind, laws in LAWS.items():
        mine = [fault for fault in FAULTS if fault.kind == kind]
        parts += [f"## {TITLES[kind]}\n", *([PREFACES[kind]] if kind in PREFACES else [])]
        for name, law in laws.items():
            meant = sum(fault.law == name for fault in mine)
            killed = sum(name in known[fault.id]["killed by"] for fault in mine)
            parts.append(f"**{name}.** {' '.join(law.equation.split())} *Meant for {meant}, kills {killed}.*\n")
    parts.append(
        f"## The faults\n\nThe laws are tested themselves: {len(FAULTS)} deliberate faults, each of which the law "
        "meant for it must kill, while it passes the same component without the fault (`tests/laws/test_faults.py`).\n"
    )
    for kind in LAWS:
        parts += [f"| {' | '.join(COLUMNS[kind])} | killed as well by |", "|---|---|---|"]
        for fault in (fault for fault in FAULTS if fault.kind == kind):
            others = [name for name in known[fault.id]["killed by"] if name != fault.law]
            parts.append(f"| {fault.name} | {fault.law} | {', '.join(others)} |")
        parts.append("")
    return "\n".join(parts)


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
