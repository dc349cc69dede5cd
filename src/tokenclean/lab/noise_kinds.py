"""Every kind of noise by its name."""

from __future__ import annotations

from tokenclean.lab.edits import NoiseKind
from tokenclean.lab.replaced_parts import change_numbers, corrupt_words, replace_names
from tokenclean.lab.stock_phrases import add_boilerplate, add_paraphrased
from tokenclean.lab.wrong_passages import add_off_topic, repeat_sentences, replace_with_foreign, swap_answers

NOISE_KINDS: dict[str, NoiseKind] = {
    "corrupted": corrupt_words,
    "numbers": change_numbers,
    "names": replace_names,
    "other_language": replace_with_foreign,
    "swapped": swap_answers,
    "off_topic": add_off_topic,
    "loops": repeat_sentences,
    "boilerplate": add_boilerplate,
    "paraphrased": add_paraphrased,
}
"""Every kind by name: where two would change the same characters, the first of this order does."""
