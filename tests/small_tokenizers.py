"""Small tokenizers of the kinds in use, each with just the tokens a test needs."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

EOS = "</s>"
SPECIAL = [
    *("<s>", "</s>", "<unk>", "[INST]", "[/INST]", "<|im_start|>", "<|im_end|>", "<|end|>"),
    *("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),
    *("[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
    *("<bos>", "<start_of_turn>", "<end_of_turn>"),
]


def byte_level(
    *words: str,
    trim_offsets: bool = False,
    rstrip: str = "",
    chat_template: str | None = None,
    eos: str = EOS,
    **options,
) -> PreTrainedTokenizerFast:
    """A token for each byte and for each of the words, spelled as text ("\\nA"), wherever they stand.

    ``trim_offsets``: with GPT-2's post-processor, whose offsets leave the leading space out. ``rstrip``: a special
    token that swallows the whitespace behind it. ``options`` go to the transformers tokenizer.
    """
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend = _bpe(
        sorted(pre_tokenizers.ByteLevel.alphabet()),
        ["".join(p for p, _ in pre_tokenizer.pre_tokenize_str(w)) for w in words],
    )
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    if trim_offsets:
        backend.post_processor = processors.ByteLevel(trim_offsets=True)
    backend.add_special_tokens([AddedToken(t, normalized=False, rstrip=t == rstrip) for t in SPECIAL])
    return _wrap(backend, eos, chat_template, **options)


def metaspace(*words: str, is_legacy: bool = False, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """SentencePiece's way: "▁" for a space, one in front of the text, characters not in the vocabulary as bytes.

    ``is_legacy``: the "▁" comes from the normalizer, behind every special token too (Llama-2), else from the
    pre-tokenizer.
    """
    backend = _bpe(
        ["▁", *(chr(c) for c in range(33, 127)), *(f"<0x{b:02X}>" for b in range(256))], words, byte_fallback=True
    )
    if is_legacy:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL])
    return _wrap(backend, EOS, chat_template)


def adding(tokenizer: PreTrainedTokenizerFast, template: str) -> PreTrainedTokenizerFast:
    """The same tokenizer with a post-processor that adds special tokens itself: "<s> $A", "$A </s>"."""
    ids = [(t, tokenizer.convert_tokens_to_ids(t)) for t in template.split() if t != "$A"]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return tokenizer


def _bpe(alphabet: Iterable[str], words: Iterable[str], **options) -> Tokenizer:
    vocabulary = {token: i for i, token in enumerate(alphabet)}
    merges = []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                vocabulary[word[:end]] = len(vocabulary)
                merges.append((word[: end - 1], word[end - 1]))
    return Tokenizer(models.BPE(vocabulary, merges, **options))


def _wrap(backend: Tokenizer, eos: str, chat_template: str | None, **options) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=eos,
        bos_token="<s>",
        unk_token="<unk>",
        chat_template=chat_template,
        **options,
    )
