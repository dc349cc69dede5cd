from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from tokenclean.errors import PoolError, RecipeError, RunFolderError
from tokenclean.pool import (
    Conversation,
    Pool,
    RejectedRow,
    Turn,
    load_pool,
    load_sources,
    stream_sources,
    write_rejected,
)
from tokenclean.pool.reading import Record
from tokenclean.pool.sources import merge_pools
from tokenclean.recipe import source_from

GOOD = {"prompt": "Once", "completion": " upon"}
GOOD_LINE = json.dumps(GOOD).encode()


def write_lines(path: Path, *lines: bytes | dict) -> Path:
    encoded = [line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=False).encode() for line in lines]
    path.write_bytes(b"\n".join(encoded) + b"\n")
    return path


def read_error(*args, **options) -> str:
    with pytest.raises(PoolError) as caught:
        load_pool(*args, **options)
    return str(caught.value)


def test_each_format_in_one_file(tmp_path):
    turns = [{"role": "user", "content": "Grüße 🌍?"}, {"role": "assistant", "content": "Ja.\u2028"}]
    path = write_lines(tmp_path / "mixed.jsonl", {"messages": turns}, {"instruction": "Add.", "response": "3"}, GOOD)
    pool = load_pool(path)
    assert [c.kind for c in pool] == ["chat", "chat", "completion"]
    assert pool[0].turns == (Turn("user", "Grüße 🌍?"), Turn("assistant", "Ja.\u2028"))
    assert [(c.file, c.line, c.source) for c in pool] == [(str(path), line, "mixed") for line in (1, 2, 3)]
    assert pool.rejected == ()


def test_id_is_source_line_and_hash_of_the_turns(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", b"", GOOD, b"broken", b"  ", GOOD | {"rating": 4})
    canonical = '["completion",[["user","Once"],["assistant"," upon"]]]'
    digest = hashlib.sha256(canonical.encode()).hexdigest()[:12]
    assert [c.id for c in load_pool(path)] == [f"a:2:{digest}", f"a:5:{digest}"]


def test_id_tells_kinds_and_turns_apart(tmp_path):
    chat = {"messages": [{"role": "user", "content": "Once"}, {"role": "assistant", "content": " upon"}]}
    path = write_lines(tmp_path / "a.jsonl", GOOD, chat, GOOD | {"prompt": "Twice"})
    assert len({c.id.rsplit(":", 1)[1] for c in load_pool(path)}) == 3


def test_source_of_a_row(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl", GOOD | {"source": "flan"}, GOOD | {"source": " "}, GOOD | {"source": 3}, GOOD
    )
    assert load_pool(path).sources == ("flan", "a", "a", "a")
    assert load_pool(path, source="mine").sources == ("mine",) * 4
    assert load_pool(path)[0].id.startswith("flan:1:")


def test_source_of_a_row_is_checked_only_where_it_counts(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", GOOD, b'{"prompt": "", "completion": "x", "source": "\\ud800"}')
    assert [row.reason for row in load_pool(path).rejected] == ["source: lone surrogate at character 1"]
    assert load_pool(path, source="mine").rejected == ()


@pytest.mark.parametrize("source", ["", " ", "\ud800"])
def test_source_must_be_a_name(tmp_path, source):
    path = write_lines(tmp_path / "a.jsonl", GOOD)
    assert "cannot be a source name" in read_error(path, source=source)


def test_several_files_keep_their_order(tmp_path):
    files = [write_lines(tmp_path / f"{name}.jsonl", GOOD, b"{") for name in "ba"]
    pool = load_pool([str(files[0]), files[1]])
    assert pool.sources == ("b", "a")
    assert [row.file for row in pool.rejected] == [str(file) for file in files]


def test_bom_and_windows_line_ends(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD_LINE + b"\r\n\r\n" + GOOD_LINE)
    assert [c.line for c in load_pool(path)] == [1, 3]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            b'{"prompt": "caf\xe9"}',
            "not UTF-8 (byte 0xe9 at character 16 of the line); if the file has another encoding, name it: "
            "--encoding cp1252",
        ),
        (b'{"prompt": "a" "b"}', "broken JSON: Expecting ',' delimiter (character 16 of the line)"),
        (b"\xef\xbb\xbf" + GOOD_LINE, "broken JSON: a byte order mark at the start of the line"),
        (b'{"a": ' * 100_000, "broken JSON: nested too deeply"),
        (b'"text"', "expected a JSON object or a list of messages, found a text"),
        (b"null", "expected a JSON object or a list of messages, found null"),
        (b"[1]", "expected a JSON object or a list of messages, found another list"),
        (b'{"prompt": "x", "completion": "\\ud83d"}', "completion: lone surrogate at character 1"),
        (b'{"prompt": "x", "completion": ""}', "completion: blank response"),
    ],
)
def test_a_bad_line_is_set_aside(tmp_path, line, reason):
    path = write_lines(tmp_path / "a.jsonl", GOOD, line, GOOD)
    pool = load_pool(path)
    assert [c.line for c in pool] == [1, 3]
    assert pool.rejected == (RejectedRow(str(path), 2, reason, line.decode("utf-8", "replace")[:200]),)


