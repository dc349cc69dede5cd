"""Sentences, clauses and content words of answers, and how a detector's flag is carried to the end of a passage."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from tokenclean.lab.edits import sentence_spans, word_spans
from tokenclean.ragged import Ragged

_FUNCTION_WORDS = """
a about above after again against all also although am among an and another any are aren't around as at away be
because been before being below between both but by can can't cannot could couldn't did didn't do does doesn't doing
don't down during each either else even ever every few for from further had hadn't has hasn't have haven't having he
he's her here hers herself him himself his how however i i'd i'll i'm i've if in into is isn't it it's its itself just
least less may me might mine more most much must my myself neither no nor not now of off on once one only onto or
other our ours ourselves out over own per quite rather really same shall she she's should shouldn't since so some such
than that that's the their theirs them themselves then there there's therefore these they they're they've this those
though through thus to too toward towards under until up upon us very was wasn't we we're we've were weren't what when
where whether which while who whom whose why will with within without won't would wouldn't yet you you'll you're
you've your yours yourself yourselves
"""

FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""English words that carry no content of their own, in small letters; any other word is a content word."""

_CLAUSE_END = re.compile(r"[,;:]+(?=\s)|\s[–—-](?=\s)")


@dataclass(frozen=True, eq=False)
class Passages:
    """Where tokens are in the answers; aligned columns. ``sentence``/``clause``: int64, a number of its own for each
    sentence (clause) of the pool, −1 for a token in none: prompts, blank space between sentences, end tokens.
    ``begins_content_word``: bool, the token holds the first character of a content word."""

    sentence: Ragged
    clause: Ragged
    begins_content_word: Ragged


def clause_spans(text: str) -> list[tuple[int, int]]:
    """[start, end) of each clause: sentences cut behind a comma, semicolon, colon or dash that blank space follows."""
    spans = []
    for start, end in sentence_spans(text):
        for cut in _CLAUSE_END.finditer(text, start, end):
            spans.append((start, cut.end()))
            start = cut.end() + len(text[cut.end() : end]) - len(text[cut.end() : end].lstrip())
        if start < end:
            spans.append((start, end))
    return spans


def content_word_starts(text: str) -> list[int]:
    """First character of each word, number included, that is not in ``FUNCTION_WORDS``."""
    return [start for start, end in word_spans(text) if text[start:end].lower().replace("’", "'") not in FUNCTION_WORDS]


def fill_passages(
    scores: Ragged, flagged: Ragged, begins_content_word: Ragged, passage: Ragged
) -> tuple[Ragged, Ragged]:
    """Scores and flags carried from each onset to the end of its passage.

    A flagged token is an onset where it begins a content word. From there to the end of its ``passage`` (a column of
    ``Passages``) a token has the highest score among its own and those of the onsets before it, and is flagged. Other
    tokens stay as they are. All aligned; ``scores`` float, finite on flagged tokens. Raises ValueError for columns that
    are not aligned.
    """
    for column in (flagged, begins_content_word, passage):
        scores.check_aligned(column)
    filled, flags = scores.values.copy(), flagged.values.copy()
    is_onset = flagged.values & begins_content_word.values & (passage.values >= 0)
    ends = _run_ends(passage)
    begun = -1  # of the passage's tokens those before it are done
    for onset in np.flatnonzero(is_onset):
        if onset < begun:
            continue
        tokens = slice(int(onset), int(ends[onset]))
        carried = np.maximum.accumulate(np.where(is_onset[tokens], scores.values[tokens], -np.inf))
        filled[tokens] = np.fmax(filled[tokens], carried)
        flags[tokens] = True
        begun = tokens.stop
    return scores.with_values(filled), flagged.with_values(flags)


def _run_ends(passage: Ragged) -> np.ndarray:
    """For each token the flat index behind the unbroken run of its passage's tokens."""
    values = passage.values
    last = np.flatnonzero(np.append(values[1:] != values[:-1], True)) + 1 if len(values) else np.empty(0, np.int64)
    return np.repeat(last, np.diff(last, prepend=0))
