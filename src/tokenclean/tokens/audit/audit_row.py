"""A row as the checks see it: its tokens, its labels, and where in its text the answers are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tokenclean.pool.conversation import Conversation, Kind, Turn
from tokenclean.tokens.turn_markers import Header

UNTRAINED = -100

_NEARLY_ALL = 0.9  # share of the labels that a shift has to explain


@dataclass(frozen=True)
class Answer:
    """One assistant turn in the characters of the row's text.

    [head, start) is the role marker in front of it (empty if unknown), [start, end) what the model has to write, of
    which [closing, end) is the end token. ``closing == end`` if none closes the answer.
    """

    head: int
    start: int
    end: int
    closing: int

    @property
    def is_closed(self) -> bool:
        return self.closing < self.end


@dataclass(frozen=True, eq=False)
class AuditRow:
    """One row of the data under audit, L tokens without padding.

    ``id``/``place``: its id and ``file:line``. ``input_ids``, ``labels``: int64 (L,), the labels as a trainer gets
    them, −100 for no target. ``spans``: int64 (L, 2), the characters of ``text`` that each token stands for.
    ``answers``: the assistant turns to be trained; for a row that came tokenized, all that its role markers show; None
    if it has no markers, so that its answers cannot be located. ``headers``: the role markers found in a tokenized
    row. ``conversation``: that it was made from; None for one that came tokenized. ``is_cut``: tokenization cut it at
    the maximum length. ``padding_targets``: labelled positions among the padding, which was removed. ``fault``: why it
    cannot be used at all; it then has no tokens, and ``text`` is the beginning of its text in the file. ``twin``: the
    id of an earlier row that holds the same.
    """

    id: str
    place: str
    kind: Kind
    input_ids: np.ndarray
    labels: np.ndarray
    spans: np.ndarray
    text: str
    answers: tuple[Answer, ...] | None = None
    headers: tuple[Header, ...] = ()
    conversation: Conversation | None = None
    is_cut: bool = False
    padding_targets: int = 0
    fault: str = ""
    twin: str = ""

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def turns(self) -> tuple[Turn, ...]:
        return self.conversation.turns if self.conversation else ()

    @cached_property
    def shift(self) -> int:
        """1 if the labels are those of the next token, ``labels[t] == input_ids[t + 1]`` (nearly always), −1 for
        ``labels[t] == input_ids[t − 1]``, 0 for neither or if the labels need no explanation."""
        own = self._agreement(0)
        if own == 1.0:
            return 0
        return next((shift for shift in (1, -1) if self._agreement(shift) >= max(_NEARLY_ALL, own + 1e-9)), 0)

    def _agreement(self, shift: int) -> float:
        """Share of the labels that are the id ``shift`` positions on; 1 if there is no label."""
        targets = np.flatnonzero(self.labels != UNTRAINED)
        if not len(targets):
            return 1.0
        targets = targets[(targets + shift >= 0) & (targets + shift < len(self))]
        return float((self.labels[targets] == self.input_ids[targets + shift]).mean()) if len(targets) else 0.0

    @cached_property
    def is_foreign(self) -> np.ndarray:
        """bool (L,), True for a label that is neither −100 nor the id of its token, nor explained by a shift."""
        foreign = (self.labels != UNTRAINED) & (self.labels != self.input_ids)
        return foreign & (self.shift == 0)

    @cached_property
    def ignored_label(self) -> int | None:
        """The one value (−1, 0, the pad id) that all foreign labels have, used in place of −100."""
        values = self.labels[self.is_foreign]
        return int(values[0]) if len(values) > 1 and (values == values[0]).all() else None

    @cached_property
    def is_response(self) -> np.ndarray:
        """bool (L,), the tokens that are meant as targets: a shift is undone and another value for −100 taken as such,
        so that each is reported once and not by every check. Never True at position 0, which follows nothing."""
        is_label = self.labels != UNTRAINED
        if self.ignored_label is not None:
            is_label &= ~self.is_foreign
        targets = np.flatnonzero(is_label) + self.shift
        meant = np.zeros(len(self), dtype=bool)
        meant[targets[(targets > 0) & (targets < len(self))]] = True
        if self.shift == -1 and not self.is_blank[-1]:  # the label of the last token was pushed off the row
            meant[-1] |= meant[-2]
        return meant

    @cached_property
    def is_blank(self) -> np.ndarray:
        """bool (L,), True for a token whose characters are all whitespace (and at least one)."""
        return np.array([self.text[start:end].isspace() for start, end in self.spans.tolist()], dtype=bool)

    @property
    def covered(self) -> int:
        """How many characters of the text the tokens reach: fewer than all if the row was cut."""
        return int(self.spans[:, 1].max()) if len(self) else 0

    def tokens_in(self, start: int, end: int) -> np.ndarray:
        """bool (L,), True for the tokens that share a character with [start, end)."""
        return (self.spans[:, 0] < end) & (self.spans[:, 1] > start)

    def token_span(self, start: int, end: int) -> tuple[int, int] | None:
        """The token span [first, last + 1) that shares characters with [start, end); None if no token does."""
        places = np.flatnonzero(self.tokens_in(start, end))
        return (int(places[0]), int(places[-1]) + 1) if len(places) else None

    def targets_of(self, answer: Answer) -> np.ndarray:
        """Positions of the answer's targets."""
        return np.flatnonzero(self.tokens_in(answer.start, answer.end) & self.is_response)

    @cached_property
    def has_gaps(self) -> bool:
        """Whether there are masked tokens between the targets of one answer, as token selection leaves them.

        Without role markers an answer is a run of targets; more runs than end tokens would then be gaps, which only
        ``facts`` can count, so this is False.
        """
        return any(self._has_gap(answer) for answer in self.answers or ())

    def _has_gap(self, answer: Answer) -> bool:
        inside, targets = np.flatnonzero(self.tokens_in(answer.start, answer.end)), self.targets_of(answer)
        return len(targets) > 0 and int(((inside >= targets[0]) & (inside <= targets[-1])).sum()) > len(targets)

    def runs(self) -> list[tuple[int, int]]:
        """Token spans [start, end) of the runs of targets."""
        return runs_of(self.is_response)


def runs_of(flags: np.ndarray) -> list[tuple[int, int]]:
    """Spans [start, end) of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
