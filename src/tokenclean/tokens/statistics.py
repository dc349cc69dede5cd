"""Table 4 of the paper (§10.1): how long a pool's prompts and completions are by source, in a model's tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from tokenclean.pool.conversation import Conversation, Pool
from tokenclean.pool.intake import RenderedRows
from tokenclean.token_table import TokenTable
from tokenclean.tokens.chat_template.date import DEFAULT_DATE
from tokenclean.tokens.tokenize import tokenize_pool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BLOCK_ROWS = 4096


@dataclass(frozen=True)
class SourceStatistics:
    """Totals of a source. ``rows``: with a response token; ``response_tokens``: the training targets before cleaning,
    which are the completions; ``prompt_tokens``: all others, tags and system text included; ``cut``: rows cut at the
    maximum length; ``without_target``: rows without a response token, in no other number."""

    source: str
    rows: int = 0
    prompt_tokens: int = 0
    response_tokens: int = 0
    cut: int = 0
    without_target: int = 0

    @property
    def mean_prompt(self) -> float:
        """Mean tokens of a row's prompt; 0.0 without rows, as below."""
        return self.prompt_tokens / self.rows if self.rows else 0.0

    @property
    def mean_response(self) -> float:
        """Mean tokens of a row's completion."""
        return self.response_tokens / self.rows if self.rows else 0.0

    @property
    def mean_overall(self) -> float:
        """Mean tokens of a row."""
        return (self.prompt_tokens + self.response_tokens) / self.rows if self.rows else 0.0

    def plus(self, other: SourceStatistics) -> SourceStatistics:
        """The totals of both, under this one's name."""
        return replace(
            self,
            rows=self.rows + other.rows,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            response_tokens=self.response_tokens + other.response_tokens,
            cut=self.cut + other.cut,
            without_target=self.without_target + other.without_target,
        )


@dataclass(frozen=True)
class PoolStatistics:
    """``sources``: in the order in which they first appear. ``rendered``: what became of the rows of a pool, block by
    block."""

    sources: tuple[SourceStatistics, ...]
    rendered: tuple[RenderedRows, ...] = field(default=(), compare=False)

    @property
    def total(self) -> SourceStatistics:
        """Of all sources together."""
        total = SourceStatistics("all")
        for source in self.sources:
            total = total.plus(source)
        return total

    def share_of_rows(self, source: SourceStatistics) -> float:
        """The source's share of all rows; 0.0 where there is none, as below."""
        return source.rows / self.total.rows if self.total.rows else 0.0

    def share_of_response(self, source: SourceStatistics) -> float:
        """The source's share of all response tokens."""
        return source.response_tokens / self.total.response_tokens if self.total.response_tokens else 0.0


def pool_statistics(
    pool: Pool | Sequence[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str = "tulu",
    max_length: int = 2048,
    targets: str = "response",
    date: str = DEFAULT_DATE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PoolStatistics:
    """Tokenize the pool block by block, in constant memory, and count. ``progress``: rows done, of all.

    Options and errors as of ``tokenize_pool``.
    """
    counted: dict[str, SourceStatistics] = {}
    rendered: list[RenderedRows] = []
    done = 0
    for block in _blocks(pool):
        tokens = tokenize_pool(block, tokenizer, template=template, max_length=max_length, targets=targets, date=date)
        _add(
            counted,
            tokens.sources,
            tokens.input_ids.lengths,
            tokens.is_response.row_sums().astype(np.int64),
            tokens.is_truncated,
        )
        rendered.append(tokens.rendered_rows)
        done += len(block)
        progress(done, len(pool))
    return PoolStatistics(tuple(counted.values()), tuple(rendered))


def table_statistics(table: TokenTable) -> PoolStatistics:
    """Count the rows of a table, whose tokens are those of a pool already; how many were cut it does not tell."""
    counted: dict[str, SourceStatistics] = {}
    lengths, responses = table["input_ids"].lengths, table["is_response"].row_sums().astype(np.int64)
    _add(counted, table.sources, lengths, responses, np.zeros(len(table), dtype=bool))
    return PoolStatistics(tuple(counted.values()))


def _add(
    counted: dict[str, SourceStatistics],
    sources: Sequence[str],
    lengths: np.ndarray,
    responses: np.ndarray,
    is_cut: np.ndarray,
) -> None:
    names = np.array(sources, dtype=object)
    for source in dict.fromkeys(sources):
        of_source = names == source
        has_target = of_source & (responses > 0)
        response = int(responses[has_target].sum())
        block = SourceStatistics(
            source,
            int(has_target.sum()),
            int(lengths[has_target].sum()) - response,
            response,
            int(is_cut[has_target].sum()),
            int(of_source.sum() - has_target.sum()),
        )
        counted[source] = counted.get(source, SourceStatistics(source)).plus(block)


def _blocks(pool: Iterable[Conversation]) -> Iterator[list[Conversation]]:
    rows = iter(pool)
    while block := list(islice(rows, _BLOCK_ROWS)):
        yield block
