from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from small_tokenizers import EOS, adding, byte_level, metaspace
from tokenclean.errors import PoolError, TemplateError
from tokenclean.pool import Conversation, Pool, Turn
from tokenclean.pool.conversation import LabelledTokens, ToolCall
from tokenclean.tokens import TokenizedPool, first_tokens_touching, render, tokenize_pool, tokens_touching

# No "s", so no special token: Llama-2 writes a space behind each.
TEXT = st.text(st.sampled_from("ab é🙂한\u0301\n\t <|>/1"), min_size=1, max_size=12)
WORDS = "🙂🏽 naïve e\u0301tude 你好, 안녕 \U0001f469\u200d\U0001f467 x"
CHATML = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"


def chat(*contents: str, line: int = 1) -> Conversation:
    """User and assistant in turn."""
    turns = tuple(Turn("assistant" if i % 2 else "user", content) for i, content in enumerate(contents))
    return Conversation(f"s:{line}:x", "s", turns, "chat", "s.jsonl", line)


def completion(prompt: str, answer: str) -> Conversation:
    return Conversation("s:1:x", "s", (Turn("user", prompt), Turn("assistant", answer)), "completion", "s.jsonl", 1)


def tokens_of(tokenizer, *conversations: Conversation, **options) -> TokenizedPool:
    return tokenize_pool(Pool(conversations), tokenizer, **options)


def targets_of(tokenizer, conversation: Conversation, **options) -> list[str]:
    """The target tokens of a conversation, each as it is spelled in the vocabulary."""
    tokens = tokens_of(tokenizer, conversation, **options)
    return tokenizer.convert_ids_to_tokens(tokens.input_ids[0][tokens.is_response[0]].tolist())


def decode(tokenizer, ids: np.ndarray) -> str:
    return tokenizer.backend_tokenizer.decode(ids.tolist(), skip_special_tokens=False)


def decode_targets(tokenizer, tokens: TokenizedPool, row: int = 0) -> str:
    return decode(tokenizer, tokens.input_ids[row][tokens.is_response[row]])


@pytest.fixture(scope="module")
def by_bytes():
    return byte_level(chat_template=CHATML)


@pytest.fixture(scope="module", params=["bytes", "bytes trimmed", "metaspace", "llama-2", "smollm2"])
def tokenizer(request, smollm2_tokenizer):
    made = {
        "bytes": byte_level,
        "bytes trimmed": lambda: byte_level(" a", " b", "ab", trim_offsets=True),
        "metaspace": lambda: metaspace("▁a", "ab"),
        "llama-2": lambda: metaspace("▁a", "ab", is_legacy=True),
        "smollm2": lambda: smollm2_tokenizer,
    }
    return made[request.param]()


# Few draws of many rows: copying a real tokenizer's backend takes a moment for each pool.
@settings(max_examples=6, deadline=None)
@given(pool=st.lists(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), min_size=10, max_size=40))
def test_targets_are_the_answers_and_their_eos(tokenizer, pool):
    tokens = tokens_of(tokenizer, *(chat(*(text for pair in texts for text in pair)) for texts in pool))
    for row, texts in enumerate(pool):
        expected = "".join(answer.strip() + tokenizer.eos_token for _, answer in texts)
        assert decode_targets(tokenizer, tokens, row) == expected
        assert not tokens.is_response[row][0]
    assert not tokens.is_truncated.any()


def test_columns(tokenizer):
    conversations = [chat("Hi", WORDS, line=1), completion("", "a b a"), chat("a", "b", "c", "d", line=3)]
    tokens = tokens_of(tokenizer, *conversations)
    assert len(tokens) == 3
    assert [c.dtype for c in (tokens.input_ids.values, tokens.is_response.values)] == [np.int64, np.bool_]
    assert [c.dtype for c in (tokens.char_start.values, tokens.char_end.values)] == [np.int32, np.int32]
    for column in (tokens.is_response, tokens.char_start, tokens.char_end):
        tokens.input_ids.check_aligned(column)
    assert tokens.ids == tuple(c.id for c in conversations)
    assert tokens.sources == ("s", "s", "s")
    assert [[c.turn for c in row] for row in tokens.contents] == [[1], [1], [1, 3]]
    assert tokens.unusable == ()
    for row, conversation in enumerate(conversations):
        assert not tokens.is_response[row][0]
        text = render(conversation, tokenizer).text
        expected = tokenizer(text).input_ids
        assert tokens.input_ids[row].tolist() == expected, "the ids are the tokenizer's own"
        assert np.all(np.diff(tokens.char_start[row]) >= 0)
        covered = np.zeros(len(text), bool)
        for start, end in zip(tokens.char_start[row], tokens.char_end[row], strict=True):
            covered[start:end] = True
        assert covered.all()


