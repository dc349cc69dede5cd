"""Slot errors on made-up texts; against E2E's labels where the data are at hand."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from tokenclean.evaluation.slot_errors import SlotErrors, find_slot_errors, read_slots, slot_error_rate

DATA = "name[The Mill], eatType[pub], food[French], customer rating[1 out of 5], familyFriendly[no], near[Café Rouge]"


def test_slots():
    assert read_slots(DATA) == {
        "name": "The Mill",
        "eat_type": "pub",
        "food": "French",
        "rating": "1 out of 5",
        "family_friendly": "no",
        "near": "Café Rouge",
    }
    with pytest.raises(ValueError, match="expected slots such as"):
        read_slots("The Mill is a pub.")


@pytest.mark.parametrize(
    ("text", "missing", "wrong", "added"),
    [
        ("Mill, a French pub near Cafe Rouge, is not family-friendly and has a low customer rating.", (), (), ()),
        ("The Mill is a pub near Café Rouge.", ("food", "rating", "family_friendly"), (), ()),
        (
            "The Mill, a kid friendly Italian restaurant by the river near Café Rouge, is rated 5 out of 5.",
            (),
            ("eat_type", "food", "rating", "family_friendly"),
            ("area",),
        ),
        ("", ("name", "eat_type", "food", "rating", "family_friendly", "near"), (), ()),
    ],
)
def test_errors(text, missing, wrong, added):
    assert find_slot_errors(DATA, text) == SlotErrors(missing, wrong, added, 6)


def test_the_neighbour_s_name_says_nothing_of_the_place():
    data = "name[Cocum], eatType[pub], near[Café Brazil]"
    assert find_slot_errors(data, "Cocum is a pub near Café Brazil.") == SlotErrors((), (), (), 3)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("less than £20", "It is cheap."),
        ("cheap", "You pay less than £20."),
        ("£20-25", "moderately priced"),
        ("more than £30", "an expensive place"),
        ("high", "high-priced"),
    ],
)
def test_prices_that_mean_the_same(value, text):
    assert find_slot_errors(f"priceRange[{value}]", text) == SlotErrors((), (), (), 1)


def test_a_value_without_known_words_is_looked_for_as_it_is():
    assert find_slot_errors("music[jazz]", "They play Jazz.").missing == ()
    assert find_slot_errors("music[jazz]", "They play rock.").missing == ("music",)
    assert find_slot_errors("food[Thai]", "French food").missing == ("food",)


def test_the_rate_is_the_mean_over_texts():
    found = slot_error_rate([DATA, "name[Cocum], eatType[pub]"], ["The Mill near Café Rouge", "Cocum is a pub."])
    assert found.mean == pytest.approx((4 / 6 + 0) / 2)
    with pytest.raises(ValueError, match="shorter"):
        slot_error_rate([DATA, DATA], ["one"])


NOISE_DATA = Path(os.environ.get("TOKENCLEAN_NOISE_DATA", "."), "e2e.jsonl")


@pytest.mark.skipif(not NOISE_DATA.is_file(), reason="TOKENCLEAN_NOISE_DATA names no folder with e2e.jsonl")
def test_against_the_labels_of_e2e():
    counts: Counter[tuple[str, str]] = Counter()
    for line in NOISE_DATA.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        errors = find_slot_errors(row["prompt"].split("\n\n")[1], row["response"])
        found = {(kind, slot) for kind in ("missing", "wrong", "added") for slot in getattr(errors, kind)}
        labelled = {("missing", slot) for slot in row["missing"]}
        labelled |= {("wrong" if k.startswith("value:") else "added", k.split(":")[1]) for _, _, k in row["noise"]}
        for group, slots in (("both", found & labelled), ("found", found), ("labelled", labelled)):
            counts.update((group, kind) for kind, _ in slots)
    least = {"missing": (0.9, 0.75), "wrong": (0.8, 0.45), "added": (0.9, 0.9)}
    for kind, (precision, recall) in least.items():
        assert counts["both", kind] / counts["found", kind] > precision
        assert counts["both", kind] / counts["labelled", kind] > recall
