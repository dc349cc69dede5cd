"""Table 4 of the paper (§10.1): the lengths of a pool's prompts and completions by source, in a model's tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

import numpy as np

from tokenclean.pool.conversation import Conversation, Pool
from tokenclean.pool.intake import RenderedRows
from tokenclean.recipe import TokensSettings
from tokenclean.token_table import TokenTable
from tokenclean.tokens.tokenize import batches, tokenize_pool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BLOCK_ROWS = 4096


@dataclass(frozen=True)
class SourceStatistics:
    """Totals of a source.

    ``rows``: rows with a response token; ``response_tokens``: the training targets before cleaning, which are the
    completions; ``prompt_tokens``: all others, including tags and system text; ``cut``: rows cut at the maximum length;
    ``without_target``: rows without a response token, which no other number includes.
    """

    source: str
    rows: int = 0
    prompt_tokens: int = 0
    response_tokens: int = 0
    cut: int = 0
    without_target: int = 0

    @property
    def mean_prompt(self) -> float:
        """Mean tokens of a row's prompt; 0.0 without rows, as below."""
        return _ratio(self.prompt_tokens, self.rows)

    @property
    def mean_response(self) -> float:
        """Mean tokens of a row's completion."""
        return _ratio(self.response_tokens, self.rows)

    @property
    def mean_overall(self) -> float:
        """Mean tokens of a row."""
        return _ratio(self.prompt_tokens + self.response_tokens, self.rows)

    def plus(self, other: SourceStatistics) -> SourceStatistics:
        """The totals of both, under this one's name."""
        ours, theirs = astuple(self)[1:], astuple(other)[1:]
        return SourceStatistics(self.source, *map(add, ours, theirs))


@dataclass(frozen=True)
class PoolStatistics:
    """``sources``: in the order in which they first appear. ``rendered``: what became of the rows, block by block."""

    sources: tuple[SourceStatistics, ...]
    rendered: tuple[RenderedRows, ...] = field(default=(), compare=False)

    @property
    def total(self) -> SourceStatistics:
        """All sources together."""
        return reduce(SourceStatistics.plus, self.sources, SourceStatistics("all"))

    def share_of_rows(self, source: SourceStatistics) -> float:
        """The source's share of all rows; 0.0 if there is none, as below."""
        return _ratio(source.rows, self.total.rows)

    def share_of_response(self, source: SourceStatistics) -> float:
        """The source's share of all response tokens."""
        return _ratio(source.response_tokens, self.total.response_tokens)


def pool_statistics(
    pool: Pool | Sequence[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    settings: TokensSettings,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PoolStatistics:
    """Tokenize the pool block by block, in constant memory, and count. ``progress``: rows done, of all.

    Errors as for ``tokenize_pool``.
    """
    counted: dict[str, SourceStatistics] = {}
    rendered: list[RenderedRows] = []
    done = 0
    for block in batches(pool, _BLOCK_ROWS):
        tokens = tokenize_pool(block, tokenizer, **settings.model_dump())
        _count(counted, tokens.table({}), tokens.is_truncated)
        rendered.append(tokens.rendered_rows)
        done += len(block)
        progress(done, len(pool))
    return PoolStatistics(tuple(counted.values()), tuple(rendered))


def table_statistics(table: TokenTable) -> PoolStatistics:
    """Count the rows of a table that holds the tokens of a pool; it does not say which rows were cut."""
    counted: dict[str, SourceStatistics] = {}
    _count(counted, table, np.zeros(len(table), dtype=bool))
    return PoolStatistics(tuple(counted.values()))


def _count(counted: dict[str, SourceStatistics], table: TokenTable, is_cut: np.ndarray) -> None:
    names = np.array(table.sources, dtype=object)
    responses = table["is_response"].row_sums().astype(np.int64)
    for source in dict.fromkeys(table.sources):
        is_own = names == source
        has_target = is_own & (responses > 0)
        rows, response = int(has_target.sum()), int(responses[has_target].sum())
        prompt = int(table["input_ids"].lengths[has_target].sum()) - response
        cut, without_target = int(is_cut[has_target].sum()), int(is_own.sum()) - rows
        block = SourceStatistics(source, rows, prompt, response, cut, without_target)
        counted[source] = counted.get(source, SourceStatistics(source)).plus(block)


def _ratio(count: int, total: int) -> float:
    return count / total if total else 0.0