@pytest.mark.parametrize("content", [WORDS, "🙂", "한", "e\u0301\u0323", "\U0001f1e9\U0001f1ea"])
def test_all_byte_tokens_of_a_character_are_targets(tokenizer, content):
    tokens = tokens_of(tokenizer, chat("Hi", content, "🙂", content))
    assert decode_targets(tokenizer, tokens) == (content + tokenizer.eos_token) * 2


def test_characters_that_a_normalizer_composes_are_targets():
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    tokens = tokens_of(tokenizer, chat("Hi", "e\u0301\u1112\u1161\u11ab."))
    assert decode_targets(tokenizer, tokens) == "\u00e9\ud55c.</s>"
    assert tokens_touching(tokens, [(0, 1, 0, 1)]).values.sum() == 2
    assert decode(tokenizer, tokens.input_ids.values[tokens_touching(tokens, [(0, 1, 2, 3)]).values]) == "\ud55c"


@pytest.mark.parametrize("trim_offsets", [False, True])
def test_the_joining_space_is_a_target_with_its_word(trim_offsets):
    tokenizer = byte_level(" word", " a", trim_offsets=trim_offsets)
    assert targets_of(tokenizer, completion("x", "word a")) == ["Ġword", "Ġa", EOS]
    assert targets_of(tokenizer, completion("x", " word")) == ["Ġword", EOS]


@pytest.mark.parametrize("trim_offsets", [False, True])
def test_a_space_of_the_prompt_keeps_its_token_from_being_a_target(trim_offsets):
    tokenizer = byte_level(" word", " a", trim_offsets=trim_offsets)
    assert targets_of(tokenizer, completion("x ", "word a")) == ["Ġa", EOS]
    assert targets_of(tokenizer, completion("x\n", "word a")) == ["w", "o", "r", "d", "Ġa", EOS]


def test_metaspace_across_the_boundary():
    for tokenizer in (metaspace("▁word", "▁a"), metaspace("▁word", "▁a", is_legacy=True)):
        assert targets_of(tokenizer, completion("x", "word a")) == ["▁word", "▁a", EOS]
        assert targets_of(tokenizer, completion("x ", "word a")) == ["▁a", EOS]
        assert targets_of(tokenizer, completion("", "a word")) == ["▁word", EOS], "position 0 has no loss"


@pytest.mark.parametrize("word", ["\nA", ">\nA", "|>\nAB"])
def test_a_merge_over_tag_and_content_is_no_target_and_shifts_nothing(word):
    tokenizer = byte_level(word)
    tokens = tokens_of(tokenizer, chat("Hi", "ABC", "AH", "ABD", "H", "xA"))
    assert decode_targets(tokenizer, tokens) == "".join(
        content[len(word.split("\n")[1]) :] + EOS if content.startswith("A") else content + EOS
        for content in ("ABC", "ABD", "xA")
    )
    assert tokenizer.convert_tokens_to_ids(word.replace("\n", "Ċ")) in tokens.input_ids[0]


def test_a_merge_inside_the_tags_alone_changes_nothing():
    assert targets_of(byte_level(">\n", "<|assistant|>\n"), chat("a", "b")) == ["b", EOS]


def test_a_merge_over_content_and_the_next_tag():
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer = byte_level("b\n", " a", chat_template=template)
    assert targets_of(tokenizer, chat("a", "ab", "a", "aa"), template="tokenizer") == ["Ġa", "Ġa", "a"]


