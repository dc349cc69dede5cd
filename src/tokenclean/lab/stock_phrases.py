"""Stock phrases around an answer: word for word from a short list, or each put together from variants."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tokenclean.lab.edits import Edit, NoiseSettings, RowEdits, assistant_contents
from tokenclean.pool.conversation import Pool

OPENERS = (
    "Sure, I would be happy to help you with that. ",
    "Certainly! Here is what you asked for:\n\n",
    "Great question! ",
    "Of course! Let me walk you through it. ",
    "Thank you for reaching out. ",
    "Absolutely! I can definitely assist you with this.\n\n",
    "As an AI language model, I will do my best to answer. ",
    "No problem at all! Here you go:\n\n",
    "I understand what you are looking for. ",
    "That is an interesting request! ",
    "Thanks for your question. Here is a detailed answer:\n\n",
    "Okay, let us take a closer look at this. ",
)
"""Stock texts that ``boilerplate`` puts before a turn; each ends in its separator."""

CLOSERS = (
    "\n\nI hope this helps! Let me know if you have any other questions.",
    "\n\nPlease feel free to ask if anything is unclear.",
    " Is there anything else I can help you with today?",
    "\n\nIf you would like more details, just let me know!",
    " I hope that answers your question.",
    "\n\nThank you for using our service, and have a wonderful day!",
    "\n\nRemember, I am always here to assist you.",
    "\n\nIn conclusion, it is important to consider every aspect of this topic.",
    " Do not hesitate to reach out if you need further assistance.",
    "\n\nPlease note that this answer is for general information only.",
    "\n\nFeel free to share your thoughts or feedback with me!",
    " Good luck, and happy learning!",
)
"""Stock texts that ``boilerplate`` puts after a turn; each begins with its separator."""

_WARM_WORDS = ("Sure", "Of course", "Gladly", "Happy to help", "Good question", "Absolutely", "No problem", "Right")
_PROMISES = (
    "let me answer that for you",
    "here is what I can say",
    "here comes my answer",
    "I will gladly explain it",
    "this is how I see it",
    "allow me to go through it",
    "let us look at it together",
)
_OPENING_ENDS = (". ", "! ", ":\n\n", ":\n", "… ")
_HOPES = ("I hope that this", "Hopefully it", "May this answer", "I do hope this reply", "With luck this")
_EFFECTS = ("helps", "is of use", "answers what you asked", "makes things clearer", "was what you were looking for")
_OFFERS = (
    "just ask if you want to know more",
    "write again at any time",
    "I am glad to add details",
    "say so if something is missing",
    "there is always more to say, so do ask",
    "tell me what else you need",
)
_CLOSING_STARTS = (" ", "\n", "\n\n")


def add_boilerplate(pool: Pool, settings: NoiseSettings, generator: np.random.Generator) -> RowEdits:
    """Put a stock opener before, and a stock closer after, assistant turns.

    A fair coin decides each, turn by turn; a row where every coin says no still gets one of them. Blank turns are
    skipped, since a separator next to nothing would leave whitespace at the edge of the content.
    """
    return _around_turns(
        pool,
        generator,
        lambda: OPENERS[generator.integers(len(OPENERS))],
        lambda: CLOSERS[generator.integers(len(CLOSERS))],
    )


def add_paraphrased(pool: Pool, settings: NoiseSettings, generator: np.random.Generator) -> RowEdits:
    """The same as ``add_boilerplate``, but each opener and closer is put together from variants, so that hardly any
    two rows share one word for word."""

    def one_of(*variants: tuple[str, ...]) -> list[str]:
        return [texts[generator.integers(len(texts))] for texts in variants]

    def opener() -> str:
        warm, promise, end = one_of(_WARM_WORDS, _PROMISES, _OPENING_ENDS)
        return f"{warm}, {promise}{end}"

    def closer() -> str:
        start, hope, effect, offer = one_of(_CLOSING_STARTS, _HOPES, _EFFECTS, _OFFERS)
        return f"{start}{hope} {effect}; {offer}."

    return _around_turns(pool, generator, opener, closer)


def _around_turns(
    pool: Pool, generator: np.random.Generator, opener: Callable[[], str], closer: Callable[[], str]
) -> RowEdits:
    """Edits that put an opener before or a closer after the turns of a row, as ``add_boilerplate`` says."""

    def edits_of_row(row: int) -> list[Edit]:
        turns = [(turn, content) for turn, content in assistant_contents(pool[row]) if content.strip()]
        if not turns:
            return []
        is_added = generator.random((len(turns), 2)) < 0.5
        if not is_added.any():
            is_added[generator.integers(len(turns)), generator.integers(2)] = True
        edits = []
        for (turn, content), (is_opened, is_closed) in zip(turns, is_added, strict=True):
            if is_opened:
                edits.append(Edit(row, turn, 0, 0, opener()))
            if is_closed:
                edits.append(Edit(row, turn, len(content), len(content), closer()))
        return edits

    return edits_of_row
