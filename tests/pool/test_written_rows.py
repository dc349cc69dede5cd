from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutated_rows import SOUND

from tokenclean.pool import Conversation, Pool, ToolCall, Turn, load_pool, write_row
from tokenclean.pool.formats.field_types import is_blank


def written(pool: Pool, path: Path) -> Pool:
    path.write_text("".join(json.dumps(write_row(row), ensure_ascii=False) + "\n" for row in pool), encoding="utf-8")
    return load_pool(path)


def check_same(first: Pool, second: Pool) -> None:
    assert second.rejected == ()
    for before, after in zip(first, second, strict=True):
        assert (after.source, after.kind, after.turns, after.tools) == (
            before.source,
            before.kind,
            before.turns,
            before.tools,
        )
        assert after.id.rsplit(":", 1)[1] == before.id.rsplit(":", 1)[1]


@pytest.mark.parametrize("name", SOUND)
def test_a_written_row_is_read_as_the_same_conversation(name, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in SOUND[name]))
    pool = load_pool(path)
    assert len(pool) == len(SOUND[name])
    again = written(pool, tmp_path / "again.jsonl")
    check_same(pool, again)
    check_same(pool, written(again, tmp_path / "third.jsonl"))
    assert json.loads((tmp_path / "again.jsonl").read_text().split("\n")[0])["id"] == pool[0].id


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
SAID = TEXT.filter(lambda text: not is_blank(text))
# A reasoning of "off" or "false" is a switch, and no thought.
THOUGHT = SAID.filter(
    lambda text: text.strip().lower() not in ("on", "off", "true", "false", "enabled", "disabled", "none")
)
CALLS = st.lists(st.builds(ToolCall, SAID, st.just('{"a": [1, null]}'), TEXT), max_size=2).map(tuple)
ANSWERS = st.builds(
    Turn, st.just("assistant"), SAID, THOUGHT | st.just(""), CALLS, weight=st.sampled_from([1.0, 0.5, 0.1])
) | st.builds(Turn, st.just("assistant"), SAID, is_trained=st.just(False))
WEIGHED = st.builds(Turn, st.just("assistant"), st.just("abcdef"), spans=st.just(((1, 2, 0.0), (3, 6, 0.3))))
TURNS = st.tuples(
    st.builds(Turn, st.just("system"), TEXT),
    st.builds(Turn, st.just("user"), SAID),
    ANSWERS,
    st.builds(Turn, st.just("tool"), TEXT, name=TEXT, call_id=TEXT),
    WEIGHED | st.builds(Turn, st.just("assistant"), SAID),
)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(TURNS, min_size=1, max_size=3), source=SAID)
def test_chats_of_every_kind_of_turn_come_back(rows, source, tmp_path_factory):
    pool = Pool(tuple(Conversation(f"{source}:{n}:x", source, turns) for n, turns in enumerate(rows)))
    path = tmp_path_factory.getbasetemp() / "written_rows.jsonl"
    again = written(pool, path)
    assert [row.turns for row in again] == [row.turns for row in pool]
    assert {row.source for row in again} == {source}