def test_a_number_too_long_for_python_is_set_aside(tmp_path):
    pool = load_pool(write_lines(tmp_path / "a.jsonl", GOOD, b'{"a": ' + b"1" * 5000 + b"}"))
    assert pool.rejected[0].reason.startswith("broken JSON: a number has more digits than can be read")
    assert len(pool.rejected[0].text) == 200


def test_escaped_surrogate_pairs_are_characters(tmp_path):
    pool = load_pool(write_lines(tmp_path / "a.jsonl", b'{"prompt": "", "completion": "\\ud83c\\udf0d"}'))
    assert pool[0].turns[1].content == "🌍"


def test_rejected_rows_are_logged(tmp_path, caplog):
    load_pool(write_lines(tmp_path / "a.jsonl", GOOD, b"null"))
    assert "1 of 2 rows set aside" in caplog.text


@pytest.mark.parametrize("name", ["a.json", "two words.jsonl"])
def test_a_json_array_is_read_element_by_element(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"\xef\xbb\xbf\n  \n [\n" + GOOD_LINE + b",\nnull]")
    pool = load_pool(path)
    assert [(c.line, c.id.split(":")[1]) for c in pool] == [(4, "1")]
    assert [row.line for row in pool.rejected] == [5]


def test_missing_file(tmp_path):
    write_lines(tmp_path / "train.jsonl", GOOD)
    assert f"did you mean {tmp_path / 'train.jsonl'}?" in read_error(tmp_path / "trian.jsonl")
    assert f"looked in {tmp_path}" in read_error(tmp_path / "zzz")
    assert "does not exist" in read_error(tmp_path / "none" / "train.jsonl")


def test_folder(tmp_path):
    assert read_error(tmp_path).endswith("is a folder; name the data files in it")
    write_lines(tmp_path / "train.jsonl", GOOD)
    assert "(it holds train.jsonl)" in read_error(tmp_path)
    assert "is a folder" in read_error(".")


def test_unreadable_file(tmp_path, monkeypatch):
    path = write_lines(tmp_path / "a.jsonl", GOOD)
    assert "cannot be read: Not a directory" in read_error(path / "b.jsonl")

    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert f"no permission to read it; try: chmod u+r {path}" in read_error(path)


def test_nothing_usable(tmp_path):
    error = read_error(write_lines(tmp_path / "a.jsonl", b"null", b"", b"{", b"1", b"2"))
    assert "no usable row (4 set aside)" in error
    assert (
        f"  2 × expected a JSON object or a list of messages, found a number (first: {tmp_path / 'a.jsonl'}:4)" in error
    )
    assert f"(first: {tmp_path / 'a.jsonl'}:3)" in error
    assert "holds no row" in read_error(write_lines(tmp_path / "b.jsonl", b" "))


def test_one_unusable_file_among_good_ones_is_an_error(tmp_path):
    good, bad = write_lines(tmp_path / "a.jsonl", GOOD), write_lines(tmp_path / "b.jsonl", b"null")
    assert str(bad) in read_error([good, bad])


