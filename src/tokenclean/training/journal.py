"""The journal of a training: one JSON line for each optimizer step, written right after it."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

JOURNAL = "journal.jsonl"


class Journal:
    """Appends to a file; ``steps``: optimizer steps of the whole training, for the time left.

    A training that resumes after ``done`` steps keeps the lines up to there and drops those after.
    """

    def __init__(self, path: Path, steps: int, done: int = 0) -> None:
        self._path, self._steps = path, steps
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_journal(path) if line["step"] <= done]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._last, self._seconds, self._counted = time.monotonic(), 0.0, 0

    def write(self, step: int, figures: Mapping[str, float], tokens: int, device: torch.device) -> dict[str, float]:
        """The line of a step: ``figures``, then tokens a second, peak memory in bytes and the seconds left."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        self._seconds, self._counted = self._seconds + seconds, self._counted + 1
        line = {
            "step": step,
            **figures,
            "tokens": tokens,
            "seconds": round(seconds, 3),
            "tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
            "peak_memory_bytes": _peak_memory(device),
            "seconds_left": round(self._seconds / self._counted * (self._steps - step), 1),
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return line


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal; a line that a killed process left unfinished is skipped."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