def test_bos_comes_once_where_the_tokenizer_adds_it():
    for tokenizer in (adding(byte_level(), "<s> $A"), adding(metaspace(), "<s> $A")):
        bos = tokenizer.bos_token_id
        tokens = tokens_of(tokenizer, chat("a", "b"), completion("", "ab"))
        assert [ids.tolist().count(bos) for ids in tokens.input_ids] == [1, 1]
        assert [ids[0] for ids in tokens.input_ids] == [bos, bos]
        assert [decode_targets(tokenizer, tokens, row).strip() for row in (0, 1)] == ["b</s>", "ab</s>"]
        assert (tokens.char_start[0][0], tokens.char_end[0][0]) == (0, 0)


def test_no_bos_where_the_tokenizer_adds_none(by_bytes):
    assert by_bytes.bos_token_id not in tokens_of(by_bytes, chat("a", "b"), completion("a", "b")).input_ids.values


def test_a_chat_template_writes_its_own_bos():
    tokenizer = adding(byte_level(chat_template="{{ bos_token }}" + CHATML), "<s> $A")
    tokens = tokens_of(tokenizer, chat("a", "b"), completion("a", "b"), template="tokenizer")
    assert [ids.tolist().count(tokenizer.bos_token_id) for ids in tokens.input_ids] == [1, 1]
    tokenizer.chat_template = CHATML
    tokens = tokens_of(tokenizer, chat("a", "b"), template="tokenizer")
    assert tokenizer.bos_token_id not in tokens.input_ids[0]
    assert decode_targets(tokenizer, tokens) == "b<|im_end|>"


@pytest.mark.parametrize("template", ["$A </s>", "<s> $A </s>"])
def test_eos_comes_once_where_the_tokenizer_appends_it(template):
    tokenizer = adding(byte_level(), template)
    tokens = tokens_of(tokenizer, chat("a", "b"), completion("a", "b"))
    assert [ids.tolist().count(tokenizer.eos_token_id) for ids in tokens.input_ids] == [1, 1]
    assert [ids[-1] for ids in tokens.input_ids] == [tokenizer.eos_token_id] * 2
    assert [decode_targets(tokenizer, tokens, row) for row in (0, 1)] == ["b</s>", " b</s>"]


def test_special_tokens_in_the_texts(by_bytes):
    tokens = tokens_of(by_bytes, chat("</s>?", "a</s>b<s>", "<s>", "<|im_end|>"))
    assert decode_targets(by_bytes, tokens) == "a</s>b<s></s><|im_end|></s>"
    assert (tokens.input_ids[0] == by_bytes.eos_token_id).sum() == 4


def test_an_end_token_that_swallows_whitespace_is_a_target():
    template = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    tokenizer = byte_level(rstrip="<|end|>", chat_template=template)
    tokens = tokens_of(tokenizer, chat("a", "b", "c", "d"), template="tokenizer")
    assert decode_targets(tokenizer, tokens) == "b<|end|>d<|end|>"
    newlines = tokens.input_ids[0] == tokenizer.convert_tokens_to_ids("Ċ")
    assert newlines.sum() == 4, "those behind the end tokens are swallowed"


def test_a_tag_that_swallows_whitespace_takes_no_content():
    template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    tokenizer = byte_level(rstrip="<|im_start|>", chat_template=template)
    assert targets_of(tokenizer, chat("a", "  b c"), template="tokenizer") == ["b", "Ġ", "c", "<|im_end|>"]


def test_the_leading_space_of_an_answer_is_a_target_with_its_word():
    mistral = """{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}{% else %}\
{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"""
    for tokenizer in (metaspace("▁Yes", chat_template=mistral), byte_level(" Yes", chat_template=mistral)):
        targets = targets_of(tokenizer, chat("a", "Yes", "b", "Yes"), template="tokenizer")
        assert [token.strip("▁Ġ") for token in targets] == ["Yes", EOS] * 2


