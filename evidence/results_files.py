"""Finished cells, read from their files, and what is computed from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from evidence.arrays import unpack
from evidence.cells import CURATED, TASKS, TRUSTED, Cell, all_cells
from evidence.scales import SCALES, Scale
from tokenclean.evaluation.comparison import Comparison, compare
from tokenclean.evaluation.intervals import Interval
from tokenclean.evaluation.paired_scores import ItemScores
from tokenclean.evaluation.preference import preference_change
from tokenclean.ragged import Ragged, offsets_of
from tokenclean.scoring import PairedDifference, paired_difference

Document = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """The files of one scale below ``folder``; ``cells``: all there are to be, in their order."""

    folder: Path
    scale: Scale
    cells: tuple[Cell, ...]

    @cached_property
    def pool(self) -> Document | None:
        """Counts of the pool; None before the first cell."""
        return _read(self.folder / self.scale.name / "pool.json")

    @cached_property
    def documents(self) -> Mapping[str, Document]:
        """The finished cells by name."""
        found = {cell.name: _read(self.folder / self.scale.name / f"{cell.name}.json") for cell in self.cells}
        return {name: document for name, document in found.items() if document is not None}

    def of_table(self, table: str) -> list[Cell]:
        """All cells that are shown in a table."""
        return [cell for cell in self.cells if cell.table == table]

    def is_done(self, cell: Cell | None) -> bool:
        return cell is not None and cell.name in self.documents

    def find(
        self, model: str, strategy: str, seed: int, k: float | None = None, reference: str = CURATED
    ) -> Cell | None:
        """The measured cell of held-out losses; None where it is not finished. ``k``: None for the paper's."""
        wanted = Cell(model, strategy, seed, reference=reference)
        cell = wanted if k is None else Cell(model, strategy, seed, proportion=k, reference=reference)
        return cell if cell.name in self.documents else None

    def full_tokens(self, cell: Cell) -> Cell | None:
        """What the cell is compared with: full tokens on the same rows under the same seed."""
        reference = TRUSTED if cell.reference == TRUSTED else CURATED
        return self.find(cell.model, "full_tokens", cell.seed, reference=reference)

    def difference(self, cell: Cell, control: Cell, source: str | None = None) -> PairedDifference:
        """Held-out loss of one cell's model minus another's, on the rows that both report on; of one source's rows."""
        one, other = (_heldout(self.documents[c.name]) for c in (cell, control))
        rows = np.intersect1d(one.rows, other.rows)
        if source is not None:
            rows = np.intersect1d(rows, self.rows_of(source))
        return paired_difference(one.take(rows), other.take(rows))

    def rows_of(self, source: str) -> np.ndarray:
        """Numbers of the held-out rows of a source, which follow each other in the pool's file."""
        counts: Mapping[str, int] = (self.pool or {})["heldout"]
        names = list(counts)
        start = sum(counts[name] for name in names[: names.index(source)])
        return np.arange(start, start + counts[source])

    def preference_change(self, cell: Cell, control: Cell) -> Interval | None:
        """How much more its model prefers clean answers than the control's, nats a differing token."""
        one, other = (self.documents[c.name].get("margins") for c in (cell, control))
        if one is None or other is None:
            return None
        return preference_change(unpack(one), unpack(other))

    def benchmarks(self, model: str) -> Comparison | None:
        """All strategies whose benchmarks are finished against full tokens; None before full tokens are."""
        groups: dict[str, np.ndarray] = {}
        scores: dict[str, dict[int, dict[str, np.ndarray]]] = {}
        of_model = [cell for cell in self.of_table("benchmarks") if cell.model == model]
        for strategy in dict.fromkeys(cell.strategy for cell in of_model):
            cells = [cell for cell in of_model if cell.strategy == strategy]
            if len(cells) < len(TASKS) or not all(map(self.is_done, cells)):
                continue
            of_strategy: dict[str, np.ndarray] = {}
            for cell in cells:
                for task, figures in self.documents[cell.name]["benchmarks"].items():
                    of_strategy[task] = unpack(figures["scores"])
                    if figures["parts"] is not None:
                        groups[task] = unpack(figures["parts"])
            scores[strategy] = {cells[0].seed: of_strategy}
        if "full_tokens" not in scores:
            return None
        return compare(ItemScores(scores, groups), "full_tokens", draws=2000)


@dataclass(frozen=True)
class _Heldout:
    """``rows``: ascending numbers of held-out rows; ``losses``: summed nats of each; ``tokens``: of each."""

    rows: np.ndarray
    losses: np.ndarray
    tokens: np.ndarray

    def take(self, rows: np.ndarray) -> Ragged:
        """Each token with its row's mean loss, whose paired differences are those of the tokens themselves."""
        places = np.searchsorted(self.rows, rows)
        tokens, losses = self.tokens[places], self.losses[places].astype(np.float64)
        means = np.divide(losses, tokens, out=np.zeros(len(tokens)), where=tokens > 0)
        return Ragged(np.repeat(means, tokens), offsets_of(tokens))


def _heldout(document: Document) -> _Heldout:
    found = {name: unpack(document["heldout"][name]) for name in ("rows", "losses", "tokens")}
    order = np.argsort(found["rows"], kind="stable")
    return _Heldout(**{name: values[order] for name, values in found.items()})


def read_results(folder: Path) -> dict[str, Results]:
    """The results of every scale."""
    return {name: Results(folder, scale, tuple(all_cells(scale))) for name, scale in SCALES.items()}


def read_quoted(folder: Path) -> Document:
    """Figures that were transcribed, each with where it comes from, and under ``search`` the finished cells of
    ``benchmarks.search``."""
    quoted = json.loads((folder / "quoted.json").read_text(encoding="utf-8"))
    return quoted | {"search": [_read(file) for file in sorted((folder / "search").glob("*.json"))]}


def _read(file: Path) -> Document | None:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def command_of(scale: Scale, pattern: str | None = None) -> str:
    """The command line that measures cells."""
    cells = "" if pattern is None else f" --cells '{pattern}'"
    return f"python -m evidence.run --data DIR --scale {scale.name}{cells}"


def machines_of(documents: Sequence[Document]) -> str:
    """The machines and days of some cells, in words."""
    places: dict[str, list[str]] = {}
    for document in documents:
        machine = document["machine"]
        gpu = f", {machine['gpu']}" if machine["gpu"] else ""
        text = f"{machine['processor']}, {machine['cores']} cores{gpu}; torch {machine['torch']}"
        places.setdefault(text, []).append(machine["date"][:10])
    return "; ".join(
        f"{text}; {min(days)}{f' to {max(days)}' if max(days) > min(days) else ''}" for text, days in places.items()
    )
