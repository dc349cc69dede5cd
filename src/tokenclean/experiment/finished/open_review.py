"""A run opened for review: its tables and texts, what to look at first, and the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from tokenclean.critic.critic_file import read_named
from tokenclean.errors import PoolError
from tokenclean.experiment.finished.finished_run import find_table, results_of
from tokenclean.experiment.finished.run_texts import RunTexts, read_texts
from tokenclean.experiment.finished.viewer_tables import noise_of, tokenizer_of
from tokenclean.experiment.run_files import KEPT
from tokenclean.exporting import token_weights
from tokenclean.pool import Conversation
from tokenclean.recipe import STRATEGIES
from tokenclean.report.viewer.page_data import View, ViewedTable, open_view
from tokenclean.report.viewer.ranked_table import Sample
from tokenclean.report.viewer.review_data import ReviewPart, review_data, rows_to_review
from tokenclean.review.phrases import PhraseGroup, passage_groups, repeated_phrases
from tokenclean.review.queue import CriticSpan, Suggestion, suggest
from tokenclean.review.review_file import REVIEW, ReviewFile, read_review
from tokenclean.review.reviewed_pool import ReviewedPool, review_pool
from tokenclean.review.token_places import TokenPlaces, token_places
from tokenclean.selection import find_repetition
from tokenclean.store import RESULTS
from tokenclean.token_table import TokenTable, read_table

_SUGGESTIONS = 1_000


@dataclass(frozen=True)
class RunReview:
    """``path``: a strategy's table, ``table``: its rows that ``texts`` found, in the same order. ``critic``: spans that
    a critic named, the most doubtful first."""

    path: Path
    table: TokenTable
    texts: RunTexts
    critic: tuple[CriticSpan, ...] = ()

    @property
    def conversations(self) -> Sequence[Conversation]:
        """The rows as texts."""
        return self.texts.conversations

    @cached_property
    def places(self) -> TokenPlaces:
        """Of the rows' tokens."""
        return token_places(self.texts.tokens, self.conversations)

    @cached_property
    def noise(self) -> Mapping[str, float]:
        """Row id -> the noise rate that the strategy estimated."""
        return noise_of(self.path)

    @cached_property
    def phrases(self) -> list[PhraseGroup]:
        """Texts that many answers share."""
        groups = repeated_phrases(self.conversations)
        tokens, decoder = self.texts.tokens, tokenizer_of(self.path)
        settings = self.texts.recipe.cleaning.repetition
        passages = find_repetition(tokens.input_ids, tokens.is_response, settings).passages
        return [*groups, *passage_groups(passages, lambda ids: decoder.decode(list(ids)), groups)]

    def suggestions(self) -> list[Suggestion]:
        """What to look at first, at most 1,000 spans."""
        return suggest(self.table, self.places, self._with_opinion(), self.noise, _SUGGESTIONS, self.critic)

    def reviewed(self, file: ReviewFile) -> ReviewedPool:
        """The decisions of a file on the rows."""
        return review_pool(file, self.texts.tokens, self.conversations)

    def page(self, file: ReviewFile | None, sample: Sample, *, who: str) -> tuple[View, dict[str, object]]:
        """The view of the rows that matter most, as many as ``sample`` allows, and what its page needs to take
        decisions. ``file``: the decisions so far."""
        suggestions = self.suggestions()
        rows = rows_to_review(suggestions, self.table["input_ids"].lengths, sample)
        name = self.path.parent.name
        table = ViewedTable.of_file(name, self.path, self.noise)
        view = open_view([table], tokenizer_of(self.path), sample, self.texts.rows[rows])
        number = {row: shown for shown, row in enumerate(rows.tolist())}
        places = TokenPlaces(*(column.take(rows) for column in vars(self.places).values()))
        part = ReviewPart(
            [self.conversations[row] for row in rows.tolist()],
            places,
            [replace(one, row=number[one.row]) for one in suggestions if one.row in number],
            self.phrases,
            file.decisions if file else (),
        )
        return view, review_data(part, who=who)

    def tables(self) -> dict[str, TokenTable]:
        """By strategy of the run, its table of the same rows; that of ``path`` first."""
        others = sorted(path for path in self.path.parent.parent.glob(f"*/{KEPT}") if path != self.path)
        further = {path.parent.name: read_table(path).take(self.texts.rows) for path in others}
        return {self.path.parent.name: self.table, **further}

    def _with_opinion(self) -> dict[str, TokenTable]:
        """The tables of the run's other strategies that select tokens by a method; chance is no opinion."""
        _, *others = self.tables().items()
        return {name: table for name, table in others if _has_opinion(name)}