def test_smollm2_by_its_own_template(smollm2_tokenizer):
    conversations = [chat("Hi", WORDS, "And?", " No. "), completion("1 + 1 =", "2")]
    tokens = tokens_of(smollm2_tokenizer, *conversations, template="tokenizer")
    assert decode_targets(smollm2_tokenizer, tokens) == f"{WORDS}<|im_end|> No. <|im_end|>"
    assert decode_targets(smollm2_tokenizer, tokens, 1) == " 2<|im_end|>"
    messages = [{"role": t.role, "content": t.content} for t in conversations[0].turns]
    text = smollm2_tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokens.input_ids[0].tolist() == smollm2_tokenizer(text).input_ids


def test_max_length_cuts_the_end(by_bytes):
    conversation = chat("Hi", "abcdef")
    whole = tokens_of(by_bytes, conversation)
    length = len(whole.input_ids[0])
    for cut in (length, length - 1, length - 3):
        tokens = tokens_of(by_bytes, conversation, max_length=cut)
        assert tokens.input_ids[0].tolist() == whole.input_ids[0][:cut].tolist()
        assert tokens.is_response[0].tolist() == whole.is_response[0][:cut].tolist()
        assert tokens.is_truncated.tolist() == [cut < length]
        assert tokens.unusable == ()
    with pytest.raises(ValueError, match=r"max_length\n.*greater than or equal to 2 .*input_value=1"):
        tokens_of(by_bytes, conversation, max_length=1)


def test_max_length_counts_the_bos():
    tokens = tokens_of(adding(byte_level(), "<s> $A"), completion("a", "b"), max_length=3)
    assert (tokens.input_ids.lengths.tolist(), tokens.is_truncated.tolist()) == ([3], [True])
    assert tokens.is_response[0].tolist() == [False, False, True]


def test_rows_without_a_target_stay_and_are_listed(by_bytes):
    refusing = byte_level(
        chat_template="{% if messages[0].content == 'no' %}{{ raise_exception('not this') }}{% endif %}" + CHATML
    )
    conversations = [
        chat("Hi", "a", line=1),
        chat("no", "b", line=2),
        chat("x" * 90, "c" * 300, line=3),
        chat("Hi", "d", line=4),
    ]
    tokens = tokens_of(refusing, *conversations, template="tokenizer", max_length=90)
    assert tokens.ids == tuple(c.id for c in conversations)
    assert tokens.is_response.row_sums().tolist() == [2, 0, 0, 2]
    assert tokens.input_ids.lengths[1:3].tolist() == [0, 90]
    assert tokens.is_truncated.tolist() == [False, False, True, False]
    assert [(row.file, row.line) for row in tokens.unusable] == [("s.jsonl", 2), ("s.jsonl", 3)]
    assert tokens.unusable[0].reason.endswith("refuses this conversation: not this")
    assert tokens.unusable[1].reason == "no target is left after the cut at 90 tokens"
    assert tokens.unusable[1].text == ("x" * 90 + " " + "c" * 300)[:200]
    assert tokens.contents[1] == ()


def test_a_row_whose_one_target_stands_first():
    tokenizer = byte_level("a</s>", eos="a</s>")
    tokens = tokens_of(tokenizer, Conversation("i", "s", (Turn("user", "a"),)), completion("", "a"))
    assert [row.reason for row in tokens.unusable] == ["no target"]


def test_unusable_rows_stand_in_row_order(by_bytes):
    refusing = byte_level(
        chat_template="{% if messages[0].content == 'no' %}{{ 1 // 0 }}{% endif %}" + CHATML,
    )
    conversations = [chat("x" * 50, "b", line=1), chat("no", "b", line=2), chat("x" * 50, "b", line=3), chat("no", "b")]
    tokens = tokens_of(refusing, *conversations, template="tokenizer", max_length=20)
    assert [row.line for row in tokens.unusable] == [1, 2, 3, 1]
    assert tokens.unusable[1].reason.endswith(
        "fails on this conversation: ZeroDivisionError: integer division or modulo by zero"
    )


def three_answers() -> Conversation:
    conversation = chat("a", "b", "c", "d", "e", "f")
    turns = conversation.turns
    return replace(conversation, turns=(*turns[:3], replace(turns[3], is_trained=False), *turns[4:]))


