"""Which detector recovers most of what a perfect mask gains? Where it gains, every detector's mask is trained.

The cells, held-out rows, measures and recipe are those of ``benchmarks.noise``. Each detector flags tokens at its own
line, one that only ranks the share 1 − ``cleaning.proportion``; a model is trained without them, and the share of the
oracle's gain that it recovers is Σ (model − full tokens) / Σ (oracle − full tokens) over the held-out items. References
are warmed up on TRUSTED clean rows of the same set. A finished cell is a file in OUTPUT/cells, not measured again.

    python -m benchmarks.search --data DIR [--cells 'corrupted-*'] [--methods A,B] [--model demo] [--output runs/search]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import machine
from benchmarks.noise import chosen_cells, document_of
from benchmarks.noise_measures import measure_cell
from benchmarks.noise_sets import Cell, trusted_rows
from benchmarks.noise_tables import NAMES, Document, effect_of, first_measure, interval_text
from tokenclean.experiment.laboratory import Laboratory, run_detectors
from tokenclean.experiment.laboratory_columns import score_columns
from tokenclean.lab.truth import TruthPool
from tokenclean.pool import write_row
from tokenclean.ragged import Ragged

TRUSTED = 60
"""Clean rows on which the reference is warmed up."""

SEED = 2
"""Of the registered cells none has it: methods are compared on rows that decided nothing."""

METHODS = (
    *("noise_mixture", "noise_mixture + fill", "conflict", "repetition", "influence"),
    *("fixed_model", "fixed_model_by_sentence", "fixed_model_by_row", "ent"),
)
"""Detectors as ``lab`` names them."""


def search_cell(
    cell: Cell, data: Path, output: Path, model: str, overrides: tuple[str, ...], methods: tuple[str, ...]
) -> Document:
    """The document of ``measure_cell`` with a model for each method that flags anything."""
    trusted = output / f"trusted-{cell.name}.jsonl"

    def masks(laboratory: Laboratory, heldout: TruthPool) -> Mapping[str, Ragged]:
        rows = trusted_rows(cell, data, laboratory.truth, heldout, TRUSTED)
        trusted.write_text("".join(json.dumps(write_row(row)) + "\n" for row in rows), encoding="utf-8")
        needs = {kind: any(name.startswith(kind) for name in methods) for kind in ("mismatch", "influence")}
        scored = score_columns(laboratory, with_prompt_passes=needs["mismatch"], with_influence=needs["influence"])
        found = run_detectors(scored.columns, "sentence")
        flagged = {name: detection.flagged for name, detection in found.items() if detection.flagged is not None}
        if unknown := sorted(set(methods) - set(flagged)):
            raise SystemExit(f"--methods: {', '.join(unknown)}: expected some of {', '.join(flagged)}")
        return {name: flagged[name] for name in methods if flagged[name].values.any()}

    overrides = (f"cleaning.trusted={json.dumps(str(trusted))}", "cleaning.proportion=0.85", *overrides)
    return measure_cell(cell, data, output, model, overrides, masks=masks)


def share_table(documents: Sequence[Document], *, markdown: bool) -> str:
    """A row a cell and mask: what it masks, what it gains by the set's first measure, what share of the oracle's."""
    rows = []
    for document in documents:
        measure = first_measure(document)
        for name in ("oracle", "random_mask", "corrected", *document["methods"]):
            mask, line = document["masks"].get(name), effect_of(document, measure, name)
            if line is None and name == "corrected":  # not every row has a corrected version
                continue
            masked = ["nothing", "0.0%"] if name in document["methods"] else ["–", "–"]
            if mask is not None:
                masked = [f"{1 - mask['kept_share']:.1%}", f"{noise_masked(mask):.1%}"]
            effect = ["as full tokens", "–"]
            if line is not None:
                effect = [interval_text(line["against"]["full_tokens"]), _share_text(line["recovered"])]
            rows.append([document["cell"]["name"], NAMES.get(name, name), *masked, measure, *effect])
    header = ["cell", "mask", "masked", "of the noise", "measure", "minus full tokens", "share of oracle A's gain"]
    return machine.table(header, rows, markdown=markdown)


def noise_masked(mask: Document) -> float:
    """Share of the noise that a mask drops, in [0, 1]. η̂ counts the noise that it keeps and the clean tokens that it
    drops, so η − noise dropped + (tokens dropped − noise dropped) = η̂."""
    dropped = (mask["eta_full"] + 1 - mask["kept_share"] - mask["eta_cleaned"]) / 2
    return dropped / mask["eta_full"]


def _share_text(share: Document) -> str:
    if share["share"] is None:
        return "–"
    return f"{share['share']:.0%} ({share['low']:.0%} to {share['high']:.0%})"


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.search", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with noise/*.jsonl and sft/*.jsonl")
    parser.add_argument("--output", type=Path, default=Path("runs/search"), help="finished cells and run folders")
    parser.add_argument("--model", default="demo", help="base model")
    parser.add_argument("--cells", default=None, metavar="PATTERN", help="cells of benchmarks.noise by name")
    parser.add_argument("--seed", type=int, default=SEED, help="of the cells, in place of their own")
    parser.add_argument("--methods", default=",".join(METHODS), help="detectors by name")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write every figure")
    arguments = parser.parse_args()
    methods = tuple(arguments.methods.split(","))
    cells = list(dict.fromkeys(replace(cell, seed=arguments.seed) for cell in chosen_cells(arguments.cells)))
    where = machine.in_fresh_process(machine.describe, "cpu")
    overrides = tuple(arguments.set)
    documents = [
        machine.found_or_measured(
            arguments.output / "cells" / f"{cell.name}.json",
            {
                "model": arguments.model,
                "overrides": list(overrides),
                "cell": document_of(cell),
                "methods": list(methods),
            },
            f"cell {number} of {len(cells)}: {cell.name}",
            search_cell,
            *(cell, arguments.data, arguments.output / "runs", arguments.model, overrides, methods),
        )
        for number, cell in enumerate(cells, start=1)
    ]
    table = share_table(documents, markdown=arguments.markdown)
    machine.report("search", where, [], {"cells": documents}, table, arguments)


if __name__ == "__main__":
    main()
