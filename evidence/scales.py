"""How much is measured at each scale: rows of the pool, seeds, proportions, questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

SOURCES = {
    "alpaca": "sft/alpaca.jsonl",
    "flan_cot": "sft/flan_cot.jsonl",
    "gpteacher_toolformer": "sft/gpteacher_toolformer.jsonl",
    "dolly": "sft/dolly.jsonl",
    "gpteacher_roleplay": "sft/gpteacher_roleplay.jsonl",
}
"""The pool's five sources -> their file below the data folder."""

RATED, RATINGS = "alpaca", "ratings/alpaca_ds2_ratings.csv"
"""The source that DS² curates, and its ratings; ``RATERS``: their columns, the one that selects first."""
RATERS = ("gpt_4o_mini", "llama_3_1_8b_instruct", "mistral_7b_v0_3_instruct")
CHECKED = "dolly"
"""The source of the trusted rows: its answers were written by people."""

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Scale:
    """``rows``, ``heldout``: conversations of each source. ``candidates``: rows of the rated source of which DS² takes
    the best. ``trusted``: rows for the other warm-up, in neither. ``pairs``: of a clean and a noisy answer.
    ``checked``: held-out rows of each source by which references are checked.
    ``best_rated``: rows that warm up the reference. ``seeds``: of the main cells of each model, the first one for
    everything else. ``proportions``: of fixed-model and self-evolving cleaning, beside ``MAIN_PROPORTION``.
    ``cost_rows``: of the slice on which the naive way is timed. ``divided_by``: what all numbers were divided by, for a
    smoke test."""

    name: str
    rows: Mapping[str, int]
    heldout: Mapping[str, int]
    candidates: int
    trusted: int
    pairs: int
    checked: int
    best_rated: int
    seeds: Mapping[str, tuple[int, ...]]
    proportions: Mapping[str, tuple[float, ...]]
    cost_rows: int = 90
    divided_by: int = 1

    @property
    def recipe(self) -> Path:
        """The scale's hyper-parameters."""
        return RECIPES / f"{self.name}.yaml"

    def divided(self, divisor: int) -> Scale:
        """The same scale on fewer rows, at least a few of everything."""
        if divisor == 1:
            return self

        def less(count: int, least: int) -> int:
            return max(least, count // divisor)

        return replace(
            self,
            rows={source: less(count, 8) for source, count in self.rows.items()},
            heldout={source: less(count, 10) for source, count in self.heldout.items()},
            candidates=less(self.candidates, 40),
            trusted=less(self.trusted, 6),
            pairs=less(self.pairs, 8),
            checked=less(self.checked, 4),
            best_rated=less(self.best_rated, 5),
            cost_rows=less(self.cost_rows, 12),
            divided_by=divisor,
        )


MAIN_PROPORTION = 0.6
"""The paper's k of its main table."""

CPU = Scale(
    "cpu",
    rows={"alpaca": 243, "flan_cot": 240, "gpteacher_toolformer": 79, "dolly": 20, "gpteacher_roleplay": 18},
    heldout=dict.fromkeys(SOURCES, 100),
    candidates=2_400,
    trusted=100,
    pairs=50,
    checked=20,
    best_rated=120,
    seeds={"smollm2": (42, 43), "gemma": (42,)},
    proportions={"smollm2": (0.3, 0.5, 0.7, 0.85, 1.0), "gemma": ()},
)

GPU = Scale(
    "gpu",
    rows={
        "alpaca": 20_200,
        "flan_cot": 20_000,
        "gpteacher_toolformer": 6_600,
        "dolly": 1_700,
        "gpteacher_roleplay": 1_500,
    },
    heldout={**dict.fromkeys(SOURCES, 1_000), "gpteacher_roleplay": 400},
    candidates=50_000,
    trusted=200,
    pairs=1_000,
    checked=400,
    best_rated=10_000,
    seeds={"smollm2": (42, 43, 44), "gemma": (42, 43, 44)},
    proportions=dict.fromkeys(("smollm2", "gemma"), (0.3, 0.4, 0.5, 0.7, 0.8, 0.9, 1.0)),
)

SCALES = {scale.name: scale for scale in (CPU, GPU)}
