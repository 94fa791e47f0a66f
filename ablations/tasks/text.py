"""Bytes of real text: from the Python installation, or the user's own."""

from __future__ import annotations

import math
import sysconfig
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ablations.tasks.base import Batch, Metric, Task, Yardstick, bits
from memkit.checks import positive
from memkit.registry import register

HELD_OUT_SHARE = 10  # one byte in ten, the last of each source
HELD_OUT_ROWS = 16  # rows of one held-out batch
CODE_BYTES = 1 << 19


@register("task", "text")
class TextTask(Task):
    """Predict the next byte of real English, of source code, or of your own text.

    - `corpus="english"`: Python's language reference for `help()`, 0.37 MB, each repeated paragraph only once,
      since it could stand in both splits. `corpus="code"`: modules of the standard library in alphabetical order,
      0.5 MB. `"both"`: one after the other.
    - `path`: a file, or a folder of files in sorted order, without hidden and binary ones; replaces the corpus.
    - `length`: bytes per row, each predicted from the bytes before it in the row.
    - `held_out_bytes`: the largest number of bytes to measure per source, in rows spread evenly over its held-out
      part.

    The last tenth of each source is held out. The metric is bits per byte; the yardstick is the unigram entropy of
    the predicted bytes: the best value for byte frequencies alone.

    Raises `ValueError` for a path that is missing, empty, or too short for one held-out row.
    """

    vocab_size = 256
    metrics = (Metric("bits per byte", "bits per byte", "lower", bits),)

    def __init__(
        self,
        *,
        path: str | None = None,
        length: int = 256,
        corpus: Literal["english", "code", "both"] = "english",
        held_out_bytes: int = 1 << 16,
    ) -> None:
        positive("length", length)
        positive("held_out_bytes", held_out_bytes)
        self.length = length
        sources = [_own(Path(path))] if path is not None else _shipped(corpus)
        splits = [_split(source, length, held_out_bytes, path or corpus) for source in sources]
        self._bytes = torch.cat([train for train, _ in splits])
        rows = torch.cat([held_out for _, held_out in splits])
        self._held_out = [Batch(part[:, :-1], part[:, 1:]) for part in rows.split(HELD_OUT_ROWS)]
        self.yardstick = Yardstick(
            "byte frequencies alone",
            unigram_entropy(rows[:, 1:]),
            "a model below this unigram entropy has learned more than how often each byte occurs",
        )

    def batch(self, generator: torch.Generator, size: int) -> Batch:
        """Draw `size` windows anywhere in the training bytes: ids and targets `[size, length]`."""
        starts = torch.randint(len(self._bytes) - self.length, (size, 1), generator=generator)
        rows = self._bytes[starts + torch.arange(self.length + 1)].long()
        return Batch(rows[:, :-1], rows[:, 1:])

    def held_out(self) -> list[Batch]:
        """Return the held-out rows in batches of 16."""
        return self._held_out


def unigram_entropy(values: Tensor) -> float:
    """Return the entropy of the byte frequencies, in bits: the best loss without context."""
    counts = torch.bincount(values.flatten(), minlength=256).double()
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * shares.log2()).sum())


def _split(source: bytes, length: int, held_out_bytes: int, name: str) -> tuple[Tensor, Tensor]:
    """Training bytes `[N]` and held-out rows `[R, length + 1]`, each beginning at the last byte of its predecessor."""
    cut = len(source) - len(source) // HELD_OUT_SHARE
    if len(source) - cut < length + 1:
        raise ValueError(
            f"task 'text': {name!r} holds {len(source):,} bytes, and the tenth that is held out must hold one row of "
            f"length + 1 = {length + 1}. Give at least {HELD_OUT_SHARE * (length + 1):,} bytes or a smaller length."
        )
    data = torch.frombuffer(bytearray(source), dtype=torch.uint8)
    rows = data[cut:].unfold(0, length + 1, length).long()
    kept = min(len(rows), math.ceil(held_out_bytes / length))
    return data[:cut], rows[torch.arange(kept) * len(rows) // kept]


def _own(path: Path) -> bytes:
    if not path.exists():
        raise ValueError(f"task 'text': there is no file or folder {str(path)!r}. Check the path.")
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and _visible(p, path))
    contents = [p.read_bytes() for p in found]
    if path.is_dir():
        contents = [content for content in contents if b"\0" not in content]
    joined = b"\n".join(content for content in contents if content)
    if not joined:
        raise ValueError(f"task 'text': {str(path)!r} holds no text. Give a file or a folder with some.")
    return joined


def _visible(file: Path, folder: Path) -> bool:
    return not any(part.startswith(".") for part in file.relative_to(folder).parts)


def _shipped(corpus: str) -> list[bytes]:
    sources = {"english": [_english], "code": [_code], "both": [_english, _code]}
    return [read() for read in sources[corpus]]


def _english() -> bytes:
    from pydoc_data.topics import topics  # here: half a megabyte, and rarely needed

    first: dict[str, str] = {}
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            first.setdefault(" ".join(paragraph.split()), paragraph)
    return "\n\n".join(first.values()).encode()


def _code() -> bytes:
    folder = Path(sysconfig.get_path("stdlib"))
    taken, size = [], 0
    for file in sorted(folder.glob("[a-z]*.py")):
        if size >= CODE_BYTES:
            break
        taken.append(file.read_bytes())
        size += len(taken[-1])
    if not taken:
        raise ValueError(f"task 'text': this Python has no library sources in {str(folder)!r}. Use corpus='english'.")
    return b"\n".join(taken)[:CODE_BYTES]
