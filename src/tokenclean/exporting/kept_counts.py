"""How much of a table was kept, source by source."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tokenclean.token_table import TokenTable


@dataclass(frozen=True)
class SourceCounts:
    """One source. ``rows``: rows with at least one kept token; ``dropped_rows``: rows with none, left out.
    ``tokens``: all tokens of ``rows``. ``response_tokens``: training targets before cleaning, dropped rows included.
    ``kept_tokens``: training targets after cleaning."""

    source: str
    rows: int
    dropped_rows: int
    tokens: int
    response_tokens: int
    kept_tokens: int


@dataclass(frozen=True)
class CleanedCounts:
    """All sources, in the order of their names, and their sums."""

    sources: tuple[SourceCounts, ...]

    @property
    def rows(self) -> int:
        return sum(source.rows for source in self.sources)

    @property
    def dropped_rows(self) -> int:
        return sum(source.dropped_rows for source in self.sources)

    @property
    def tokens(self) -> int:
        return sum(source.tokens for source in self.sources)

    @property
    def response_tokens(self) -> int:
        return sum(source.response_tokens for source in self.sources)

    @property
    def kept_tokens(self) -> int:
        return sum(source.kept_tokens for source in self.sources)


def count_sources(table: TokenTable, kept_tokens: np.ndarray) -> CleanedCounts:
    """Counts of a table whose rows keep ``kept_tokens`` tokens each (int64, shape (N,))."""
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
