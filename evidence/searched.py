"""What detectors recover of a perfect mask's gain: from the finished cells of ``benchmarks.search``."""

from __future__ import annotations

from typing import Any

from benchmarks.noise_measures import LOWER_IS_BETTER
from benchmarks.noise_tables import effect_of, first_measure

from evidence.words import interval, table

Document = dict[str, Any]

AIM = 0.7
"""Share of a perfect mask's gain that a detector should recover."""

_NAMES = {"oracle": "a perfect mask", "random_mask": "a random one", "corrected": "none, on corrected rows"}
_SETS = {
    "corrupted": "wrong words",
    "swapped": "swapped answers",
    "boilerplate": "boilerplate",
    "other_language": "another language",
}


def search_table(quoted: Document) -> str:
    """A row a cell and mask: what it masks, what training without it gains, what share of the perfect mask's."""
    rows = []
    for document in quoted["search"]:
        measure = first_measure(document)
        for name in ("oracle", "random_mask", "corrected", *document["methods"]):
            mask, line = document["masks"].get(name), effect_of(document, measure, name)
            if line is None and name not in document["methods"]:
                continue
            dropped, caught = "–", "–"
            if mask is not None:
                noise_left = mask["eta_cleaned"] * mask["kept_share"] / mask["eta_full"]
                dropped, caught = f"{1 - mask['kept_share']:.1%}", f"{1 - noise_left:.1%}"
            elif name in document["methods"]:
                dropped, caught = "nothing", "0.0%"
            rows.append(
                [
                    _set(document),
                    _NAMES.get(name, f"`{name}`"),
                    dropped,
                    caught,
                    measure,
                    "as full tokens" if line is None else _difference(line),
                    "–" if line is None or name == "oracle" else _share(line),
                ]
            )
    header = ["planted in Alpaca", "mask", "masks", "of the noise", "measure", "minus full tokens", "share of its gain"]
    return table(header, rows, 2, (4,))


def search_reading(quoted: Document) -> str:
    """In how many cells the perfect mask gains, and which detector recovers enough of it, surely above 0."""
    gaining, found = 0, []
    for document in quoted["search"]:
        measure = first_measure(document)
        against = _line(document, measure, "oracle")["against"]
        lower = measure in LOWER_IS_BETTER
        gaining += all(one["high"] < 0 if lower else one["low"] > 0 for one in against.values())
        shares = {
            name: line["recovered"]
            for name in document["methods"]
            if (line := effect_of(document, measure, name)) is not None and line["recovered"]["share"] is not None
        }
        if not shares:
            continue
        best = max(shares, key=lambda name: shares[name]["share"])
        if shares[best]["share"] >= AIM and shares[best]["low"] > 0:
            found.append(f"{_set(document)} (`{best}`, {shares[best]['share']:.0%})")
    cells = len(quoted["search"])
    where = f": {', '.join(found)}" if found else ""
    return (
        f"A perfect mask gains in {gaining} of {cells} cells; a detector recovers at least {AIM:.0%} of its gain, with an "
        f"interval above 0, in {len(found)}{where}."
    )


def _set(document: Document) -> str:
    name = document["cell"]["set"]
    return _SETS.get(name, name)


def _line(document: Document, measure: str, condition: str) -> Document:
    line = effect_of(document, measure, condition)
    if line is None:
        raise ValueError(f"{document['cell']['name']}: no {measure} of {condition}")
    return line


def _difference(line: Document) -> str:
    against = line["against"]["full_tokens"]
    return interval(against["difference"], against["low"], against["high"])


def _share(line: Document) -> str:
    share = line["recovered"]
    return "–" if share["share"] is None else f"{share['share']:.0%} ({share['low']:.0%} to {share['high']:.0%})"
