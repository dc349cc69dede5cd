"""A data-juicer operator that scores rows and keeps those with a score high enough: ``tokenclean_score_filter``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from tokenclean.errors import needs_extra
from tokenclean.integrations.row_scores import RowScorer

with needs_extra("py-data-juicer", "data-juicer", "tokenclean's data-juicer operator"):
    from data_juicer.ops.base_op import OPERATORS, Filter  # pyright: ignore[reportMissingImports]
    from data_juicer.utils.constant import Fields  # pyright: ignore[reportMissingImports]

STATISTIC = "token_score"


@OPERATORS.register_module("tokenclean_score_filter")
class TokenScoreFilter(Filter):
    """Writes the statistic ``token_score``, in nats a token, and drops rows that score below ``minimum``.

    A row is a conversation in any form that a pool file may have (``messages``, ``prompt`` and ``completion``, …).
    ``base``, ``reference``, ``template``, ``max_length``, ``precision``, ``device``: as of ``RowScorer``, with its
    errors. A row without a score (it cannot be read, or nothing in it is trained) has NaN, and stays only where
    ``minimum`` is None.
    """

    _batched_op = True

    def __init__(
        self,
        base: str,
        reference: str | None = None,
        minimum: float | None = None,
        template: str = "tulu",
        max_length: int = 2048,
        precision: str = "exact",
        device: str = "cpu",
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.minimum = minimum
        self.scorer = RowScorer(base, reference, template, max_length, precision, device)

    def compute_stats_batched(self, samples: dict[str, list[Any]], *_: Any, **__: Any) -> dict[str, list[Any]]:
        """The samples, column by column, with the statistic of each."""
        statistics = samples[Fields.stats]
        names = [name for name in samples if not name.startswith("__dj__")]
        rows = [{name: samples[name][number] for name in names} for number in range(len(statistics))]
        for statistic, score in zip(statistics, self.scorer.score(rows), strict=True):
            statistic[STATISTIC] = math.nan if score is None else score
        return samples

    def process_batched(self, samples: dict[str, list[Any]], *_: Any, **__: Any) -> Iterable[bool]:
        """Whether each sample stays."""
        return [self._stays(statistic[STATISTIC]) for statistic in samples[Fields.stats]]

    def _stays(self, score: float | None) -> bool:
        if score is None or math.isnan(score):  # a stored NaN may come back as null
            return self.minimum is None
        return self.get_keep_boolean(score, self.minimum)
