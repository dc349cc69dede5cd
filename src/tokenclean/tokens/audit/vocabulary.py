"""What the audit has to know of a tokenizer: the text of each id, and which ids end, begin or mark something."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from tokenclean.errors import TemplateError
from tokenclean.tokens.encoding import backend_of
from tokenclean.tokens.inference_template import end_token_ids
from tokenclean.tokens.templates import check_template
from tokenclean.tokens.turn_markers import KNOWN_ENDS, KNOWN_OPENERS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Vocabulary:
    """A tokenizer's ids. Raises PoolError for a tokenizer without offsets, TemplateError for one without EOS.

    ``added``: text -> id of the tokens outside the tokenizer's merges. ``special``: id -> text of the control tokens
    among them. ``ends``: ids that may end an answer: EOS, the end token of its templates, and those of templates in
    use. ``control``: ``ends``, BOS and the ids that open a turn. ``largest_id``: of all ids.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self.backend = tokenizer, backend_of(tokenizer, "the audit needs")
        tokens = tokenizer.added_tokens_decoder
        self.added = {str(token.content): int(number) for number, token in tokens.items()}
        self.special = {int(number): str(token.content) for number, token in tokens.items() if token.special}
        self.bos, self.pad = _single(tokenizer.bos_token_id), _single(tokenizer.pad_token_id)
        ends = {*end_token_ids(tokenizer, "tulu"), *_ends_of_chat_template(tokenizer)}
        self.ends = ends | {self.added[text] for text in KNOWN_ENDS if text in self.added}
        openers = {self.added[text] for text in KNOWN_OPENERS if text in self.added}
        self.control = self.ends | openers | ({self.bos} - {None})
        self.largest_id = max(self.backend.get_vocab().values())
        self._pieces: dict[int, str] = {}

    def spell(self, input_ids: np.ndarray) -> tuple[str, np.ndarray]:
        """The text of the ids, token by token, and the characters of each, int64 (L, 2).

        A token that is part of a character becomes U+FFFD, so the text is for finding places, not for reading.
        """
        pieces = [self._piece(number) for number in input_ids.tolist()]
        lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
        ends = np.cumsum(lengths)
        return "".join(pieces), np.stack([ends - lengths, ends], axis=1)

    def decode(self, input_ids: Sequence[int]) -> str:
        """The text of a run of ids from the middle of a row: the space in front of its first word stays."""
        ids, letter = self._in_front
        whole = self.backend.decode([*ids, *input_ids], skip_special_tokens=False)
        if whole.startswith(letter):
            return whole[len(letter) :]
        return self.backend.decode(list(input_ids), skip_special_tokens=False)

    def is_token(self, text: str, input_ids: np.ndarray, starts: np.ndarray, character: int) -> bool:
        """Whether this text at that character is the token of it; True for a text that is no token of its own."""
        if text not in self.added:
            return True
        first, last = np.searchsorted(starts, [character, character + 1])
        return self.added[text] in input_ids[first:last].tolist()

    @cached_property
    def end_texts(self) -> tuple[str, ...]:
        """Texts that may end an answer that was rendered here: of every control token, since a template may end one
        by any of them (Llama 3 some calls by ``<|eom_id|>``, GLM by the tag of the next turn), and of the ends of known
        templates, which another tokenizer spells out."""
        return tuple({*self.special.values(), *KNOWN_ENDS, str(self.tokenizer.eos_token)})

    def _piece(self, number: int) -> str:
        if number not in self._pieces:
            is_known = 0 <= number <= self.largest_id
            self._pieces[number] = self.special.get(number) or (self.decode([number]) if is_known else "\ufffd")
        return self._pieces[number]

    @cached_property
    def _in_front(self) -> tuple[list[int], str]:
        """Ids of a letter, and its text: SentencePiece drops the space at the start of what it decodes."""
        ids = self.backend.encode("a", add_special_tokens=False).ids
        return ids, self.backend.decode(ids)


def _ends_of_chat_template(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """None if the tokenizer has no chat template, or one that refuses a question and its answer."""
    try:
        check_template(tokenizer, "tokenizer")
        return end_token_ids(tokenizer, "tokenizer")
    except TemplateError:
        return []


def _single(token_id: object) -> int | None:
    return token_id if isinstance(token_id, int) else None
