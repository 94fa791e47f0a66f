"""Verdicts kept in a folder while a long check runs, so that it can go on where it was interrupted.

check.json       what is checked, and how hard
verdicts.jsonl   a line for each unit of work that is done
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablations.files import check_ours, read_json, write_json
from memkit.testing.report import Verdict
from memkit.testing.selection import Unit

SETTINGS, VERDICTS = "check.json", "verdicts.jsonl"


class Store:
    """Verdicts by unit, in a folder or, without one, nowhere.

    Raises `ValueError` when the folder holds something else, or another check.
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self._held: dict[str, Verdict] = {}
        if folder is None:
            return
        check_ours(folder, SETTINGS)
        settings = json.loads(json.dumps(settings))
        if (folder / SETTINGS).exists() and read_json(folder / SETTINGS) != settings:
            raise ValueError(f"{folder} holds another check; see its {SETTINGS}. Choose another --out, or delete it.")
        write_json(folder / SETTINGS, settings)
        if (folder / VERDICTS).exists():
            for text in (folder / VERDICTS).read_text(encoding="utf-8").splitlines():
                read = json.loads(text)
                unit = read.pop("unit")
                self._held[unit] = Verdict(**read)

    def get(self, unit: Unit) -> Verdict | None:
        """What was found before, if it was tried."""
        return self._held.get(unit.key)

    def keep(self, unit: Unit, verdict: Verdict) -> None:
        """Write a verdict down."""
        if self.folder is not None:
            text = json.dumps({"unit": unit.key, **dataclasses.asdict(verdict)})
            with (self.folder / VERDICTS).open("a", encoding="utf-8") as file:
                file.write(text + "\n")
