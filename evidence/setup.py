"""What a cell runs on: its recipe, its rows in tokens, its run folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from evidence.cells import LARGER, TRUSTED, Cell
from evidence.pool import EMBEDDING, PoolFiles, StoredRatings, curation_values, find_pool, stored_ratings
from evidence.scales import SCALES, Scale
from tokenclean.cleaning.open_run import OpenRun, open_run_on
from tokenclean.cleaning.run_data import RunData, tokenize_run_data
from tokenclean.lab.pairs import read_pairs
from tokenclean.observer import Observer
from tokenclean.recipe import Recipe, recipe_from
from tokenclean.store import Store


@dataclass(frozen=True)
class Setup:
    """What the command line says. ``models``, ``larger``: by the name that cells use, a folder, Hub id or ``demo``;
    ``data``: the folder with ``sft/`` and the others; ``output``: of the pool and run folders; ``divide``: how many
    times fewer rows; ``embedding``: the model of DS²; ``overrides``: KEY=VALUE for every recipe."""

    scale_name: str
    output: Path
    data: Path | None
    models: dict[str, str]
    larger: dict[str, str]
    divide: int = 1
    embedding: str = EMBEDDING
    overrides: tuple[str, ...] = ()

    @cached_property
    def scale(self) -> Scale:
        return SCALES[self.scale_name].divided(self.divide)

    @cached_property
    def pool(self) -> PoolFiles:
        """Found, or made from the data folder."""
        return find_pool(self.scale, self.data, self.output, self.embedding)

    def missing(self, cell: Cell) -> str | None:
        """Why a cell cannot be measured with these models; None where it can."""
        if cell.model not in self.models:
            return f"no model: give its folder with --{cell.model}"
        if cell.reference == LARGER and cell.model not in self.larger:
            return f"no larger model of the same tokenizer: give its folder with --{cell.model}-larger"
        return None

    def expected(self, cell: Cell) -> dict[str, Any]:
        """What identifies a cell's figures, beside its rows and code."""
        names = {"model": _short(self.models[cell.model])}
        if cell.reference == LARGER:
            names["reference"] = _short(self.larger[cell.model])
        return {
            **names,
            "scale": self.scale.name,
            "divided_by": self.scale.divided_by,
            "pool": self.pool.identity,
            "overrides": list(self.overrides),
            "cell": cell.document,
        }

    def recipe(self, cell: Cell) -> Recipe:
        """The scale's recipe with what the cell says. All cells of a model share one run folder."""
        values = yaml.safe_load(self.scale.recipe.read_text(encoding="utf-8"))
        pool = self.pool.folder
        cleaning = {"strategy": cell.strategy, "proportion": cell.proportion}
        values["cleaning"] |= cleaning | {"ds2_rows": self.scale.best_rated}
        values["pool"] = {"sources": [{"path": str(pool / "training.jsonl")}]}
        values["model"] = {"base": self.models[cell.model]}
        if cell.reference == TRUSTED:
            values["cleaning"] |= {"trusted": str(pool / "trusted.jsonl"), "warmup": "split"}
        else:
            values["pool"]["curation"] = curation_values(self.data, self.embedding)
        if cell.reference == LARGER:
            values["model"]["reference"] = self.larger[cell.model]
        values["evaluation"] |= {"data_dir": str((self.data or Path()) / "eval")}
        own = (f"name={cell.model}-{self.scale.name}", f"output={json.dumps(str(self.output))}", f"seed={cell.seed}")
        return recipe_from(values, (*own, "pool.seed=0", *self.overrides), cell.name)

    def data_of(self, cell: Cell, note: Any = lambda text: None) -> RunData:
        """The cell's rows in tokens. ``note``: says what is left out."""
        recipe, files = self.recipe(cell), self.pool
        training, heldout = files.pool("training"), files.pool("heldout")
        trusted = files.pool("trusted") if cell.reference == TRUSTED else None
        rated: StoredRatings | None = None if trusted is not None else stored_ratings(files, training)
        data = tokenize_run_data(recipe, training, heldout, trusted, rated=rated)
        return replace(data, pairs=read_pairs(str(files.folder / "pairs.jsonl"), tuple(data.pool), note))

    def open(self, cell: Cell, store: Store, observer: Observer) -> OpenRun:
        """The cell's run on real models; the caller holds the store's lock."""
        return open_run_on(self.data_of(cell, observer.note), store, observer)


def _short(model: str) -> str:
    """A model's name without the folders of this machine."""
    return Path(model).name if Path(model).exists() else model


def chosen(cells: Sequence[Cell], patterns: str | None) -> list[Cell]:
    """Cells whose name fits one of the patterns (``*`` for anything, separated by commas); all for None. Raises
    SystemExit for a pattern that fits none."""
    from fnmatch import fnmatch

    if patterns is None:
        return list(cells)
    wanted = patterns.split(",")
    for pattern in wanted:
        if not any(fnmatch(cell.name, pattern) for cell in cells):
            raise SystemExit(f"--cells: no cell is called {pattern!r}; --list shows all names")
    return [cell for cell in cells if any(fnmatch(cell.name, pattern) for pattern in wanted)]