def test_targets_say_which_answers_are_trained(by_bytes):
    for template, end in (("tulu", "</s>"), ("tokenizer", "<|im_end|>")):
        expected = {"response": f"b{end}f{end}", "last_turn": f"f{end}"}
        for targets, text in expected.items():
            tokens = tokens_of(by_bytes, three_answers(), template=template, targets=targets)
            assert decode_targets(by_bytes, tokens) == text
            assert [c.turn for c in tokens.contents[0]] == [1, 3, 5], "an answer that is not trained keeps its place"
    with pytest.raises(ValueError, match=r"targets\n.*'response', 'last_turn' or 'all' .*input_value='each'"):
        tokens_of(by_bytes, three_answers(), targets="each")


def test_a_last_turn_that_is_not_trained_leaves_no_target(by_bytes):
    conversation = chat("a", "b", "c", "d")
    conversation = replace(
        conversation, turns=(*conversation.turns[:3], replace(conversation.turns[3], is_trained=False))
    )
    assert [row.reason for row in tokens_of(by_bytes, conversation, targets="last_turn").unusable] == ["no target"]
    excluded = replace(completion("a", "b"), turns=(Turn("user", "a"), Turn("assistant", "b", is_trained=False)))
    assert [row.reason for row in tokens_of(by_bytes, excluded).unusable] == ["no target"]


def test_all_trains_every_token_but_the_first(tokenizer):
    tokens = tokens_of(tokenizer, three_answers(), completion("x", "y"), text_row(WORDS), targets="all")
    for labels in tokens.is_response:
        assert labels.tolist() == [False] + [True] * (len(labels) - 1)
    assert tokens.unusable == ()
    assert tokens.input_ids[2].tolist() == tokenizer(WORDS + tokenizer.eos_token).input_ids
    assert tokens.input_ids[0].tolist() == tokens_of(tokenizer, three_answers()).input_ids[0].tolist()


def text_row(text: str) -> Conversation:
    return Conversation("s:1:x", "s", (Turn("assistant", text),), "text", "s.jsonl", 1)


def test_plain_text_has_targets_under_all_only(by_bytes):
    for targets in ("response", "last_turn"):
        tokens = tokens_of(by_bytes, text_row("ab"), targets=targets)
        assert tokens.input_ids.lengths.tolist() == [0]
        assert [row.reason.split("set ")[-1] for row in tokens.unusable] == ["tokens.targets: all"]


def tokenized(input_ids: list[int], labels: list[int]) -> Conversation:
    given_tokens = LabelledTokens(np.array(input_ids, np.int64), np.array(labels, bool))
    return Conversation("s:1:x", "s", (), "tokens", "s.jsonl", 1, tokens=given_tokens)


@pytest.mark.parametrize(
    ("targets", "labels"),
    [("response", [0, 1, 0, 1, 1, 0]), ("last_turn", [0, 0, 0, 1, 1, 0]), ("all", [0, 1, 1, 1, 1, 1])],
)
def test_a_tokenized_row_keeps_its_ids_and_labels(by_bytes, targets, labels):
    row = tokenized([9, 8, 7, 6, 5, 4], [1, 1, 0, 1, 1, 0])
    tokens = tokens_of(by_bytes, chat("a", "b"), row, chat("c", "d"), template="tokenizer", targets=targets)
    assert tokens.input_ids[1].tolist() == [9, 8, 7, 6, 5, 4]
    assert tokens.is_response[1].tolist() == [bool(label) for label in labels]
    assert tokens.char_start[1].tolist() == tokens.char_end[1].tolist() == [0] * 6
    assert tokens.contents[1] == ()
    assert row.tokens.is_response.tolist()[0], "the pool's own labels stay"
    assert "c" in decode(by_bytes, tokens.input_ids[2]), "its neighbours keep their texts"
    assert not tokens_touching(tokens, [(1, 1, 0, 9)]).values.any()


@given(labels=st.lists(st.booleans(), min_size=1, max_size=12))
@settings(max_examples=30, deadline=None)
def test_the_last_turn_of_a_tokenized_row_is_its_last_run(by_bytes, labels):
    tokens = tokens_of(by_bytes, tokenized([1] * len(labels), labels), targets="last_turn")
    text = "".join("x" if label else " " for label in labels)
    start = text.rstrip().rfind(" ") + 1
    expected = [label and place >= max(start, 1) for place, label in enumerate(labels)]
    assert tokens.is_response[0].tolist() == expected


