from __future__ import annotations

import gzip
import json
import re
import time
from pathlib import Path

import pytest

from tokenclean.errors import PoolError, RecipeError
from tokenclean.pool.reading import Record, read_records
from tokenclean.pool.reading.encodings import guess_encodings
from tokenclean.recipe import source_from

TEXTS = {
    "cp1252": (
        "Was heißt „Größe“? Die Ausdehnung – z. B. 3 m.",
        "Où est la bibliothèque ? L’élève créée",
        "¿Qué comió el niño?",
        "Grüße aus München",
        "Tschüß",
    ),
    "cp1251": ("Что такое сито? Это прибор для разделения зёрен.", "Привет, мир!", "«Мир» — это не война."),
    "shift_jis": ("ふるいとは何ですか？穀物を分ける道具です。", "こんにちは", "データをクリーニングする"),
    "euc_jp": ("ふるいとは何ですか？穀物を分ける道具です。", "東京都の人口です"),
    "gb18030": ("什么是织布机？织布机是用来织布的工具。", "你好，世界", "把下面的句子翻译成英文"),
    "big5": ("什麼是織布機？織布機是用來織布的工具。", "你好，世界", "請翻譯下面的句子"),
    "euc-kr": ("베틀은 무엇입니까? 천을 짜는 도구입니다.", "안녕하세요", "한국어"),
}
CASES = [(name, text) for name, texts in TEXTS.items() for text in texts]


def read(path: Path, content: bytes, **options) -> list[Record]:
    path.write_bytes(content)
    return list(read_records(path, **options))


def refusal(path: Path, content: bytes = b"{}", **options) -> str:
    with pytest.raises(PoolError) as caught:
        read(path, content, **options)
    return str(caught.value)


@pytest.mark.parametrize(("name", "text"), CASES)
def test_the_letters_of_a_text_show_its_encoding(name, text):
    assert guess_encodings(json.dumps({"prompt": text}, ensure_ascii=False).encode(name))[0] == name


def test_damage_in_some_lines_does_not_hide_the_encoding():
    lines = [text.encode("gb18030") for text in TEXTS["gb18030"]] * 5
    assert guess_encodings(b"\n".join([b"\xff\xff\x80", *lines])) == ("gb18030",)
    assert guess_encodings(b"\xff\x80\x98\xa0" * 20) == ()
    assert guess_encodings("ASCII and Grüße".encode()) == ()


def test_guessing_takes_a_sample_only():
    start = time.process_time()
    guess_encodings(TEXTS["cp1251"][0].encode("cp1251") * 100_000)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(("name", "text"), CASES)