def test_no_file_at_all():
    assert "no pool file given" in read_error([])


def test_unknown_format(tmp_path):
    with pytest.raises(RecipeError, match="did you mean alpaca"):
        load_pool(write_lines(tmp_path / "a.jsonl", GOOD), format="alpacca")


def test_merge_pools_concatenates(tmp_path):
    first = load_pool(write_lines(tmp_path / "a.jsonl", GOOD, b"null"))
    second = load_pool(write_lines(tmp_path / "b.jsonl", b"null", GOOD, GOOD))
    merged = merge_pools([first, second])
    assert merged.conversations == first.conversations + second.conversations
    assert merged.rejected == first.rejected + second.rejected
    assert merge_pools([]) == Pool(())


def test_a_file_given_twice_is_refused(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", GOOD)
    pool = load_pool(path)
    with pytest.raises(PoolError) as caught:
        merge_pools([pool, pool])
    assert f"two rows share the id {pool[0].id!r}: {path}:1 and {path}:1" in str(caught.value)
    assert read_error([path, path]) == str(caught.value)
    renamed = load_pool(path, source="b")
    assert len(merge_pools([pool, renamed])) == 2


def test_write_rejected_round_trip(tmp_path):
    pool = load_pool(write_lines(tmp_path / "a.jsonl", GOOD, b"null", b'{"a": "\xff\xc3\xa9\xe2\x80\xa8"}'))
    path = tmp_path / "rejected.jsonl"
    path.write_text("old")
    write_rejected(pool.rejected, path)
    rows = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    assert list(rows[0]) == ["file", "line", "reason", "text", "remedy", "is_chosen"]
    assert tuple(RejectedRow(**row) for row in rows) == pool.rejected
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "rejected.jsonl"]


def test_write_rejected_takes_file_names_that_are_not_utf8(tmp_path):
    row = RejectedRow(os.fsdecode(b"caf\xe9.jsonl"), 1, "reason")
    write_rejected([row], tmp_path / "rejected.jsonl")
    assert RejectedRow(**json.loads((tmp_path / "rejected.jsonl").read_text("utf-8"))) == row