def test_a_tokenized_row_is_cut_and_checked(by_bytes):
    largest = max(by_bytes.get_vocab().values())
    rows = [
        tokenized([1, 2, 3], [0, 0, 1]),
        tokenized([1, largest + 1], [0, 1]),
        tokenized([1, -1], [0, 1]),
        tokenized([1, largest], [0, 1]),
    ]
    tokens = tokens_of(by_bytes, *rows, max_length=2)
    assert tokens.input_ids.lengths.tolist() == [2, 0, 0, 2]
    assert tokens.is_truncated.tolist() == [True, False, False, False]
    assert [row.reason.split(",")[0] for row in tokens.unusable] == [
        "no target is left after the cut at 2 tokens",
        f"input_ids[1] is {largest + 1}",
        "input_ids[1] is -1",
    ]


def test_calls_and_reasoning_are_targets_to_the_token(tokenizer):
    turns = (
        Turn("user", "a"),
        Turn("assistant", "b", "hm", (ToolCall("f", '{"x": 1}'),)),
        Turn("tool", "c"),
        Turn("assistant", "d"),
    )
    tokens = tokens_of(tokenizer, Conversation("i", "s", turns, tools="[]"))
    eos = tokenizer.eos_token
    call = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
    assert decode_targets(tokenizer, tokens) == f"<think>\nhm\n</think>\n\nb\n{call}{eos}d{eos}"


def test_rows_keep_their_order_over_batches(by_bytes):
    conversations = [chat(str(i), f"<{i}>", line=i) for i in range(1100)]
    tokens = tokenize_pool(iter(conversations), by_bytes, max_length=40)
    assert tokens.ids == tuple(c.id for c in conversations)
    assert [decode_targets(by_bytes, tokens, row) for row in (0, 511, 512, 1099)] == [
        f"<{i}></s>" for i in (0, 511, 512, 1099)
    ]


def test_an_empty_pool(by_bytes):
    tokens = tokens_of(by_bytes)
    assert len(tokens) == 0
    assert tokens.take([]).ids == ()
    assert tokens_touching(tokens, []).values.dtype == bool


def test_the_callers_tokenizer_stays_as_it_is():
    tokenizer = byte_level(" a", trim_offsets=True)
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    before = tokenizer.backend_tokenizer.to_str()
    tokens = tokens_of(tokenizer, chat("Hi", "b a"))
    assert decode_targets(tokenizer, tokens) == "b a</s>"
    assert len(tokens.input_ids[0]) == 9 + 2 + 1 + 14 + 2 + 1
    assert tokenizer.backend_tokenizer.to_str() == before


def test_tokenizers_that_cannot_serve(by_bytes):
    slow = SimpleNamespace(is_fast=False, eos_token=EOS)
    with pytest.raises(PoolError, match="SimpleNamespace reports no character offsets"):
        tokens_of(slow, chat("a", "b"))
    with pytest.raises(TemplateError, match="unknown template"):
        tokens_of(by_bytes, chat("a", "b"), template="chatml")
    with pytest.raises(TemplateError, match="no chat template"):
        tokens_of(byte_level(), template="tokenizer")


def test_take(by_bytes):
    tokens = tokens_of(
        by_bytes, chat("a", "b", line=1), chat("c", "d" * 50, line=2), completion("e", "f"), max_length=40
    )
    for rows in ([2, 0], np.array([1, 1]), [-1], []):
        taken = tokens.take(rows)
        assert taken.ids == tuple(tokens.ids[r] for r in rows)
        assert taken.contents == tuple(tokens.contents[r] for r in rows)
        assert taken.is_truncated.tolist() == [bool(tokens.is_truncated[r]) for r in rows]
        for name in ("input_ids", "is_response", "char_start", "char_end"):
            column = getattr(taken, name)
            assert [v.tolist() for v in column] == [getattr(tokens, name)[r].tolist() for r in rows]
            assert column.values.dtype == getattr(tokens, name).values.dtype


