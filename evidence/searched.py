"""What detectors recover of a perfect mask's gain: from the finished cells of ``benchmarks.search``."""

from __future__ import annotations

from typing import Any

from benchmarks.noise_tables import HELPS, effect_of, first_measure, verdict
from benchmarks.search import share_table

Document = dict[str, Any]

AIM = 0.7
"""Share of a perfect mask's gain that a detector should recover."""

_SETS = {
    "corrupted": "wrong words",
    "swapped": "swapped answers",
    "boilerplate": "boilerplate",
    "other_language": "another language",
}


def search_table(quoted: Document) -> str:
    """A row a cell and mask."""
    return share_table(quoted["search"], markdown=True)


def search_reading(quoted: Document) -> str:
    """In how many cells the perfect mask gains, and which detector recovers enough of it, surely above 0."""
    documents, found = quoted["search"], []
    for document in documents:
        lines = {name: effect_of(document, first_measure(document), name) for name in document["methods"]}
        shares = {name: line["recovered"] for name, line in lines.items() if line and line["recovered"]["share"]}
        best = max(shares, key=lambda name: shares[name]["share"], default=None)
        if best and shares[best]["share"] >= AIM and shares[best]["low"] > 0:
            name = document["cell"]["set"]
            found.append(f"{_SETS.get(name, name)} (`{best}`, {shares[best]['share']:.0%})")
    gaining = sum(verdict(document) == HELPS for document in documents)
    return (
        f"By preference for clean answers a perfect mask gains in {gaining} of {len(documents)} cells of planted "
        f"noise; a detector recovers at least {AIM:.0%} of its gain, with an interval above 0, in {len(found)}"
        f"{': ' if found else ''}{', '.join(found)}."
    )
