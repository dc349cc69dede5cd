"""What noise mixture and repetition found, and planted noise against Corollary 5.1.1: as tables and a document."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tokenclean.cleaning import StrategyResult
from tokenclean.cleaning.context import RunContext
from tokenclean.report.tables import Table, share_text
from tokenclean.selection import LabelNoise
from tokenclean.theory import CorollaryCheck

_SHOWN_SOURCES, _SHOWN_ROWS = 4, 5


def noise_table(context: RunContext, results: Sequence[StrategyResult]) -> Table | None:
    """The estimated share of noise by strategy, source and worst rows; None where no mixture was fitted."""
    found = [(result.strategy, result.noise) for result in results if result.noise is not None]
    if not found:
        return None
    rows = []
    for strategy, rates in found:
        shown = list(rates.sources.items())[:_SHOWN_SOURCES] if len(rates.sources) > 1 else []
        worst = [f"{context.tokens.ids[row]} {rate:.0%}" for row, rate in rates.worst(_SHOWN_ROWS)]
        rows.append((strategy, "pool", share_text(rates.pool)))
        rows += [("", f"source {name}", share_text(rate)) for name, rate in shown]
        rows += [("", f"row {text.rpartition(' ')[0]}", text.rpartition(" ")[2]) for text in worst]
    expected = context.recipe.cleaning.noise_mixture.mean
    note = (
        "share of the trained tokens that look as if drawn from the pool's unigram distribution, not by the model; of "
        f"rows the highest. Where a row shows no noise its rate ends below {expected:.1%} and its tokens weigh almost 1"
    )
    return Table("Noise found", ("strategy", "of", "estimated noise"), tuple(rows), note, text_columns=(0, 1))


def noise_document(context: RunContext, results: Sequence[StrategyResult]) -> dict[str, object]:
    """By strategy: the rates of the pool and its sources, and every row's by its id; and the repeated passages."""
    document: dict[str, object] = {}
    for result in results:
        if result.noise is not None:
            rates = dict(zip(context.tokens.ids, result.noise.rows.tolist(), strict=True))
            document[result.strategy] = {**result.noise.as_document(), "rows": rates}
    if context.noise.has_looked_for_repetition:
        found = context.noise.repetition
        document["repetition"] = {
            "tokens": int(found.is_repeated.values.sum()),
            "needed_rows": found.needed_rows,
            "passages": [
                {"rows": p.rows, "occurrences": p.occurrences, "text": context.data.tokenizer.decode(list(p.input_ids))}
                for p in found.passages
            ],
        }
    return document


def condition_table(found: Sequence[tuple[str, LabelNoise]], response_tokens: int, delta: float = 0.05) -> Table:
    """Measured η(D̃), η̂ and r̂ of every strategy against the condition of Corollary 5.1.1 (Eq. 6).

    ``found``: strategies and their label noise, where the truth is known; ``response_tokens``: M > 0, before cleaning;
    ``delta``: δ. The condition holds where the margin is not below 0.
    """
    rows = []
    for strategy, noise in found:
        check = CorollaryCheck(noise.eta_full, noise.eta_cleaned, noise.kept_share, response_tokens, delta)
        least, share = check.least_tokens, check.break_even_kept_share
        rows.append(
            (
                strategy,
                share_text(noise.eta_full),
                share_text(noise.eta_cleaned),
                share_text(noise.kept_share),
                f"{check.left:+z.4f}",
                f"{check.right:.4f}",
                f"{check.margin:+z.4f}",
                "yes" if check.holds else "no",
                "none" if math.isinf(least) else f"{max(1, math.ceil(least)):,}",
                "none" if math.isinf(share) else share_text(share),
            )
        )
    note = (
        f"cleaning lowers the error bound where the noise removed, η(D̃) - η̂, is at least the price of fewer tokens at "
        f"M = {response_tokens:,} response tokens (δ = {delta:g}); least M, least r̂: from which on it would at this "
        "noise. η̂ counts dropped clean tokens as wrong, so keeping less than 1 - 2η(D̃) cannot meet it"
    )
    return Table(
        "Planted noise against the condition of Corollary 5.1.1 (Eq. 6)",
        ("strategy", "η(D̃)", "η̂", "kept r̂", "removed", "price", "margin", "holds", "least M", "least r̂"),
        tuple(rows),
        note,
        text_columns=(0, 7),
    )
