"""What noise mixture and repetition found, as a table and as a document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenclean.cleaning import Outcome, Workshop
from tokenclean.report.tables import Table, share_text

_SHOWN_SOURCES, _SHOWN_ROWS = 4, 5


def noise_table(workshop: Workshop, outcomes: Sequence[Outcome]) -> Table | None:
    """The estimated share of noise by strategy, source and worst rows; None where no mixture was fitted."""
    found = [(outcome.strategy, outcome.noise) for outcome in outcomes if outcome.noise is not None]
    if not found:
        return None
    rows = []
    for strategy, rates in found:
        shown = list(rates.sources.items())[:_SHOWN_SOURCES] if len(rates.sources) > 1 else []
        worst = [f"{workshop.tokens.ids[row]} {rate:.0%}" for row, rate in rates.worst(_SHOWN_ROWS)]
        rows.append((strategy, "pool", share_text(rates.pool)))
        rows += [("", f"source {name}", share_text(rate)) for name, rate in shown]
        rows += [("", f"row {text.rpartition(' ')[0]}", text.rpartition(" ")[2]) for text in worst]
    expected = workshop.recipe.cleaning.noise_mixture.mean
    note = (
        "share of the trained tokens that look as if drawn from the pool's unigram distribution, not by the model; of "
        f"rows the highest. Where a row shows no noise its rate ends below {expected:.1%} and its tokens weigh almost 1"
    )
    return Table("Noise found", ("strategy", "of", "estimated noise"), tuple(rows), note, text_columns=(0, 1))


def noise_document(workshop: Workshop, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """By strategy: the rates of the pool and its sources, and every row's by its id; and the repeated passages."""
    document: dict[str, Any] = {}
    for outcome in outcomes:
        if outcome.noise is not None:
            rates = dict(zip(workshop.tokens.ids, outcome.noise.rows.tolist(), strict=True))
            document[outcome.strategy] = {**outcome.noise.as_document(), "rows": rates}
    if workshop.noise.has_looked_for_repetition:
        found = workshop.noise.repetition
        document["repetition"] = {
            "tokens": int(found.is_repeated.values.sum()),
            "needed_rows": found.needed_rows,
            "passages": [
                {"rows": p.rows, "occurrences": p.occurrences, "text": workshop.tokenizer.decode(list(p.input_ids))}
                for p in found.passages
            ],
        }
    return document