def touched_text(tokenizer, tokens: TokenizedPool, *spans: tuple[int, int, int, int]) -> str:
    touched = tokens_touching(tokens, spans)
    tokens.input_ids.check_aligned(touched)
    return decode(tokenizer, tokens.input_ids.values[touched.values])


def test_the_first_token_of_each_span(by_bytes):
    tokens = tokens_of(by_bytes, chat("Hi", "  hello world \n", "and", "again"))
    spans = [(0, 1, 3, 6), (0, 1, 0, 4), (0, 1, 8, 13), (0, 3, 4, 5), (0, 1, 0, 2), (0, 1, 14, 15)]
    first = first_tokens_touching(tokens, spans)
    assert decode(by_bytes, tokens.input_ids.values[first.values]) == "hewn"
    assert not (first.values & ~tokens_touching(tokens, spans).values).any()
    assert first_tokens_touching(tokens, []).values.sum() == 0


def test_touching_a_stripped_content(by_bytes):
    tokens = tokens_of(by_bytes, chat("Hi", "  hello world \n"))
    for start, end, text in [
        (0, 2, ""),
        (0, 3, "h"),
        (2, 7, "hello"),
        (6, 9, "o w"),
        (8, 99, "world"),
        (13, 15, ""),
        (15, 99, ""),
        (4, 4, ""),
    ]:
        assert touched_text(by_bytes, tokens, (0, 1, start, end)) == text


def test_touching_takes_whole_tokens():
    tokenizer = byte_level("hello", " world")
    tokens = tokens_of(tokenizer, chat("Hi", " hello world", "🙂", "a🙂b"), completion("x", "world"))
    assert touched_text(tokenizer, tokens, (0, 1, 2, 3)) == "hello"
    assert touched_text(tokenizer, tokens, (0, 1, 5, 7)) == "hello world"
    assert touched_text(tokenizer, tokens, (0, 1, 4, 4)) == "", "an empty span shares no character"
    assert touched_text(tokenizer, tokens, (0, 3, 1, 2)) == "🙂"
    assert touched_text(tokenizer, tokens, (1, 1, 0, 1)) == " world"


def test_touching_several_turns_and_rows(by_bytes):
    tokens = tokens_of(by_bytes, chat("a", "bc", "d", " ef"), chat("a", "gh"))
    assert touched_text(by_bytes, tokens, (0, 1, 1, 2), (0, 3, 1, 2), (1, 1, 0, 9), (1, 1, 0, 1)) == "cegh"
    assert touched_text(by_bytes, tokens, (0, 0, 0, 1), (0, 2, 0, 1), (0, 9, 0, 1)) == "", "no assistant's turn"
    assert touched_text(by_bytes, tokens) == ""
    assert touched_text(by_bytes, tokens.take([1]), (0, 1, 0, 2)) == "gh"


def test_touching_what_was_cut(by_bytes):
    whole = tokens_of(by_bytes, chat("a", "bcdef"))
    tokens = tokens_of(by_bytes, chat("a", "bcdef"), max_length=len(whole.input_ids[0]) - 3)
    assert touched_text(by_bytes, tokens, (0, 1, 0, 5)) == "bcd"
    assert touched_text(by_bytes, tokens, (0, 1, 2, 4)) == "d"
    assert touched_text(by_bytes, tokens, (0, 1, 3, 5)) == ""


def test_touching_leaves_tokens_over_a_boundary_out():
    tokenizer = byte_level("\nA")
    assert touched_text(tokenizer, tokens_of(tokenizer, chat("a", "Abc")), (0, 1, 0, 2)) == "b"


@settings(deadline=None)
@given(content=TEXT, start=st.integers(0, 14), end=st.integers(0, 14))
def test_touching_is_slicing_the_stripped_content(by_bytes, content, start, end):
    tokens = tokens_of(by_bytes, chat("Hi", content))
    kept = range(len(content) - len(content.lstrip()), len(content.rstrip()))
    expected = "".join(content[c] for c in range(start, min(end, len(content))) if c in kept)
    assert touched_text(by_bytes, tokens, (0, 1, start, end)) == expected
