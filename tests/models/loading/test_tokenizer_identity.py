from __future__ import annotations

import copy
import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tokenclean.errors import TokenizerMismatchError
from tokenclean.models.loading.tokenizer_identity import check_same_tokenizer

TEXTS = ["abab  ab cab", "a <eot> b", "Ünïcode ab\n"]


def bpe_state() -> dict:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "b"), ("ab", "ab"), ("c", "ab"), ("Ġ", "ab")]
    vocabulary = {token: i for i, token in enumerate([*alphabet, *("".join(m) for m in merges), "<unk>"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<bos>", "<eot>", "<pad>"])
    return json.loads(backend.to_str())


def tokenizer(state: dict, **roles) -> PreTrainedTokenizerFast:
    roles = {"bos_token": "<bos>", "eos_token": "<eot>", **roles}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), **roles)


@pytest.fixture
def state() -> dict:
    return bpe_state()


@pytest.fixture
def base(state):
    return tokenizer(copy.deepcopy(state))


def test_the_same_tokenizer_has_no_difference(base, state):
    assert check_same_tokenizer(base, base, TEXTS) == []
    assert check_same_tokenizer(base, tokenizer(state), TEXTS) == []


def test_other_roles_and_templates_are_allowed_and_reported(base, state):
    state["post_processor"] = json.loads(
        _with_processor(state, processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 260)]))
    )["post_processor"]
    reference = tokenizer(state, eos_token="<pad>", pad_token="<pad>")
    reference.chat_template = "{{ messages[0]['content'] }}"
    assert check_same_tokenizer(base, reference, TEXTS) == [
        "eos_token: base <eot>, reference <pad>",
        "pad_token: base None, reference <pad>",
        "BOS and EOS are added around a text differently",
        "chat templates differ",
    ]


def _with_processor(state, processor) -> str:
    backend = Tokenizer.from_str(json.dumps(state))
    backend.post_processor = processor
    return backend.to_str()


def test_truncation_and_padding_of_a_reference_are_no_difference(base, state):
    """Training with truncation or padding leaves them in the saved tokenizer.json."""
    reference = tokenizer(state)
    reference.backend_tokenizer.enable_truncation(4)
    reference.backend_tokenizer.enable_padding(length=32)
    assert check_same_tokenizer(base, reference, TEXTS) == []
    assert reference.backend_tokenizer.truncation["max_length"] == 4


def other_id(state):
    vocabulary = state["model"]["vocab"]
    vocabulary["abab"], vocabulary["cab"] = vocabulary["cab"], vocabulary["abab"]


def renamed_token(state):
    vocabulary = state["model"]["vocab"]
    vocabulary["<other>"] = vocabulary.pop("<unk>")


def one_token_more(state):
    state["added_tokens"].append({**state["added_tokens"][-1], "id": 264, "content": "<more>"})


def merges_swapped(state):
    merges = state["model"]["merges"]
    merges[1], merges[2] = merges[2], merges[1]


def one_merge_less(state):
    state["model"]["merges"].pop()


def ignoring_merges(state):
    state["model"]["ignore_merges"] = True


def normalizer(state):
    state["normalizer"] = {"type": "NFC"}


def pre_tokenizer(state):
    state["pre_tokenizer"]["add_prefix_space"] = True


def added_token_flag(state):
    [token] = [t for t in state["added_tokens"] if t["content"] == "<eot>"]
    token["lstrip"] = True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_id, r"the token 'abab' has another id \(base: 257; reference: 258\)"),
        (renamed_token, r"the token '<unk>' has another id \(base: 260; reference: none\)"),
        (one_token_more, r"the token '<more>' has another id \(base: none; reference: 264\)"),
        (merges_swapped, r"merge 1 differs \(base: \['ab', 'ab'\]; reference: \['c', 'ab'\]\)"),
        (one_merge_less, r"different numbers of merges \(base: 4; reference: 3\)"),
        (ignoring_merges, r"the setting 'ignore_merges' of their models differs"),
        (normalizer, r"their normalizers differ \(base: None; reference: \{'type': 'NFC'\}\)"),
        (pre_tokenizer, r"their pre-tokenizers differ"),
        (added_token_flag, r"the added token '<eot>' is found differently"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_difference_in_ids_is_refused_and_named(change, message, base, state):
    change(state)
    with pytest.raises(TokenizerMismatchError, match=message):
        check_same_tokenizer(base, tokenizer(state), TEXTS)


def test_other_unigram_scores_are_refused():
    """Same tokens, same ids, another segmentation."""
    scores = [("<unk>", 0.0), ("a", -1.0), ("b", -1.0), ("ab", -1.5)]
    other = [*scores[:3], ("ab", -9.0)]
    first, second = (
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram(s, unk_id=0, byte_fallback=False)))
        for s in (scores, other)
    )
    assert first.backend_tokenizer.encode("ab").ids != second.backend_tokenizer.encode("ab").ids
    assert check_same_tokenizer(first, first, ["ab"]) == []
    with pytest.raises(TokenizerMismatchError, match=r"Unigram score of a token differs \(base: \['ab', -1.5\]"):
        check_same_tokenizer(first, second, [])


def test_texts_are_the_last_resort(base, state, monkeypatch):
    """A part that is not compared by itself (here: the model's own settings) still shows in the ids."""
    monkeypatch.setattr("tokenclean.models.loading.tokenizer_identity._model_differences", lambda *_: iter(()))
    merges_swapped(state)
    state["model"]["merges"] = state["model"]["merges"][:1]
    with pytest.raises(TokenizerMismatchError, match="the text 'abab  ab cab' gets other ids"):
        check_same_tokenizer(base, tokenizer(state), TEXTS)
