"""Strategies of your own: a function of the run's context, named in the recipe as ``module:function``.

    PYTHONPATH=examples tokenclean run quick --set pool.sources.0.path=my.jsonl \\
        --set cleaning.strategy=own_strategy:hardest_tokens --set evaluation.controls=[full_tokens]

``plan`` (which runs the function without a model), ``compare`` and ``sweep`` take it too. An installed package can
offer it under a name of its own by an entry point in the group ``tokenclean.strategies``.
"""

import numpy as np

from tokenclean.cleaning import RunContext, StrategyResult
from tokenclean.ragged import Ragged


def hardest_tokens(context: RunContext) -> Ragged:
    """A scorer: the loss of the base. The top ``cleaning.proportion`` of tokens is kept and the base trained on it."""
    return context.losses(context.base)


def last_tokens(context: RunContext) -> StrategyResult:
    """A whole strategy: the last half of the response tokens of each row is kept, and the base trained on it."""
    labels = context.tokens.is_response
    seen = [np.cumsum(row) for row in labels]
    kept = Ragged.from_rows([row & (2 * count > row.sum()) for row, count in zip(labels, seen, strict=True)], bool)
    weights = kept.map_values(lambda is_kept: is_kept.astype(np.float32))
    model = context.train("last_tokens", context.base, weights)
    return StrategyResult("last_tokens", model, kept, rounds=(model,))
