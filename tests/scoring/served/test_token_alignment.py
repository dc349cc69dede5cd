"""Losses of one tokenizer's tokens on another's, by characters: against a count character by character."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokenclean.scoring.served.alignment import place_tokens, spread, token_boundaries
from tokenclean.scoring.served.forms import UNKNOWN, ReturnedTokens
from tokenclean.tokens.encoding import exact_offset_backend

LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=12)


def cut(text: str, cuts: set[int]) -> list[str]:
    places = [0, *sorted(c for c in cuts if 0 < c < len(text)), len(text)]
    return [text[a:b] for a, b in pairwise(places)]


def returned(texts: list[str | None], losses: list[float | None]) -> ReturnedTokens:
    values = np.array([np.nan if loss is None else -loss for loss in losses])
    return ReturnedTokens(np.full(len(texts), UNKNOWN), tuple(texts), values)


@given(data=st.data(), lengths=LENGTHS)
def test_each_character_has_an_equal_part_and_the_sum_is_kept(data, lengths):
    total = sum(lengths)
    losses = np.array(data.draw(st.lists(st.floats(0, 20), min_size=len(lengths), max_size=len(lengths))))
    cuts = sorted(data.draw(st.sets(st.integers(1, total), max_size=8)) | {total})
    ours = spread(np.cumsum(lengths).astype(float), losses, np.array([0.0, *cuts]))
    by_character = np.repeat(losses / lengths, lengths)
    expected = [by_character[a:b].sum() for a, b in pairwise([0, *cuts])]
    np.testing.assert_allclose(ours, expected, atol=1e-9)
    assert ours.sum() == pytest.approx(losses.sum(), abs=1e-9)


@given(data=st.data(), lengths=LENGTHS)
def test_between_equal_tokenizations_nothing_changes(data, lengths):
    losses = np.array(data.draw(st.lists(st.floats(0, 20), min_size=len(lengths), max_size=len(lengths))))
    ends = np.cumsum(lengths).astype(float)
    np.testing.assert_allclose(spread(ends, losses, np.array([0.0, *ends])), losses, atol=1e-9)


def test_a_token_that_straddles_gives_each_its_share():
    # Theirs: "abcd" 4 nats, "ef" 1 nat. Ours: "a", "bcde", "f".
    ours = spread(np.array([4.0, 6.0]), np.array([4.0, 1.0]), np.array([0.0, 1.0, 5.0, 6.0]))
    assert ours.tolist() == [1.0, 3.5, 0.5]


def test_characters_of_a_first_token_without_a_loss_have_none():
    ours = spread(np.array([4.0, 6.0]), np.array([np.nan, 1.0]), np.array([0.0, 3.0, 5.0, 6.0]))
    assert np.isnan(ours).tolist() == [True, True, False]
    assert ours[2] == 0.5


@given(text=st.text(alphabet="ab \né日🙂", min_size=1, max_size=30), cuts=st.sets(st.integers(1, 29)))
def test_tokens_are_where_their_texts_are(text, cuts):
    pieces = cut(text, cuts)
    ends, losses = place_tokens(text, returned([*pieces], [1.0] * len(pieces)))
    np.testing.assert_array_equal(ends, np.cumsum([len(piece) for piece in pieces]))
    np.testing.assert_array_equal(losses, np.ones(len(pieces)))


@given(text=st.text(alphabet="ab é日🙂<", min_size=1, max_size=20), cuts=st.sets(st.integers(1, 40)))
@example(text="é🙂é", cuts={1, 3, 6})  # the first tokens are not text, and the next one is text at two places
def test_tokens_that_split_characters_keep_the_sum(text, cuts):
    """As a byte-level tokenizer splits them: what is no whole character is decoded to a sign for that."""
    content = text.encode()
    places = [0, *sorted(c for c in cuts if c < len(content)), len(content)]
    pieces = [content[a:b].decode(errors="replace") for a, b in pairwise(places)]
    ends, losses = place_tokens(text, returned([*pieces], [float(n) for n in range(len(pieces))]))
    assert ends[-1] == len(text)
    assert (np.diff([0.0, *ends]) > 0).all()
    assert losses.sum() == sum(range(len(pieces)))


@pytest.mark.parametrize(
    ("texts", "losses", "ends", "sums"),
    [
        (["<s>", "Hello", " you"], [None, 1, 2], [5, 9], [1, 2]),  # BOS by its name
        ([None, "Hello", " you"], [None, 1, 2], [5, 9], [1, 2]),  # BOS without a text
        ([None, " you"], [None, 2], [5, 9], [np.nan, 2]),  # the first token of the text without one
        (["Hello", " you"], [None, 2], [5, 9], [np.nan, 2]),
        (["Hello", "you"], [1, 2], [5, 9], [1, 2]),  # decoding dropped the blank
        (["▁Hello", "▁you"], [1, 2], [5, 9], [1, 2]),  # SentencePiece's own writing
        (["Hello", "<0x20>", "you"], [1, 2, 3], [5, 9], [1, 5]),  # the blank may be of either
        (["Hel", "", "lo you"], [1, 2, 3], [3, 9], [1, 5]),  # a token without characters
    ],
)
def test_how_servers_write_tokens(texts, losses, ends, sums):
    found = place_tokens("Hello you", returned(texts, losses))
    np.testing.assert_array_equal(found[0], ends)
    np.testing.assert_array_equal(found[1], sums)


@pytest.mark.parametrize("texts", [["Hello"], ["Hello", " you", " there"], ["hello", " you"], []])
def test_tokens_that_do_not_make_up_the_text_are_refused(texts):
    with pytest.raises(ValueError, match=r"the text goes on with|it returns no token"):
        place_tokens("Hello you", returned(texts, [1.0] * len(texts)))


@pytest.fixture(scope="module")
def backend(tiny_model_folder):
    from tokenclean.models.loading.load import load_tokenizer

    return exact_offset_backend(load_tokenizer(str(tiny_model_folder)))


@pytest.mark.parametrize("text", ["Hello, you there!", "Größe 価格 🙂\n\n x</s>", "🙂🙂", " a"])
def test_our_tokens_cover_the_text_without_gaps(backend, text):
    ids = backend.encode(text, add_special_tokens=False).ids
    for tokens in (ids, _letter_by_letter(backend, text)):
        found, boundaries = token_boundaries(backend, tokens)
        assert found == text
        assert boundaries[0] == 0
        assert boundaries[-1] == len(text)
        assert (np.diff(boundaries) > 0).all()


def test_a_character_in_several_tokens_is_shared_evenly(backend):
    ids = backend.encode("a🙂", add_special_tokens=False).ids
    _, boundaries = token_boundaries(backend, ids)
    assert len(ids) == 5  # the character has four bytes, and the tokenizer no merge for them
    assert boundaries.tolist() == [0, 1, 1.25, 1.5, 1.75, 2]


def _letter_by_letter(backend, text: str) -> list[int]:
    """Ids that the tokenizer would not give for the text."""
    parts = [*text.removesuffix("</s>"), *(["</s>"] if text.endswith("</s>") else [])]
    return [id for part in parts for id in backend.encode(part, add_special_tokens=False).ids]
