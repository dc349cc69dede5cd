"""How much of a table was kept, source by source."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from tokenclean.token_table import TokenTable


@dataclass(frozen=True)
class SourceCounts:
    """One source. ``rows``: rows with at least one kept token; ``dropped_rows``: rows with none, which are left out;
    ``tokens``: all tokens in ``rows``; ``response_tokens``: training targets before cleaning, dropped rows included;
    ``kept_tokens``: training targets after cleaning."""

    source: str
    rows: int
    dropped_rows: int
    tokens: int
    response_tokens: int
    kept_tokens: int


@dataclass(frozen=True)
class CleanedCounts:
    """All sources, in the order of their names."""

    sources: tuple[SourceCounts, ...]

    @property
    def total(self) -> SourceCounts:
        """The sums over all sources, named ``all``."""
        names = [field.name for field in fields(SourceCounts)][1:]
        return SourceCounts("all", *(sum(getattr(source, name) for source in self.sources) for name in names))


def count_sources(table: TokenTable, kept_tokens: np.ndarray) -> CleanedCounts:
    """Count a table whose N rows keep ``kept_tokens`` tokens each, int64, shape (N,)."""
    names = sorted(set(table.sources))
    number = {name: place for place, name in enumerate(names)}
    source_of_row = np.array([number[source] for source in table.sources], dtype=np.int64)
    is_left = kept_tokens > 0

    def per_source(values: np.ndarray) -> list[int]:
        return [int(n) for n in np.bincount(source_of_row, weights=values, minlength=len(names))]

    columns = (
        per_source(is_left),
        per_source(~is_left),
        per_source(table["input_ids"].lengths * is_left),
        per_source(table["is_response"].row_sums()),
        per_source(kept_tokens),
    )
    return CleanedCounts(tuple(SourceCounts(name, *n) for name, *n in zip(names, *columns, strict=True)))