def _has_opinion(strategy: str) -> bool:
    record = STRATEGIES.get(strategy)
    return record is None or (record.trains == "tokens" and record.level != "random")


def open_run_review(
    run: Path, strategy: str | None, note: Callable[[str], None], critic: Path | None = None
) -> RunReview:
    """The results of a run folder (of its last run), or a results folder, for review. ``strategy``: whose labels are
    shown, by default the recipe's own. ``critic``: a file of `tokenclean critic`, whose named sentences are suggested.
    Raises as ``find_table``, ``read_texts`` and ``read_named``; PoolError for a critic's file of other rows."""
    path = find_table(run, strategy)
    table = read_table(path)
    texts = read_texts(path.parent.parent, table, note)
    opened = RunReview(path, table.take(texts.rows), texts)
    return opened if critic is None else replace(opened, critic=_spans_of_critic(critic, opened.table, note))


def _spans_of_critic(path: Path, table: TokenTable, note: Callable[[str], None]) -> tuple[CriticSpan, ...]:
    """What a critic named in more of its readings comes first."""
    named = read_named(path)
    here = set(table.ids)
    missing = [name for name in named if name not in here]
    if named and len(missing) == len(named):
        raise PoolError(
            f"{path}: none of the {len(named):,} rows in which the critic named a sentence is in this run, the first "
            f"is {missing[0]!r}; give the file that was made of the run's pool"
        )
    if missing:
        note(f"{path}: {len(missing):,} of {len(named):,} rows with a named sentence are not in this run")
    spans = [(name, span) for name, of_row in named.items() if name in here for span in of_row]
    spans.sort(key=lambda one: -one[1].times)
    return tuple(
        CriticSpan(name, span.message, span.start, span.end, f"critic: {span.reason}" if span.reason else "critic")
        for name, span in spans
    )


@dataclass(frozen=True)
class ReviewedTable:
    """``table``: with the weights that people decided, in ``weight``. ``reviewed``: their decisions on its rows.
    ``tokens``, ``rows``: response tokens with another weight than before, and rows that have some."""

    table: TokenTable
    reviewed: ReviewedPool
    tokens: int
    rows: int


def apply_review(run: Path, strategy: str | None, file: ReviewFile, note: Callable[[str], None]) -> ReviewedTable:
    """A strategy's table with the decisions of a file. Rows that the pool no longer has keep their weights. Raises as
    ``open_run_review``."""
    opened = open_run_review(run, strategy, note)
    reviewed = opened.reviewed(file)
    table = read_table(opened.path)
    before = token_weights(table)
    values = before.values.copy()
    found = np.concatenate([np.arange(*before.offsets[row : row + 2]) for row in opened.texts.rows.tolist()])
    values[found] = reviewed.apply(before.take(opened.texts.rows)).values
    changed = before.with_values(values != before.values).row_sums()
    decided = int(reviewed.is_fixed.values.sum())
    name = f"{table.metadata.get('strategy', opened.path.parent.name)}, {decided:,} response tokens decided by people"
    weighed = table.with_columns({"strategy": name}, weight=before.with_values(values))
    return ReviewedTable(weighed, reviewed, int(changed.sum()), int(np.count_nonzero(changed)))


def review_path(run: Path) -> Path:
    """The file of decisions of a run folder, or of the run folder of a results folder. Raises as ``results_of``."""
    results = results_of(run)
    folder = results.parent.parent if results.parent.name == RESULTS else results
    return folder / REVIEW


def read_run_review(path: Path) -> ReviewFile | None:
    """The decisions in a run's own file; None where there is none yet. Raises as ``read_review``."""
    return read_review(path) if path.exists() else None
