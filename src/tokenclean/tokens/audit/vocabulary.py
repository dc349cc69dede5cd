"""What the audit has to know of a tokenizer: the text of each id, and which ids end, begin or mark something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenclean.errors import TemplateError
from tokenclean.tokens.inference_template import end_token_ids
from tokenclean.tokens.rendering import check_template
from tokenclean.tokens.role_markers import KNOWN_ENDS, KNOWN_OPENERS
from tokenclean.tokens.tokenize import backend_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A tokenizer's ids.

    ``added``: text -> id of the tokens that stand outside its merges. ``special``: id -> text of those among them that
    are control tokens. ``ends``: ids that may end an answer: EOS, the end token of its templates, and those of
    templates in use. ``control``: ``ends``, BOS and the ids that open a turn. ``largest_id``: of all.
    """

    tokenizer: PreTrainedTokenizerBase
    backend: Tokenizer
    added: dict[str, int]
    special: dict[int, str]
    ends: frozenset[int]
    control: frozenset[int]
    bos: int | None
    pad: int | None
    largest_id: int
    _pieces: dict[int, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
        """Raises PoolError for a tokenizer without offsets, TemplateError for one without EOS."""
        backend = backend_of(tokenizer, "the audit needs")
        tokens = tokenizer.added_tokens_decoder
        added = {str(token.content): int(number) for number, token in tokens.items()}
        ends = {added[text] for text in KNOWN_ENDS if text in added}
        ends.update(end_token_ids(tokenizer, "tulu"), _ends_of_chat_template(tokenizer))
        bos, pad = (_single(tokenizer.bos_token_id), _single(tokenizer.pad_token_id))
        openers = {added[text] for text in KNOWN_OPENERS if text in added}
        return cls(
            tokenizer,
            backend,
            added,
            {int(number): str(token.content) for number, token in tokens.items() if token.special},
            frozenset(ends),
            frozenset(ends | openers | ({bos} if bos is not None else set())),
            bos,
            pad,
            max(backend.get_vocab().values()),
        )

    def spell(self, input_ids: np.ndarray) -> tuple[str, np.ndarray]:
        """The text of the ids, token by token, and the characters of each, int64 (L, 2).

        A token that is part of a character stands as U+FFFD, so the text is for finding places, not for reading.
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
        piece = self._pieces.get(number)
        if piece is None:
            text = self.special.get(number)
            if text is None:
                text = self.decode([number]) if 0 <= number <= self.largest_id else "\ufffd"
            piece = self._pieces[number] = text
        return piece

    @cached_property
    def _in_front(self) -> tuple[list[int], str]:
        """Ids of a letter, and its text: SentencePiece drops the space at the start of what it decodes."""
        ids = self.backend.encode("a", add_special_tokens=False).ids
        return ids, self.backend.decode(ids)


def _ends_of_chat_template(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """None where the tokenizer has no chat template, or one that refuses a question and its answer."""
    try:
        check_template(tokenizer, "tokenizer")
        return end_token_ids(tokenizer, "tokenizer")
    except TemplateError:
        return []


def _single(token_id: Any) -> int | None:
    return int(token_id) if isinstance(token_id, int) else None