@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_a_fault_names_the_encoding_that_reads_the_file(tmp_path, name, text, suffix):
    rows = [{"prompt": "plain", "text": text}, {"prompt": "plain", "text": "ASCII"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    content = {
        "jsonl": "\n".join(lines),
        "json": f"[{', '.join(lines)}]",
        "csv": f'prompt,text\nplain,"{text}"\nplain,ASCII\n',
    }[suffix].encode(name)
    path = tmp_path / f"a.{suffix}"
    records = read(path, content)
    assert [record.row for record in records] == [None, rows[1]]
    assert f"; if the file has another encoding, name it: --encoding {name}" in records[0].fault
    assert [record.row for record in read(path, content, encoding=name)] == rows


def test_the_hint_of_a_file_is_the_same_for_all_its_rows(tmp_path):
    texts = ["计算", "苹果公司", *TEXTS["gb18030"]]  # few characters alone could be of another language
    content = "".join(f'{{"prompt": "{text}"}}\n' for text in texts).encode("gb18030")
    assert {record.fault.partition("; ")[2] for record in read(tmp_path / "a.jsonl", content)} == {
        "if the file has another encoding, name it: --encoding gb18030"
    }


def test_a_file_that_is_utf8_but_for_some_damage_gets_no_hint(tmp_path):
    content = '{"a": "Grüße"}\n'.encode() * 3 + b'{"a": "caf\xe9"}\n'
    assert read(tmp_path / "a.jsonl", content)[3].fault == "not UTF-8 (byte 0xe9 at character 11 of the line)"


def test_where_no_encoding_is_likely_the_option_alone_is_named(tmp_path):
    (record,) = read(tmp_path / "a.jsonl", b'{"a": "\xff\x80\x98\xa0\xff"}')
    assert record.fault.endswith("; if the file has another encoding, name it with --encoding")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_enough(tmp_path, name, encoding):
    rows = [{"a": "Grüße 🌍"}, {"a": "\u0a0a\u0a0d"}]
    text = json.dumps(rows, ensure_ascii=False) if name == "a.json" else "\r\n".join(map(json.dumps, rows))
    content = text.encode(encoding)
    assert [record.row for record in read(tmp_path / name, gzip.compress(content) if "gz" in name else content)] == rows


def test_both_byte_orders_are_read(tmp_path):
    text = "\ufeffa,b\n1,é\n"
    for encoding in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
        for options in ({}, {"encoding": encoding}, {"encoding": encoding[:6]}):
            (record,) = read(tmp_path / "a.csv", text.encode(encoding), **options)
            assert (record.row, record.line) == ({"a": "1", "b": "é"}, 2)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_without_a_mark_the_order_must_be_named(tmp_path, encoding):
    content = '{"prompt": "é"}\n'.encode(encoding)
    path = tmp_path / "a.jsonl"
    assert refusal(path, content).endswith(
        f"has zero bytes as {encoding} text has; if that is its encoding: --encoding {encoding}"
    )
    assert refusal(path, content, encoding=encoding[:6]).endswith(f"name the order: --encoding {encoding}")
    assert refusal(path, encoding="utf_16").endswith("--encoding utf-16-le or utf-16-be")
    assert [record.row for record in read(path, content, encoding=encoding)] == [{"prompt": "é"}]


def test_bytes_that_the_encoding_cannot_decode_spoil_their_row_only(tmp_path):
    good, path = '{"a": "筛子"}\n'.encode("gbk"), tmp_path / "a.jsonl"
    records = read(path, good + b'{"a": "\xb0"}\n' + good + b'\xff{"b": 1}\n' + good, encoding="gbk")
    assert [record.row for record in records] == [{"a": "筛子"}, None, {"a": "筛子"}, None, {"a": "筛子"}]
    assert records[1].fault == "not gbk (byte 0xb0 at character 8 of the line)"
    assert records[3].fault == "not gbk (byte 0xff at character 1 of the line)"
    # These two bytes are no EUC-KR, but they are UTF-8, and must not pass as that.
    assert read(path, b'{"a": "\xc9\xa1"}', encoding="euc-kr")[0].fault.startswith("not euc_kr (byte 0xc9")
    array = b'[{"a": "' + "筛".encode("gbk") + b'"}, {"a": "\xff"}, {"a": 3}]'
    assert [record.row for record in read(tmp_path / "a.json", array, encoding="gbk")] == [
        {"a": "筛"},
        None,
        {"a": 3},
    ]


def test_utf16_that_is_cut_off_keeps_the_rows_before(tmp_path):
    content = '{"a": 1}\n{"a": 2}\n{"a": "🌍"}'.encode("utf-16")
    records = read(tmp_path / "a.jsonl", content[:-7])
    assert [record.row for record in records] == [{"a": 1}, {"a": 2}, None]
    assert records[2].fault.startswith("not utf-16 (byte 0x")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("gb18300", "did you mean gb18030"),
        ("shift-jiss", "did you mean shift_jis"),
        ("windos-1252", "did you mean windows_1252"),
        ("rot13", "no encoding of text is called 'rot13'"),
        ("base64", "no encoding of text is called 'base64'"),
        ("punycode", "no encoding of text"),
        ("unicode-escape", "no encoding of text"),
        ("", "expected a name such as gb18030, cp1252 or utf-16"),
        ("a\0b", "no encoding of text"),
        ("ж" * 50, "expected a name such as"),
    ],
)
def test_an_encoding_must_be_known(name, hint):
    with pytest.raises(RecipeError, match=re.escape(hint)):
        source_from({"path": "a.jsonl", "encoding": name})


def test_an_encoding_must_agree_with_the_mark(tmp_path):
    message = "starts with the byte order mark of utf-8, which cp1252 does not have; leave --encoding out"
    assert refusal(tmp_path / "a.jsonl", b"\xef\xbb\xbf{}", encoding="cp1252").endswith(message)
    assert "byte order mark of utf-16" in refusal(tmp_path / "a.jsonl", "{}".encode("utf-16"), encoding="gbk")
    assert [record.row for record in read(tmp_path / "a.jsonl", b"\xef\xbb\xbf{}", encoding="UTF8")] == [{}]


def test_an_encoding_is_for_text_only(tmp_path):
    for path in (tmp_path / "a.parquet", tmp_path):
        with pytest.raises(PoolError, match="is no text file, which has an encoding; leave --encoding out"):
            read_records(path, encoding="gbk")


def test_a_bad_byte_gets_no_hint_where_the_encoding_was_named(tmp_path):
    (record,) = read(tmp_path / "a.jsonl", b'{"a": "caf\xe9"}', encoding="utf-8")
    assert record.fault == "not UTF-8 (byte 0xe9 at character 11 of the line)"
