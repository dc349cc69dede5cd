"""Slot errors of texts that describe a restaurant by its data, as in E2E: slots left out, wrong, or added.

The matcher looks for the words by which people say each value, so it is an estimate: a value said in words that it
does not know counts as missing. What it finds was compared with E2E's own labels
(``tests/evaluation/test_slot_errors.py``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tokenclean.evaluation.intervals import Interval, mean_interval

_SLOT = re.compile(r"([A-Za-z][A-Za-z ]*?)\s*\[([^\]]*)\]")
_NAMES = {"customer rating": "rating"}

# Values on one line are said in the same words, so that none of them is an error for another.
_PRICES = {
    ("cheap", "less than £20"): r"\bcheap|low(?:er)?[- ](?:pric|cost)|inexpensive|affordable|prices? (?:is|are) low"
    r"|low (?:price|cost)|(?:less|under|below|lower|cheaper)(?: than)? ?£? ?20|up to £? ?20",
    (
        "moderate",
        "£20-25",
    ): r"moderate|mid[- ]?(?:pric|range)|average[- ](?:pric|cost)|reasonabl|20 ?(?:-|–|to|and) ?£? ?25",
    ("high", "more than £30"): r"high(?:er|ly)?[- ](?:pric|cost|end)|expensive|pric\w* (?:is|are|range is) high"
    r"|(?:more|over|above|higher|greater)(?: than)? ?£? ?30",
}
_RATINGS = {
    ("low", "1 out of 5"): r"\b(?:1|one)(?: stars?)? (?:out )?of (?:5|five)|\b1/5|\b(?:1|one)[- ]star|low(?:ly|er)?[- ]"
    r"(?:customer|rat|rank|review)|poor(?:ly)?[- ](?:customer|rat|review)|bad(?:ly)? (?:customer |rat|review)"
    r"|rat\w* (?:is |as |of )?(?:low|poor)|not well rated",
    (
        "average",
        "3 out of 5",
    ): r"\b(?:3|three)(?: stars?)? (?:out )?of (?:5|five)|\b3/5|\b(?:3|three)[- ]star|average(?:ly)?[- ]"
    r"(?:customer|rat|rank|review)|average (?:rating|customer)|rat\w* (?:is |as |of )?average",
    (
        "high",
        "5 out of 5",
    ): r"\b(?:5|five)(?: stars?)? (?:out )?of (?:5|five)|\b5/5|\b(?:5|five)[- ]star|high(?:ly|er|est)?[- ]"
    r"(?:customer|rat|rank|review|recommend)|(?:top|well|excellent)[- ]rat|excellent (?:customer|review)"
    r"|rat\w* (?:is |as |of )?(?:high|excellent)",
}
_SAID_AS: Mapping[str, Mapping[tuple[str, ...], str]] = {
    "area": {
        ("riverside",): r"\briver",
        ("city centre",): r"\bcent(?:re|er)\b|\bcentral\b|downtown|heart of the city",
    },
    "eat_type": {
        ("coffee shop",): r"\bcoff?ee\b|\bcaf[eé]s?\b",
        ("pub",): r"\bpubs?\b",
        ("restaurant",): r"\brestaurants?\b",
    },
    "food": {
        ("English",): r"\benglish\b|\bbritish\b",
        ("Chinese",): r"\bchinese\b",
        ("French",): r"\bfrench\b",
        ("Japanese",): r"\bjapanese\b|\bsushi\b",
        ("Fast food",): r"\bfast[- ]?food\b|\bburgers?\b",
        ("Italian",): r"\bitalian\b|\bpasta\b|\bpizza",
        ("Indian",): r"\bindian\b|\bcurr(?:y|ies)\b",
    },
    "price_range": _PRICES,
    "rating": _RATINGS,
}
_FAMILY = r"famil|\bkids?\b|\bchild"
_NO_FAMILY = (
    rf"(?:\bnot?\b|n['’]t\b|\bnon\b|\bnon-|\bun|\bnever\b|without|discourag)[^.;]{{0,32}}?(?:{_FAMILY})"
    rf"|(?:{_FAMILY})\w*[^.;,]{{0,24}}?(?:\bnot\b|n['’]t\b|unwelcome|unfriendly)|adults?[- ]only|only (?:for )?adults"
)


@dataclass(frozen=True)
class SlotErrors:
    """Of one text: slots of its data that it leaves ``missing`` or gets ``wrong``, and others that it has ``added``;
    ``slots``: how many the data have."""

    missing: tuple[str, ...]
    wrong: tuple[str, ...]
    added: tuple[str, ...]
    slots: int

    @property
    def rate(self) -> float:
        """Errors over slots; above 1 where more is added than was there."""
        return (len(self.missing) + len(self.wrong) + len(self.added)) / self.slots


def read_slots(data: str) -> dict[str, str]:
    """Slots of ``name[The Mill], eatType[pub]``: names in snake case, such as ``eat_type``. Raises ValueError where the
    text has none."""
    slots = {}
    for name, value in _SLOT.findall(data):
        snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.strip()).lower()
        slots[_NAMES.get(snake, snake.replace(" ", "_"))] = value.strip()
    if not slots:
        raise ValueError(f"expected slots such as name[The Mill], eatType[pub], found {data!r:.80}")
    return slots


def find_slot_errors(data: str, text: str) -> SlotErrors:
    """Errors of ``text`` against its ``data``. A slot whose value the matcher knows no words for is looked for as it
    is written. Raises ValueError for data without slots."""
    slots = read_slots(data)
    rest = text
    for name in ("name", "near"):  # which may hold words of other slots, such as Café
        if name in slots:
            rest = re.sub(_literal(slots[name]), " ", rest, flags=re.IGNORECASE)
    missing, wrong = [], []
    for name, value in slots.items():
        if name == "family_friendly" or name in _SAID_AS:
            said = _said_values(name, rest)
            if not any(value in values for values in said):
                (wrong if said and _is_known(name, value) else missing).append(name)
        elif not re.search(_literal(value), text, re.IGNORECASE):
            missing.append(name)
    added = [name for name in ("family_friendly", *_SAID_AS) if name not in slots and _said_values(name, rest)]
    return SlotErrors(tuple(missing), tuple(wrong), tuple(added), len(slots))


def slot_error_rate(data: Sequence[str], texts: Sequence[str]) -> Interval:
    """Mean over texts of errors over slots, with its 95 % interval over texts. Raises ValueError for fewer than two
    texts or another number of data."""
    return mean_interval(np.array([find_slot_errors(d, t).rate for d, t in zip(data, texts, strict=True)]))


def _said_values(name: str, text: str) -> list[tuple[str, ...]]:
    """The groups of values that the text says of a slot."""
    if name == "family_friendly":
        if re.search(_NO_FAMILY, text, re.IGNORECASE):
            return [("no",)]
        return [("yes",)] if re.search(_FAMILY, text, re.IGNORECASE) else []
    return [values for values, words in _SAID_AS[name].items() if re.search(words, text, re.IGNORECASE)]


def _is_known(name: str, value: str) -> bool:
    return name == "family_friendly" or any(value in values for values in _SAID_AS[name])


def _literal(value: str) -> str:
    """A pattern of the value, with or without ``The`` and accents."""
    words = re.escape(re.sub(r"^the ", "", value, flags=re.IGNORECASE))
    return rf"\b(?:the )?{words.replace('é', '[eé]')}\b"
