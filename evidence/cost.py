"""What a whole run costs beside the same strategies in the naive way, on a slice of the pool.

This module loads no torch: the peak memory of a child process begins with its parent's.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from benchmarks import machine, pipeline


def measure_cost(pool: Path, rows: int, model: str) -> dict[str, Any]:
    """Seconds and peak bytes of ``tokenclean run`` and of the naive way, each in a process of its own."""
    started = time.monotonic()
    busy = machine.refuse_if_busy(allow=True)
    values = machine.in_fresh_process(pipeline.recipe_of, pool, rows)
    if model != "demo":
        values["model"] = {"base": model}
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
        naive, ours = pipeline.naive(recipe), pipeline.ours(recipe)
    return {
        "rows": rows,
        "naive": asdict(naive),
        "ours": asdict(ours),
        "warnings": [busy] if busy else [],
        "seconds": round(time.monotonic() - started, 1),
        "machine": asdict(machine.in_fresh_process(machine.describe, "cpu")),
    }
