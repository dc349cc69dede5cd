"""The check of a critic on rows whose faults are known: planted into the user's rows, or decided by people."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tokenclean.critic.critic_file import MOST_MASKED, masked_by
from tokenclean.critic.reading import READINGS, Reading
from tokenclean.critic.sentences import Sentence, sentences_of
from tokenclean.errors import PoolError
from tokenclean.evaluation.intervals import ShareInterval, share_interval
from tokenclean.lab.edits import NoiseSettings
from tokenclean.lab.plant import NoiseSpan, plant
from tokenclean.pool import Conversation, Pool
from tokenclean.report.tables import Table
from tokenclean.review.agreement import cohens_kappa
from tokenclean.review.decisions import in_force
from tokenclean.review.placed import place
from tokenclean.review.review_file import ReviewFile

PLANTED = "planted"
"""The source of truth that was planted."""

PLANTED_KINDS = ("names", "numbers", "corrupted", "other_language", "swapped", "off_topic", "loops")
"""The kinds of planted noise that somebody who reads only this row can see; those that few rows can take first."""

_RARE = 0.05
"""The share of bad sentences for which the precision is given beside that of the check."""

_WORD = re.compile(r"\w")
_LEAST_KAPPA = 0.4
"""Below it agreement beyond chance is called slight or fair (Landis and Koch, Biometrics 33, 1977)."""

Truth = tuple[str | None, ...]
"""Of each sentence of a row the kind of its noise, empty for a good one, None where nobody knows."""


@dataclass(frozen=True)
class CheckRows:
    """``conversations``: what the critic is asked to read. ``truth``: of each. ``source``: where the truth is from."""

    conversations: tuple[Conversation, ...]
    truth: tuple[Truth, ...]
    source: str


def planted_rows(rows: Sequence[Conversation], count: int, seed: int) -> CheckRows:
    """``count`` of the rows, drawn by ``seed``, with noise of ``PLANTED_KINDS`` in about half of them, one kind a row.

    A sentence is bad where noise changed a letter or digit of it; all others count as good, so that noise which the
    rows had before makes the measured precision too low. Raises PoolError for fewer than two rows.
    """
    if len(rows) < 2:
        raise PoolError(
            f"the check plants sentences of other rows, which needs 2 rows with text at least, found {len(rows)}; give "
            "a larger pool, --checked FILE, or --check-rows 0 for no check"
        )
    drawn = sorted(np.random.default_rng(seed).permutation(len(rows))[:count].tolist())
    left = Pool(tuple(rows[row] for row in drawn))
    of_kind = max(1, round(len(drawn) / 2 / len(PLANTED_KINDS)))
    noisy: dict[str, tuple[Conversation, Truth]] = {}
    for kind in PLANTED_KINDS:
        if len(left) < 2:
            break
        settings = NoiseSettings(row_share=min(1.0, (of_kind + 0.5) / len(left)))  # half a row against rounding
        planted = plant(left, {kind: settings}, seed=seed)
        changed = {span.row for span in planted.spans}
        for row in changed:
            spans = [span for span in planted.spans if span.row == row]
            noisy[left[row].id] = planted.pool[row], _planted_truth(planted.pool[row], spans)
        left = left.take([row for row in range(len(left)) if row not in changed])
    checked = [noisy.get(rows[row].id) or (rows[row], _planted_truth(rows[row], ())) for row in drawn]
    return CheckRows(tuple(row for row, _ in checked), tuple(truth for _, truth in checked), PLANTED)


def reviewed_rows(rows: Sequence[Conversation], file: ReviewFile) -> CheckRows:
    """The rows on which people decided something, in a file of ``tokenclean review``.

    A sentence is bad where a letter or digit of it is dropped, and good where more than half of its characters are
    decided and none of these is dropped; of others nobody knows. Raises PoolError where no sentence is decided.
    """
    placed = place(in_force(file.decisions), rows)
    chosen, truth = [], []
    for row in placed.rows:
        answers = placed.weights
        of_row = tuple(
            _decided(rows[row], sentence, answers.get((row, sentence.message))) for sentence in sentences_of(rows[row])
        )
        if any(kind is not None for kind in of_row):
            chosen.append(rows[row])
            truth.append(of_row)
    if not chosen:
        raise PoolError(
            f"{file.path}: decides no sentence of these rows ({len(file.decisions):,} decisions, "
            f"{len(placed.unplaced):,} of them fit no row); review rows of this pool, or leave --checked out"
        )
    return CheckRows(tuple(chosen), tuple(truth), str(file.path))


@dataclass(frozen=True)
class CheckResult:
    """How good a critic is on rows with truth, by sentence; a masked sentence is one that all readings name.

    ``precision``: of the masked ones, the share that is bad; ``recall``: of the bad ones, the share that is masked;
    ``false_alarms``: the same of the good ones; ``by_kind``: the recall by kind of planted noise. ``agreement`` of the
    two readings, and Cohen's ``kappa``, NaN where it is not defined. ``rows``, and how many of them are
    ``unreadable`` (nothing in them is masked) and ``dropped`` (too many of their sentences are masked).
    """

    source: str
    precision: ShareInterval
    recall: ShareInterval
    false_alarms: ShareInterval
    by_kind: Mapping[str, ShareInterval]
    agreement: float
    kappa: float
    rows: int
    unreadable: int
    dropped: int

    @property
    def bad_share(self) -> float:
        """Share of the sentences that is bad."""
        return self.recall.total / (self.recall.total + self.false_alarms.total)

    def precision_at(self, bad_share: float) -> float:
        """The precision where such a share of the sentences is bad, r π / (r π + f (1 − π)) with recall r and false
        alarms f; NaN where nothing is masked."""
        right, wrong = self.recall.share * bad_share, self.false_alarms.share * (1 - bad_share)
        return right / (right + wrong) if right + wrong > 0 else math.nan

    def to_json(self) -> dict[str, object]:
        """For the record."""
        return asdict(self)


def check_result(check: CheckRows, shown: Sequence[int], readings: Sequence[Reading | None]) -> CheckResult:
    """Compare readings with the truth. ``shown``: of each row how many sentences were read; the others do not count.
    ``readings``: ``READINGS`` of each row, one after another. Raises PoolError where no sentence counts."""
    counts: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)  # of each row hits and of how many
    by_kind: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    labels: list[np.ndarray] = [np.empty((READINGS, 0), dtype=bool)]
    unreadable = dropped = 0
    for row, truth in enumerate(check.truth):
        read = [one for one in readings[row * READINGS : (row + 1) * READINGS] if one is not None]
        masked: set[int] = set()
        if len(read) < READINGS:
            unreadable += 1
        else:
            masked = masked_by(read)
            dropped += len(masked) > MOST_MASKED * len(truth)
            named = [{one.sentence for one in reading} for reading in read]
            labels.append(np.array([[n in of_one for n in range(shown[row])] for of_one in named], dtype=bool))
        known = {number for number, kind in enumerate(truth[: shown[row]]) if kind is not None}
        bad = {number for number in known if truth[number]}
        counts["precision"].append((len(masked & bad), len(masked & known)))
        counts["recall"].append((len(masked & bad), len(bad)))
        counts["false_alarms"].append((len(masked & known - bad), len(known - bad)))
        for kind in sorted({str(truth[number]) for number in bad}):
            of_kind = {number for number in bad if truth[number] == kind}
            by_kind[kind].append((len(masked & of_kind), len(of_kind)))
    shares = {name: _share(pairs) for name, pairs in counts.items()}
    if not shares or not shares["recall"].total + shares["false_alarms"].total:
        raise PoolError("no sentence of the check's rows could be shown; raise --max-characters, or take other rows")
    agreement, kappa = cohens_kappa(*np.concatenate(labels, axis=1))
    return CheckResult(
        source=check.source,
        **shares,
        by_kind={kind: _share(by_kind[kind]) for kind in sorted(by_kind)} if check.source == PLANTED else {},
        agreement=agreement,
        kappa=kappa,
        rows=len(check.truth),
        unreadable=unreadable,
        dropped=dropped,
    )


def check_table(result: CheckResult) -> Table:
    """The figures, each with its interval."""
    rows = [
        ("precision: bad of the masked", result.precision),
        ("recall: masked of the bad", result.recall),
        *((f"    {kind}", share) for kind, share in result.by_kind.items()),
        ("false alarms: masked of the good", result.false_alarms),
    ]
    cells = tuple((name, *_cells(share)) for name, share in rows)
    title = f"The critic on {result.rows:,} rows with known faults ({Path(result.source).name})"
    note = "95 % intervals take the sentences of a row as one draw (Korn and Graubard)."
    if result.source == PLANTED:
        note += " Faults that the rows had before count as good sentences, so that the true precision may be higher."
    return Table(title, ("", "share", "95 % interval", "sentences"), cells, note)


def check_lines(result: CheckResult) -> list[str]:
    """For people: agreement, what the precision depends on, and the verdict."""
    kappa = "not defined" if math.isnan(result.kappa) else f"{result.kappa:.2f}"
    agreement = "no row was read twice" if math.isnan(result.agreement) else f"agree on {result.agreement:.1%}"
    lines = [f"The two readings: {agreement} of the sentences; Cohen's kappa {kappa}"]
    if not math.isnan(rare := result.precision_at(_RARE)):
        lines.append(
            f"{result.bad_share:.1%} of the sentences here are bad. In a pool with {_RARE:.0%} of them the precision "
            f"would be {rare:.1%}"
        )
    if result.unreadable:
        lines.append(
            f"{result.unreadable:,} of the {result.rows:,} rows have an unreadable reading; nothing is masked there"
        )
    return [*lines, f"Verdict: {verdict(result)}"]


def verdict(result: CheckResult) -> str:
    """What the figures say about masking by this critic, in one sentence."""
    precision, recall = result.precision, result.recall
    if not precision.total:
        return "it masks nothing here, so it is of no use; try another model"
    if precision.low <= result.bad_share:
        return "these figures do not show that it is better than masking at random; do not train on what it masks"
    if precision.share < 0.5:
        return "more of what it masks is good than bad; let it order a review, and do not train on what it masks"
    found = f"it finds {recall.share:.0%} of the bad sentences, and {precision.share:.0%} of what it masks is bad"
    if not math.isnan(result.kappa) and result.kappa < _LEAST_KAPPA:
        return f"{found}; its readings agree little, so that much depends on chance"
    return found


def _share(pairs: Sequence[tuple[int, int]]) -> ShareInterval:
    hits, totals = np.array(pairs).T
    return share_interval(hits, totals)


def _cells(share: ShareInterval) -> tuple[str, str, str]:
    if not share.total:
        return "–", "–", "0"
    return f"{share.share:.1%}", f"{share.low:.1%} to {share.high:.1%}", f"{share.hits:,} of {share.total:,}"


def _planted_truth(conversation: Conversation, spans: Sequence[NoiseSpan]) -> Truth:
    kinds = []
    for sentence in sentences_of(conversation):
        content = conversation.turns[sentence.message].content
        own = [span for span in spans if span.turn == sentence.message]
        kinds.append(next((span.kind for span in own if _shares_word(sentence, span, content)), ""))
    return tuple(kinds)


def _shares_word(sentence: Sentence, span: NoiseSpan, content: str) -> bool:
    first, last = max(sentence.start, span.start), min(sentence.end, span.end)
    return first < last and _WORD.search(content, first, last) is not None


def _decided(conversation: Conversation, sentence: Sentence, weights: np.ndarray | None) -> str | None:
    """Of a sentence ``dropped``, empty for a good one, None where nobody knows. ``weights``: of the content's
    characters, NaN where nothing was decided."""
    if weights is None:
        return None
    content = conversation.turns[sentence.message].content
    own = weights[sentence.start : sentence.end]
    if any(_WORD.match(content, sentence.start + place) for place in np.flatnonzero(own == 0).tolist()):
        return "dropped"
    return "" if np.count_nonzero(~np.isnan(own)) * 2 > len(own) and not (own == 0).any() else None
