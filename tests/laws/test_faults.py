"""Tests of the laws: each fault is found by its law, and the same component without the fault passes."""

from __future__ import annotations

import pytest

from fault_matrix import PAGE, page
from faults import FAULTS, LAWS, Fault, stored
from memkit.testing.runner import try_example

KNOWN = stored()


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.id for fault in FAULTS])
def test_the_law_meant_for_a_fault_kills_it(fault: Fault) -> None:
    broken, honest = fault.broken(), fault.honest()
    law, example = broken.laws[fault.law], KNOWN[fault.id]["example"]
    verdict = try_example(broken, law, fault.problem(broken, example))
    assert verdict.status == "failed"
    assert verdict.detail.startswith(f"law {fault.law!r}: "), "it must be found wrong, not fall over"
    twin = try_example(honest, law, fault.problem(honest, example))
    assert twin.status == "passed", str(twin)


@pytest.mark.parametrize("kind", LAWS)
def test_every_law_kills_something(kind: str) -> None:
    assert LAWS[kind].keys() - {fault.law for fault in FAULTS if fault.kind == kind} == set()


def test_what_is_known_is_about_these_faults() -> None:
    assert list(KNOWN) == [fault.id for fault in FAULTS]
    assert all(fault.law in KNOWN[fault.id]["killed by"] for fault in FAULTS)


def test_the_page_of_laws_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(KNOWN), "run: python tests/helpers/fault_matrix.py"