def test_write_rejected_leaves_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "rejected.jsonl"
    path.write_text("old")

    def break_off():
        yield RejectedRow("a", 1, "reason")
        raise RuntimeError("broken off")

    with pytest.raises(RuntimeError):
        write_rejected(break_off(), path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["rejected.jsonl"]


def test_write_rejected_where_no_file_can_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot write"):
        write_rejected([RejectedRow("a", 1, "reason")], tmp_path / "file" / "rejected.jsonl")
    write_rejected([], tmp_path / "new" / "rejected.jsonl")
    assert (tmp_path / "new" / "rejected.jsonl").read_bytes() == b""


def test_a_column_map_and_role_names_reach_the_rows(tmp_path):
    row = {"dialogue": [{"who": "customer", "said": "a"}, {"who": "bot", "said": "b"}], "origin": {"shop": "x"}}
    path = write_lines(tmp_path / "a.jsonl", json.dumps(row).encode())
    columns = {"messages": "dialogue", "role": "who", "content": "said", "source": "origin.shop"}
    (conversation,) = load_pool(path, columns=columns, roles={"customer": "user", "bot": "assistant"})
    assert [(t.role, t.content) for t in conversation.turns] == [("user", "a"), ("assistant", "b")]
    assert conversation.source == "x"


def test_an_unknown_key_of_the_column_map_is_refused_before_a_file_is_read(tmp_path):
    with pytest.raises(RecipeError, match="instruction"):
        load_pool(tmp_path / "missing.jsonl", columns={"instructon": "question"})


def test_ids_tell_apart_all_that_a_row_holds(tmp_path):
    answer = {"role": "assistant", "content": "b"}
    answers = [
        answer,
        answer | {"reasoning_content": "c"},
        answer | {"tool_calls": [{"name": "f", "arguments": {}}]},
    ]
    rows = [{"messages": [{"role": "user", "content": "a"}, one]} for one in answers]
    rows.append(rows[0] | {"tools": [{"name": "f"}]})
    rows += [{"input_ids": [1, 2], "labels": [-100, 2]}, {"input_ids": [1, 3], "labels": [-100, 3]}]
    paths = [write_lines(tmp_path / f"{i}.jsonl", json.dumps(row).encode()) for i, row in enumerate(rows)]
    hashes = [load_pool(path)[0].id.split(":")[-1] for path in paths]
    assert len(set(hashes)) == len(rows)


def test_first_rows_of_a_hub_dataset(monkeypatch):
    rows = [Record(n, n, {"prompt": "a", "completion": f"b{n}"}) for n in range(1, 10)]
    asked = {}

    def read_hub(source):
        asked.update(source)
        return iter(rows)

    monkeypatch.setattr("tokenclean.pool.sources.read_hub", read_hub)
    values = {"hub": "org/some-data", "split": "train", "revision": "v1", "streaming": True, "first_rows": 3}
    pool = load_sources([source_from(values)])
    assert [c.id.rpartition(":")[0] for c in pool] == ["some-data:1", "some-data:2", "some-data:3"]
    assert asked.items() >= values.items()


def sources_of(*paths: Path, **options):
    return [source_from({"path": str(path), **options}) for path in paths]


def test_a_stream_gives_what_loading_gives_row_by_row(tmp_path):
    files = [write_lines(tmp_path / f"{name}.jsonl", b"null", GOOD, b"{", GOOD) for name in "ab"]
    rows = list(stream_sources(sources_of(*files)))
    assert [type(row) for row in rows] == [RejectedRow, Conversation] * 4
    pool = load_pool(files)
    assert tuple(row for row in rows if isinstance(row, Conversation)) == pool.conversations
    assert tuple(row for row in rows if isinstance(row, RejectedRow)) == pool.rejected


def test_a_stream_gives_rows_before_it_meets_the_fault_behind_them(tmp_path):
    stream = stream_sources(sources_of(write_lines(tmp_path / "a.jsonl", GOOD), tmp_path / "b.jsonl"))
    assert isinstance(next(stream), Conversation)
    with pytest.raises(PoolError, match="no such file"):
        next(stream)


def test_a_further_reading_says_nothing_again(tmp_path, caplog):
    path = write_lines(tmp_path / "a.jsonl", GOOD, b"null")
    assert len(list(stream_sources(sources_of(path, path), is_first_reading=False))) == 4
    assert caplog.text == ""


def test_a_row_shared_by_two_files_is_found_with_both_its_places(tmp_path):
    first = write_lines(tmp_path / "a.jsonl", b"null", GOOD, GOOD | {"prompt": "Twice"}, GOOD)
    second = write_lines(tmp_path / "b.jsonl", GOOD | {"prompt": "Thrice"}, b"", GOOD | {"prompt": "Twice"}, GOOD)
    error = read_error([first, second], source="one")
    assert f": {first}:3 and {second}:3; give each file once" in error
    assert error.startswith("two rows share the id 'one:3:")


def test_rows_of_one_file_never_share_an_id(tmp_path):
    assert len(load_pool(write_lines(tmp_path / "a.jsonl", GOOD, GOOD))) == 2


def test_ids_of_one_hash_are_no_shared_ids(tmp_path, monkeypatch):
    monkeypatch.setattr("tokenclean.pool.sources.hash", lambda text: len(text), raising=False)
    files = [write_lines(tmp_path / f"{name}.jsonl", GOOD, GOOD) for name in "ab"]
    assert len(load_pool(files)) == 4
    assert "two rows share the id 'a:1:" in read_error([*files, files[0]])


def test_a_missing_file_is_told_before_a_shared_id(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", GOOD)
    assert "no such file" in read_error([path, path, tmp_path / "b.jsonl"])


def test_an_unprintable_key_around_the_rows_is_counted_as_it_is_written(tmp_path):
    path = tmp_path / "wrapped.json"
    path.write_text('{"version\\ufeff": 1, "data": [{"prompt": "a", "completion": "b"}]}', encoding="utf-8")
    (conversation,) = load_pool(path)
    assert conversation.unread == ("'version\\ufeff'",)
