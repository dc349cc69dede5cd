from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from small_tokenizers import byte_level
from tokenclean.pool import Conversation, LabelledTokens, Pool, Turn
from tokenclean.recipe import TokensSettings
from tokenclean.report.pool_tables import statistics_csv, statistics_table
from tokenclean.tokens import tokenize_pool
from tokenclean.tokens.statistics import PoolStatistics, SourceStatistics, pool_statistics, table_statistics


@pytest.fixture
def tokenizer():
    return byte_level()


def chat(source: str, number: int, *texts: str) -> Conversation:
    roles = ("user", "assistant")
    turns = tuple(Turn(roles[place % 2], text) for place, text in enumerate(texts))
    return Conversation(f"{source}:{number}:0", source, turns)


POOL = Pool(
    (
        chat("a", 1, "Why?", "Because."),
        chat("b", 1, "One?", "1", "Two?", "22"),
        chat("a", 2, "A longer question", "Yes"),
        Conversation("b:2:0", "b", (Turn("assistant", "plain text"),), "text"),
    )
)


def test_counts_are_those_of_the_tokenized_rows(tokenizer):
    tokens = tokenize_pool(POOL, tokenizer)
    lengths, responses = tokens.input_ids.lengths, tokens.is_response.row_sums()
    found = pool_statistics(POOL, tokenizer, TokensSettings())
    a, b = found.sources
    assert (a.source, a.rows, a.without_target, b.source, b.rows, b.without_target) == ("a", 2, 0, "b", 1, 1)
    assert a.response_tokens == responses[0] + responses[2]
    assert a.prompt_tokens == lengths[0] + lengths[2] - a.response_tokens
    assert (b.response_tokens, b.prompt_tokens) == (responses[1], lengths[1] - responses[1])
    # A byte is a token here, and the end token belongs to the completion.
    assert (a.mean_response, b.mean_response) == ((9 + 4) / 2, 2 + 3)
    assert a.mean_overall == a.mean_prompt + a.mean_response == (lengths[0] + lengths[2]) / 2
    total = found.total
    assert (total.source, total.rows, total.without_target) == ("all", 3, 1)
    assert total.mean_overall == lengths[:3].sum() / 3
    assert found.share_of_rows(a) == 2 / 3
    assert found.share_of_response(b) == 5 / 18


@pytest.mark.parametrize("max_length", [2, 14, 20, 25, 100])
def test_rows_cut_are_counted_the_same_everywhere(tokenizer, max_length):
    tokens = tokenize_pool(POOL, tokenizer, max_length=max_length)
    assert pool_statistics(POOL, tokenizer, TokensSettings(max_length=max_length)).total.cut == tokens.is_cut.sum()
    assert tokens.is_cut.sum() <= len(POOL) - len(tokens.unusable)


def test_blocks_do_not_matter_and_progress_is_told(tokenizer, monkeypatch):
    whole = pool_statistics(POOL, tokenizer, TokensSettings())
    monkeypatch.setattr("tokenclean.tokens.statistics._BLOCK_ROWS", 3)
    reported: list[tuple[int, int]] = []
    assert pool_statistics(POOL, tokenizer, TokensSettings(), lambda *done: reported.append(done)) == whole
    assert reported == [(3, 4), (4, 4)]


def test_a_table_of_the_pool_gives_the_same(tokenizer):
    found = table_statistics(tokenize_pool(POOL, tokenizer).table({}))
    assert found == pool_statistics(POOL, tokenizer, TokensSettings())


def test_cut_rows_are_counted_as_far_as_they_go(tokenizer):
    found = pool_statistics(POOL.take([0, 1]), tokenizer, TokensSettings(max_length=30))
    assert [(source.cut, source.mean_overall) for source in found.sources] == [(1, 30.0), (1, 30.0)]
    assert found.total.cut == 2


def test_targets_and_tokenized_rows(tokenizer):
    labelled = LabelledTokens(np.array([5, 6, 7]), np.array([False, False, True]))
    pool = Pool((Conversation("t:1:0", "t", (), "tokens", tokens=labelled), POOL[3]))
    found = pool_statistics(pool, tokenizer, TokensSettings(targets="all"))
    t, b = found.sources
    assert (t.prompt_tokens, t.response_tokens) == (1, 2)
    assert (b.rows, b.prompt_tokens) == (1, 1)
    assert pool_statistics(POOL, tokenizer, TokensSettings(targets="last_turn")).sources[1].response_tokens == 3


def test_a_pool_of_nothing_has_no_mean():
    nothing = PoolStatistics(())
    assert nothing.total == SourceStatistics("all")
    assert (nothing.total.mean_overall, nothing.share_of_rows(nothing.total)) == (0.0, 0.0)
    assert nothing.share_of_response(nothing.total) == 0.0


def test_the_table_has_a_line_a_source_and_one_of_all():
    sources = (SourceStatistics("a", 2, 25, 5, 1), SourceStatistics("b", 6000, 1, 15, 0, 3))
    table = statistics_table(PoolStatistics(sources), "a model")
    assert table.rows == (
        ("a", "2", "12.5", "2.5", "15.0", "0.0%", "25.0%"),
        ("b", "6,000", "0.0", "0.0", "0.0", "100.0%", "75.0%"),
        ("all", "6,002", "0.0", "0.0", "0.0", "100.0%", "100.0%"),
    )
    assert table.title == "Statistics of the pool, in tokens of a model"
    assert "1 rows cut" in table.note
    assert "3 rows without a response token left out" in table.note
    assert len(statistics_table(PoolStatistics(sources[:1]), "m").rows) == 1
    lines = statistics_csv(PoolStatistics((replace(sources[0], rows=4),))).splitlines()
    assert lines[0].startswith("source,rows,prompt_tokens,response_tokens,mean_prompt,")
    assert lines[1] == "a,4,25,5,6.25,1.25,7.5,1.0,1.0"
    assert lines[2] == "all,4,25,5,6.25,1.25,7.5,1.0,1.0"
