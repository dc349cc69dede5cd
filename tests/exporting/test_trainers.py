"""The exact content of each trainer's files, for conversations made by hand."""

from __future__ import annotations

import ast
import gzip
import json
import shlex
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from small_tokenizers import byte_level
from tokenclean.exporting import WRITERS, Card, CleanedCounts, ExportResult, ModelName, WeightedTexts, export
from tokenclean.exporting.cleaned_file import read_cleaned, write_cleaned
from tokenclean.pool import Conversation, Pool, Turn, load_pool
from tokenclean.pool.conversation import LabelledTokens, ToolCall
from tokenclean.ragged import Ragged
from tokenclean.tokens import TokenizedPool, tokenize_pool
from tokenclean.tokens.tulu import TULU_JINJA

CARD = Card("Rows", ModelName("org/base", "main"), "given", CleanedCounts(()), "tulu", 2048, "0.1.0")
TOKENIZER = byte_level(" so", " cat")
CALL = ToolCall("add", '{"a": 1}', "c1")
CHAT = (
    Turn("system", "Be brief."),
    Turn("user", "Naïve?"),
    Turn("assistant", "Für 🙂 so."),
    Turn("user", "Add."),
    Turn("assistant", "Ok", tool_calls=(CALL,)),
    Turn("tool", "1", name="add", call_id="c1"),
    Turn("assistant", "It is 1.", reasoning="One."),
    Turn("user", "Bye"),
    Turn("assistant", "no", is_trained=False),
)
ROWS = (
    Conversation("s:1:x", "s", CHAT, tools='[{"type":"function","function":{"name":"add"}}]', original_id="mine"),
    Conversation("s:2:x", "s", (Turn("user", "a cat"), Turn("assistant", "the cat")), "completion"),
    Conversation("s:3:x", "s", (Turn("user", "Hi"), Turn("assistant", "bad"))),
    Conversation(
        "s:4:x", "s", (), "tokens", tokens=LabelledTokens(np.arange(70, 74), np.array([False, False, True, True]))
    ),
)


def tokenize(rows: Sequence[Conversation]) -> TokenizedPool:
    return tokenize_pool(Pool(tuple(rows)), TOKENIZER)


def weights_of(tokens: TokenizedPool, weight_of: dict[str, float]) -> Ragged:
    """Weight 1 for each response token but those spelled as a key."""
    texts = [str(TOKENIZER.decode([token])) for token in tokens.input_ids.values]
    values = np.array([weight_of.get(text, 1.0) for text in texts], np.float32)
    return tokens.input_ids.with_values(np.where(tokens.is_response.values, values, np.float32(0)))


def write(
    to: str,
    folder: Path,
    weight_of: dict[str, float] | None = None,
    rows: Sequence[Conversation] = ROWS,
    weights: Ragged | None = None,
) -> tuple[ExportResult, Ragged, TokenizedPool]:
    """The export ``to`` of the rows, the weights that were exported, and their tokens."""
    tokens = tokenize(rows)
    weights = weights or weights_of(tokens, weight_of or {})
    write_cleaned(tokens.table({}, weight=weights), folder / "cleaned.parquet")
    by_id = {row.id: row for row in rows}

    def texts(cleaned) -> WeightedTexts:
        chosen = tuple(by_id[id] for id in cleaned.rows.column("id").to_pylist())
        return WeightedTexts(chosen, tokenize(chosen), cleaned.column("token_weight"), tokenize)

    return export(folder / "cleaned.parquet", to, folder / "out", CARD, texts), weights, tokens


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_form_compiles_and_names_the_model(tmp_path):
    for to in WRITERS:
        (tmp_path / to).mkdir()
        result, _, _ = write(to, tmp_path / to)
        for name in result.files:
            text = (result.folder / name).read_bytes()
            if name.endswith(".py"):
                ast.parse(text)
            elif name.endswith(".yaml"):
                assert isinstance(yaml.safe_load(text), dict)
        if to not in ("hf", "spans", "megatron-bridge"):  # a recipe of Megatron-Bridge has a model already
            starting = [n for n in result.files if n.endswith((".py", ".yaml", ".sh")) and n != "template.py"]
            assert any(b"org/base" in (result.folder / name).read_bytes() for name in starting), to


