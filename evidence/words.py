"""Numbers and intervals as text."""

from __future__ import annotations

from typing import Protocol

MINUS = "\u2212"
TITLES = {
    "none": "base",
    "ds2": "DS² (the warm-up)",
    "full_tokens": "full tokens",
    "random": "uniform random",
    "rho": "RHO",
    "fixed_model": "fixed-model",
    "self_evolving": "self-evolving",
    "noise_mixture": "noise_mixture",
    "auto": "auto",
}
MODELS = {"smollm2": "SmolLM2-135M-Instruct", "gemma": "Gemma 3 270M"}
BETTER, WORSE, UNCLEAR = "better", "worse", "no clear difference"


class HasLimits(Protocol):
    """Something with the two ends of a 95 % interval."""

    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def signed(value: float, digits: int = 4) -> str:
    """``+0.0123`` or ``−0.0123``."""
    return f"{value:+.{digits}f}".replace("-", MINUS)


def interval(value: float, low: float, high: float, digits: int = 4) -> str:
    """``+0.0262 (+0.0127 to +0.0396)``."""
    return f"{signed(value, digits)} ({signed(low, digits)} to {signed(high, digits)})"


def half_width(value: float, low: float, high: float) -> str:
    """``0.0287 ± 0.0134``."""
    return f"{value:.4f} ± {(high - low) / 2:.4f}".replace("-", MINUS)


def judge(low: float, high: float, *, lower_is_better: bool) -> str:
    """``better`` or ``worse`` where the whole interval is on one side of 0, else ``no clear difference``."""
    if low > 0:
        return WORSE if lower_is_better else BETTER
    if high < 0:
        return BETTER if lower_is_better else WORSE
    return UNCLEAR


def table(header: list[str], rows: list[list[str]], texts: int = 1, further_texts: tuple[int, ...] = ()) -> str:
    """A Markdown table whose first ``texts`` columns, and those numbered in ``further_texts``, stand left."""
    marks = ["---" if number < texts or number in further_texts else "---:" for number in range(len(header))]
    lines = ["| " + " | ".join(line) + " |" for line in (header, *rows)]
    return "\n".join([lines[0], f"|{'|'.join(marks)}|", *lines[1:]])
