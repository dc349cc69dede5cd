"""How long a run would take on other GPUs, from their data sheets and from measurements on one of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tokenclean.errors import RecipeError


@dataclass(frozen=True)
class Gpu:
    """A GPU by its data sheet. ``tflops``: dense bf16 products with float32 sums; ``memory_gb``: 10⁹ bytes."""

    name: str
    tflops: float
    memory_gb: float


GPUS = {
    gpu.name.lower(): gpu
    for gpu in (
        Gpu("L4", 121, 24),
        Gpu("A10", 125, 24),
        Gpu("RTX4090", 165, 24),
        Gpu("A100", 312, 80),
        Gpu("L40S", 362, 48),
        Gpu("H100", 989, 80),
        Gpu("H200", 989, 141),
    )
}

SCORING_SHARE = {"fast": 0.41, "safe": 0.20, "exact": 0.045}
"""Useful share of the data sheet's rate in a pass without gradient, measured on an H200: a Llama of 8B under ``fast``,
of 1B under the others (``docs/benchmarks.md``). Other GPUs are assumed to reach the same share."""

TRAINING_SHARE = {"mixed": 0.27, "fast": 0.27, "safe": 0.13, "exact": 0.045}
"""The same for a LoRA training, measured under ``mixed`` at 8B; ``fast`` is assumed to be as fast, the others in
proportion to scoring."""


@dataclass(frozen=True)
class Hardware:
    """``count`` GPUs of a kind, which share passes and trainings evenly; their communication is not counted."""

    count: int
    gpu: Gpu

    @classmethod
    def parse(cls, text: str) -> Hardware:
        """From ``8xL40S`` or ``H100``. Raises RecipeError listing the known GPUs."""
        found = re.fullmatch(r"(?:(\d+)\s*[x×*]\s*)?([A-Za-z0-9]+)", text.strip())
        if found is None or found[2].lower() not in GPUS or found[1] == "0":
            known = ", ".join(gpu.name for gpu in GPUS.values())
            raise RecipeError(f"{text!r}: expected a number and a GPU, such as 8xL40S; known: {known}", "--on")
        return cls(int(found[1] or 1), GPUS[found[2].lower()])

    def __str__(self) -> str:
        return f"{self.count} × {self.gpu.name}"

    def seconds(self, scoring_flop: float, training_flop: float, scoring: str, training: str) -> float:
        """Time of a run with so many useful FLOP in passes and in trainings, under these precision policies."""
        spent = scoring_flop / SCORING_SHARE[scoring] + training_flop / TRAINING_SHARE[training]
        return spent / (self.count * self.gpu.tflops * 1e12)


def parse_all(text: str) -> Sequence[Hardware]:
    """From ``8xL40S,1xH100``."""
    return [Hardware.parse(part) for part in text.split(",")]
