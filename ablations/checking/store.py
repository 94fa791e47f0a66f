"""Verdicts kept in a folder during a long check, so that an interrupted check resumes.

check.json       the request: components, options, profile, digests of files
verdicts.jsonl   one line per finished unit of work
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablations.files import check_ours, read_json, write_json, write_text
from memkit.testing.report import Verdict
from memkit.testing.selection import Unit

SETTINGS, VERDICTS = "check.json", "verdicts.jsonl"


class Store:
    """Verdicts by unit, in a folder or, without one, nowhere.

    Raises `ValueError` if the folder holds something else, or another check.
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
            self._read(folder / VERDICTS)

    def get(self, unit: Unit) -> Verdict | None:
        """Return the kept verdict of a unit, or None."""
        return self._held.get(unit.key)

    def keep(self, unit: Unit, verdict: Verdict) -> None:
        """Add a verdict to the folder."""
        if self.folder is not None:
            text = json.dumps({"unit": unit.key, **dataclasses.asdict(verdict)})
            with (self.folder / VERDICTS).open("a", encoding="utf-8") as file:
                file.write(text + "\n")

    def _read(self, path: Path) -> None:
        """Read the verdicts; drop a last line that a killed process left without its end."""
        whole, _, torn = path.read_text(encoding="utf-8").rpartition("\n")
        if torn:
            write_text(path, whole and whole + "\n")
        for line in whole.splitlines():
            values = json.loads(line)
            unit = values.pop("unit")
            self._held[unit] = Verdict(**values)