def test_ms_swift_gets_a_scale_for_each_token_and_a_template_that_adds_nothing(tmp_path):
    result, weights, tokens = write("ms-swift", tmp_path, {" so": 0.25, "F": -1.0})
    rows = lines_of(result.folder / "train.jsonl")
    for row, read in enumerate(rows):
        asked, answered = read["messages"]
        assert (asked, answered["role"]) == ({"role": "user", "content": ""}, "assistant")
        assert answered["content"]["token_ids"] == tokens.input_ids[row].tolist()
        assert answered["content"]["loss_scale"] == np.maximum(weights[row], 0).tolist()
        assert answered["content"]["loss_scale"][0] == 0
    assert result.changes[0].startswith("1 of ")
    assert "no weights below 0" in result.changes[0]
    words = shlex.split((result.folder / "train.sh").read_text(), comments=True)
    assert words[words.index("--is_binary_loss_scale") + 1] == "false"
    assert words[words.index("--loss_scale") + 1] == "default"
    assert int(words[words.index("--max_length") + 1]) == -(-int(tokens.input_ids.lengths.max()) // 8) * 8


def test_tinker_gets_weights_of_any_sign_unshifted(tmp_path):
    result, weights, tokens = write("tinker", tmp_path, {" so": 0.25, "F": -1.0})
    rows = lines_of(result.folder / "train.jsonl")
    assert [row["tokens"] for row in rows] == [ids.tolist() for ids in tokens.input_ids]
    assert [row["weights"] for row in rows] == [own.tolist() for own in weights]
    assert result.changes == ()


def test_open_instruct_gets_flat_arrays_without_a_header(tmp_path):
    result, weights, tokens = write("open-instruct", tmp_path, {" so": 0.0})
    ids = np.fromfile(result.folder / "token_ids_part_0000.npy", np.uint32)
    mask = np.fromfile(result.folder / "labels_mask_part_0000.npy", np.bool_)
    np.testing.assert_array_equal(ids, tokens.input_ids.values)
    np.testing.assert_array_equal(mask, weights.values > 0)
    borders = gzip.decompress((result.folder / "token_ids_part_0000.csv.gz").read_bytes()).decode().splitlines()
    offsets = tokens.input_ids.offsets
    assert borders == [f"{start},{end}" for start, end in pairwise(offsets)]


def test_open_instruct_splits_parts_between_rows(tmp_path, monkeypatch):
    _, _, tokens = write("open-instruct", tmp_path)
    first, second, *others = tokens.input_ids.lengths.tolist()
    monkeypatch.setattr("tokenclean.exporting.trainers.open_instruct._TOKENS_A_PART", sum(others) + second - 1)
    (tmp_path / "parts").mkdir()
    result, _, _ = write("open-instruct", tmp_path / "parts")
    parts = sorted(result.folder.glob("token_ids_part_*.npy"))
    assert [len(np.fromfile(part, np.uint32)) for part in parts] == [first, second + others[0], *others[1:]]


def test_megatron_bridge_gets_a_mask_of_the_next_token_and_the_last_one_cut(tmp_path):
    result, weights, tokens = write("megatron-bridge", tmp_path, {" so": 0.0})
    table = pq.read_table(result.folder / "train.idx.parquet")
    types = {"input_ids": pa.list_(pa.int32()), "seq_start_id": pa.list_(pa.int32()), "loss_mask": pa.list_(pa.int8())}
    assert {name: table.schema.field(name).type for name in table.column_names} == types
    found = {}
    longest = -(-int(tokens.input_ids.lengths.max()) // 8) * 8
    for pack in table.to_pylist():
        assert len(pack["input_ids"]) == len(pack["loss_mask"]) <= longest
        borders = [*pack["seq_start_id"], len(pack["input_ids"])]
        assert borders[0] == 0
        for start, end in pairwise(borders):
            # As Megatron-Bridge slices each row: input, label, mask.
            labels = pack["input_ids"][start + 1 : end]
            trained = [label for label, own in zip(labels, pack["loss_mask"][start : end - 1], strict=True) if own]
            found[tuple(pack["input_ids"][start:end])] = trained
            assert pack["loss_mask"][end - 1] == 0
    expected = {tuple(ids.tolist()): ids[own > 0].tolist() for ids, own in zip(tokens.input_ids, weights, strict=True)}
    assert found == expected


def test_unsloth_gets_what_trl_gets_and_no_function_that_replaces_labels(tmp_path):
    for to in ("trl", "unsloth"):
        (tmp_path / to).mkdir()
    one, _, _ = write("trl", tmp_path / "trl", {" so": 0.0})
    two, _, _ = write("unsloth", tmp_path / "unsloth", {" so": 0.0})
    assert (one.folder / "train.parquet").read_bytes() == (two.folder / "train.parquet").read_bytes()
    script = ast.parse((two.folder / "train.py").read_text())
    calls = [node.func for node in ast.walk(script) if isinstance(node, ast.Call)]
    assert "train_on_responses_only" not in {call.id for call in calls if isinstance(call, ast.Name)}


def test_llamafactory_v1_gets_the_mean_weight_of_each_answer(tmp_path):
    result, _, _ = write("llamafactory-v1", tmp_path, {" cat": 0.0, "b": 0.0, "a": 0.0, "d": 0.0, " so": 0.0})
    (row, hi) = lines_of(result.folder / "train.jsonl")
    weights = [message["loss_weight"] for message in row["messages"]]
    assert [weights[n] for n in (0, 1, 3, 5, 7, 8)] == [0] * 6
    answer = len("Für 🙂.".encode()) + 2  # a token a byte, one for " so", one for the end
    assert weights[2] == pytest.approx((answer - 1) / answer)
    assert 0 < weights[4] < 1
    assert hi["messages"][1]["loss_weight"] == pytest.approx(1 / 4)
    assert row["messages"][2]["content"] == [{"type": "text", "value": "Für 🙂 so."}]
    assert row["messages"][4]["content"] == [
        {"type": "text", "value": "Ok"},
        {"type": "tool_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
    ]
    assert row["messages"][6]["content"][0] == {"type": "reasoning", "value": "One."}
    assert json.loads(row["tools"])[0]["function"]["name"] == "add"
    left_out = (result.folder / "left_out.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in left_out[1:]] == ["s:2:x", "s:4:x"]
    assert "a message has one weight" in result.changes[0]


def test_axolotl_gets_parts_that_meet_before_the_blank(tmp_path):
    result, _, _ = write("axolotl-parts", tmp_path, {" so": 0.25, "b": 0.0, "a": 0.0, "d": 0.0, "</s>": 1.0})
    row, hi = lines_of(result.folder / "train.jsonl")
    assert row["messages"][2] == {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "Für 🙂", "train": True},
            {"type": "text", "text": " so", "train": False},
            {"type": "text", "text": ".", "train": True},
        ],
        "train": True,
    }
    assert "".join(part["text"] for part in row["messages"][2]["content"]) == CHAT[2].content
    assert row["messages"][6]["train"] is True
    assert row["messages"][8] == {"role": "assistant", "content": "no", "train": False}
    assert row["messages"][1] == {"role": "user", "content": "Naïve?"}
    assert row["tools"][0]["function"]["name"] == "add"
    assert hi["messages"][1]["content"] == [{"type": "text", "text": "bad", "train": False}]
    config = yaml.safe_load((result.folder / "train.yaml").read_text(encoding="utf-8"))
    assert (config["chat_template"], config["chat_template_jinja"]) == ("jinja", TULU_JINJA)
    assert [line.split(",")[0] for line in (result.folder / "left_out.csv").read_text().splitlines()[1:]] == [
        *("s:2:x", "s:4:x"),
    ]
    assert len(result.changes) == 1


@pytest.mark.parametrize("seed", range(4))
def test_spans_come_back_as_the_same_weights_of_every_token(tmp_path, seed):
    tokens = tokenize(ROWS)
    random = np.random.default_rng(seed)
    drawn = random.choice(np.array([-1, 0, 0.1, 0.5, 1], np.float32), len(tokens.input_ids.values))
    drawn[tokens.input_ids.offsets[1:] - 1] = 0.5  # so that every row is trained
    weights = tokens.input_ids.with_values(np.where(tokens.is_response.values, drawn, np.float32(0)))
    result, _, _ = write("spans", tmp_path, weights=weights)
    pool = load_pool(result.folder / "spans.jsonl")
    assert not pool.rejected
    read = tokenize(tuple(pool))
    assert read.original_ids[0] == "mine"
    found = read.weight
    assert found is not None
    np.testing.assert_array_equal(read.input_ids.values, tokens.input_ids.values)
    placed = [weight_of_placed(tokens, row) for row in range(len(ROWS))]
    for row, is_placed in enumerate(placed):
        np.testing.assert_array_equal(found[row][is_placed], weights[row][is_placed])
    differ = int(np.count_nonzero(found.values != weights.values))
    assert result.changes[0].startswith(f"{differ} of {np.count_nonzero(weights.values)} trained tokens")


def weight_of_placed(tokens: TokenizedPool, row: int) -> np.ndarray:
    """Tokens that a span can name alone: not those of thoughts, calls and characters of several tokens."""
    if row == 3:
        return np.ones(len(tokens.input_ids[row]), bool)
    start, end = tokens.char_start[row], tokens.char_end[row]
    is_placed = np.zeros(len(start), bool)
    for content in tokens.contents[row]:
        is_placed |= (start >= content.start) & (end <= content.end)
        is_placed |= (start >= content.end_token[0]) & (end <= content.end_token[1])
    shares = np.zeros(len(start), bool)
    shares[1:] |= start[1:] < end[:-1]
    shares[:-1] |= start[1:] < end[:-1]
    return is_placed & ~shares


def test_thoughts_and_calls_of_one_weight_are_a_weight_of_their_message(tmp_path):
    result, weights, tokens = write("spans", tmp_path, rows=(ROWS[0],), weights=None)
    assert result.changes == ()
    (row,) = lines_of(result.folder / "spans.jsonl")
    assert row["spans"] == []
    assert (row["original_id"], row["source"]) == ("mine", "s")
    values = weights.values.copy()
    before, content = tokens.contents[0][1:3]
    is_thought = (tokens.char_start[0] >= before.end_token[1]) & (tokens.char_end[0] <= content.start)
    values[is_thought & tokens.is_response[0]] = 0.5
    (tmp_path / "two").mkdir()
    result, _, _ = write("spans", tmp_path / "two", rows=(ROWS[0],), weights=weights.with_values(values))
    assert result.changes == ()
    (row,) = lines_of(result.folder / "spans.jsonl")
    assert row["messages"][6]["weight"] == 0.5
    assert row["spans"] == [{"message": 6, "start": 0, "end": 9, "weight": 1.0}]


def test_weights_above_1_are_scaled_and_rows_of_tokens_stay_tokens(tmp_path):
    tokens = tokenize(ROWS)
    doubled = weights_of(tokens, {}).map_values(lambda values: values * np.float32(2))
    result, _, _ = write("spans", tmp_path, weights=doubled)
    assert result.changes == ("weights are divided by 2, so that none is above 1; the loss Σ w·ℓ / Σ |w| is the same",)
    assert lines_of(result.folder / "spans.jsonl")[3]["input_ids"] == [70, 71, 72, 73]


def test_rows_with_nothing_to_train_are_left_out_of_every_form(tmp_path):
    for to in WRITERS:
        (tmp_path / to).mkdir()
        tokens = tokenize(ROWS)
        weights = weights_of(tokens, {})
        values = weights.values.copy()
        values[tokens.input_ids.offsets[2] : tokens.input_ids.offsets[3]] = 0
        result, _, _ = write(to, tmp_path / to, weights=weights.with_values(values))
        assert "s:3:x" in read_cleaned(tmp_path / to / "cleaned.parquet").dropped_ids
        texts = b"".join((result.folder / name).read_bytes() for name in result.files if name.endswith(".jsonl"))
        assert b"bad" not in texts
