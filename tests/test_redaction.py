from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenclean.redaction import holds_secret, redact

TOKEN = "hf_" + "aB3" * 11


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"401 for token {TOKEN}.", "401 for token hf_…."),
        (f"{TOKEN},{TOKEN}", "hf_…,hf_…"),
        ("cannot reach https://me:pass@word@mirror.org/a@b", "cannot reach https://…@mirror.org/a@b"),
        (f"https://{TOKEN}@huggingface.co/org/name", "https://…@huggingface.co/org/name"),
        ("http://user@host and s3://key:secret@bucket", "http://…@host and s3://…@bucket"),
    ],
)
def test_tokens_and_credentials_are_replaced(text, expected):
    assert holds_secret(text)
    assert redact(text) == expected
    assert not holds_secret(expected)


@pytest.mark.parametrize(
    "text", ["org/name@main", "https://host/path?mail=a@b", "hf_short", "hf_transfer", "me@example.org", "hf_…", ""]
)
def test_ordinary_text_is_left_alone(text):
    assert redact(text) == text
    assert not holds_secret(text)


@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN"])
def test_a_token_of_the_environment_is_replaced_whatever_it_looks_like(name, monkeypatch):
    monkeypatch.setenv(name, " odd-token-of-a-mirror\n")
    assert redact("Bearer odd-token-of-a-mirror refused") == "Bearer hf_… refused"
    monkeypatch.setenv(name, "a")
    assert redact("a banana") == "a banana"


def test_the_longer_of_two_tokens_leaves_no_rest(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "abcdefgh")
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "abcdefgh-and-more")
    assert redact("abcdefgh-and-more, abcdefgh") == "hf_…, hf_…"


@given(st.text(max_size=30), st.from_regex(r"hf_[A-Za-z0-9]{20,60}", fullmatch=True), st.text(max_size=30))
def test_no_token_survives_in_any_text(before, token, after):
    text = redact(before + token + after)
    assert token not in text
    assert redact(text) == text
