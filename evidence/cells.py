"""The cells: one strategy of one model under one seed each, its held-out losses or its answers to benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from evidence.scales import MAIN_PROPORTION, Scale

MAIN = (
    *("none", "full_tokens", "ds2", "random", "rho", "fixed_model", "self_evolving", "noise_mixture", "auto"),
)  # the warm-up is that of ds2
RANKING = ("random", "rho", "fixed_model", "self_evolving")
SWEPT = ("fixed_model", "self_evolving")
SCORED = ("rho", "fixed_model")
"""Those that score by one reference throughout, as in the paper's Table 3."""
TASKS = {
    "knowledge": ("mmlu", "truthfulqa"),
    "reasoning": ("arc_challenge", "arc_easy", "hellaswag", "logiqa"),
    "passages": ("boolq", "xquad"),
}
"""Benchmarks of one cell: the paper's seven with XQuAD in place of TyDi QA, and ARC-Easy."""
CURATED, TRUSTED, LARGER = "curated", "trusted", "larger"
"""References: warmed up on the best-rated rows or on trusted rows, or a larger model of the same tokenizer."""


@dataclass(frozen=True)
class Cell:
    """``strategy``: of ``tokenclean``; ``cost`` for the naive way beside ours. ``tasks``: the group of benchmarks that
    is answered, empty for held-out losses. ``table``: where the cell is shown. ``step``: ``passes`` for the losses of
    the pool alone, ``trials`` for those of ``auto``, ``train`` for all but the final measures, each of which later
    cells find; empty for everything."""

    model: str
    strategy: str
    seed: int
    table: str = "main"
    proportion: float = MAIN_PROPORTION
    reference: str = CURATED
    tasks: str = ""
    step: str = ""

    @property
    def name(self) -> str:
        """For files and ``--cells``."""
        parts = [self.model, self.strategy]
        parts += [f"k{self.proportion:g}"] if self.strategy in RANKING else []
        parts += [self.reference] if self.reference != CURATED else []
        return "-".join([*parts, f"s{self.seed}", *(part for part in (self.tasks, self.step) if part)])

    @property
    def document(self) -> dict[str, Any]:
        """As the cell's file states it."""
        return {**asdict(self), "name": self.name}


def all_cells(scale: Scale) -> list[Cell]:
    """Every cell: the main tables on one seed and their benchmarks first, then further seeds, then sweeps.

    On a CPU what takes long has steps of its own. A part on a GPU starts with an empty run folder, so there are none.
    """
    cells = [cell for model in scale.seeds for cell in _main(model, scale)]
    if scale.name == "cpu":  # the naive way runs there alone
        cells += [Cell("smollm2", "cost", 42, "cost")]
    for model, seeds in scale.seeds.items():
        cells += [Cell(model, strategy, seed) for seed in seeds[1:] for strategy in MAIN if strategy != "none"]
    for model, seeds in scale.seeds.items():
        if not scale.proportions[model]:  # its main cells alone
            continue
        first = Cell(model, "full_tokens", seeds[0], "references", reference=TRUSTED)
        cells += [first, *(replace(first, strategy=s, reference=r) for r in (TRUSTED, LARGER) for s in SCORED)]
    for model, proportions in scale.proportions.items():
        seed = scale.seeds[model][0]
        cells += [Cell(model, strategy, seed, "proportions", k) for k in proportions for strategy in SWEPT]
    return cells if scale.name == "gpu" else [step for cell in cells for step in _steps(cell)]


def _main(model: str, scale: Scale) -> Iterator[Cell]:
    has_benchmarks = scale.name == "gpu" or model == "smollm2"
    for strategy in MAIN:
        cell = Cell(model, strategy, scale.seeds[model][0])
        yield cell
        if has_benchmarks:
            yield from (replace(cell, table="benchmarks", tasks=group) for group in TASKS)


def _steps(cell: Cell) -> Iterator[Cell]:
    """The cell, after the steps that it finds."""
    if not cell.tasks:
        if cell.strategy in ("rho", "auto"):
            yield replace(cell, step="trials" if cell.strategy == "auto" else "passes", table="steps")
        takes_long = cell.strategy in ("rho", "self_evolving", "auto") or cell.model == "gemma"
        if cell.strategy != "none" and (takes_long or cell.reference == TRUSTED):
            yield replace(cell, step="train", table="steps")
    yield cell
