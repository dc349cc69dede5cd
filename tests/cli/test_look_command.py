"""``tokenclean look`` as a user meets it: a file with every fault planted, its screen, its JSON, its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tokenclean.checks import POOL_CHECKS, ROW_CHECKS

SENTENCES = [
    "Rivers carry sand down to the sea. Boats follow them on most days. Towns grow where both meet in a bay.",
    "Bread rises when yeast eats sugar. Warm kitchens help with that. Cold ones make it slow but good.",
    "Trains run on two rails of steel. Wheels keep them there by their shape. Curves are banked a little.",
    "Glass is made of sand and lime. Fire melts both at a great heat. Slow cooling keeps it whole for years.",
    "Tea came over land from the east. Caravans took months to bring it. Ships were faster after that time.",
]


@pytest.fixture(autouse=True)
def _wide_console(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are cut at the console's width, which the environment sets."""
    from tokenclean.cli.console import out

    monkeypatch.setattr(out, "_width", 120)


def pool_rows() -> list[dict[str, object]]:
    rows: list[dict[str, object]] = [
        {"instruction": f"Question {n} about {text.split()[0].lower()}?", "output": text, "score": n}
        for n, text in enumerate(SENTENCES)
    ]
    rows.append({**rows[0], "instruction": "question 0  about rivers?"})  # duplicate
    rows.append({**rows[1], "output": SENTENCES[1].replace("slow", "flat")})  # near, and the same prompt again
    rows += [{"instruction": f"Name {word}", "output": f"{word} it is, no more. I hope this helps!"} for word in "ABC"]
    rows += [{"instruction": f"List {word}", "output": f"Sure! Here is a list of {word}, {word}."} for word in "DEF"]
    rows.append({"instruction": "Browse", "output": "I'm sorry, but as an AI language model I cannot browse the web."})
    rows.append({"instruction": "Sing", "output": "We like to swim in the lake. " * 6})
    rows.append(
        {"instruction": "Explain calcium", "output": "Calcium is a metal with the symbol Ca and an atomic mass of"}
    )
    rows.append({"instruction": "Where?", "output": "In a cafÃ© by the sea\x07."})
    copied = "Describe how the old harbour of our town came to be."
    rows.append({"instruction": copied, "output": f"{copied} It was dug."})
    rows.append({"instruction": "Think", "output": "So it is. </think> Yes."})
    rows.append({"instruction": "Empty", "output": " "})
    return rows


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in pool_rows()), encoding="utf-8")
    return path


def run(*arguments: object, columns: int = 100) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": str(columns)}
    command = [sys.executable, "-m", "tokenclean", "look", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def test_every_planted_fault_is_on_one_screen(pool: Path):
    said = run(pool)
    assert said.returncode == 0, said.stderr
    assert said.stderr == ""
    lines = said.stdout.splitlines()
    for check in (POOL_CHECKS | ROW_CHECKS).values():
        assert any(line.startswith(check.title) for line in lines), check.title
    assert len(lines) <= 45
    findings = lines[lines.index("") + 1 : -4]
    assert all(len(line) <= 100 for line in findings)
    assert "20 rows, 19 usable" in said.stdout
    assert "output: blank response" in said.stdout
    assert "not used in pool: score (7 rows)" in said.stdout
    assert "pool.jsonl:6 the same as pool.jsonl:1" in said.stdout
    assert "English" in said.stdout
    assert "a run refuses this pool" not in run(pool, "--max-rejected-share", 0.2).stdout
    assert "\x07" not in said.stdout


def test_details_say_what_helps(pool: Path):
    said = run(pool, "--details").stdout
    for check in (POOL_CHECKS | ROW_CHECKS).values():
        assert f"    {check.meaning}\n    what helps: {check.remedy}\n" in said


def test_json_holds_everything(command, pool: Path, tmp_path: Path):
    alone = command("look", pool, "--json", "-")
    report = json.loads(alone.out)
    assert alone.code == 0
    written = tmp_path / "look.json"
    assert "near-duplicate" in command("look", pool, "--json", written).out
    assert json.loads(written.read_text(encoding="utf-8")) == report
    assert report["data"] == [str(pool)]
    assert report["formats"] == {"alpaca": 19}
    assert report["turns"] == {"1": 19}
    assert report["intake"]["rows_set_aside"] == 1
    results = {result["name"]: result for result in report["results"]}
    assert list(results) == [*POOL_CHECKS, *ROW_CHECKS]
    counts = {name: result["rows"] for name, result in results.items()}
    assert counts == {
        "duplicated": 1,
        "near_duplicate": 1,
        "repeated_prompt": 1,
        "repeated_opener": 6,
        "repeated_closer": 6,
        "cut_end": 1,
        "refusal": 1,
        "loop": 1,
        "odd_characters": 1,
        "copied_prompt": 1,
        "lone_thought_tag": 1,
    }
    phrases = {group["phrase"]: group["rows"] for group in results["repeated_closer"]["groups"]}
    assert phrases == {"Here is a list of…": 3, "I hope this helps!": 3}
    assert results["refusal"]["examples"][0]["place"] == f"{pool}:14"
    assert set(results["refusal"]) == {
        *("name", "title", "severity", "rows", "share", "examples", "groups", "note", "meaning", "remedy")
    }


def test_chats_with_tools_and_ids(command, tmp_path: Path):
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": "{}"}}]}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Look"},
        call,
        {"role": "tool", "content": "found", "name": "look"},
        {"role": "assistant", "content": "Here it is."},
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": messages}) + "\n" + '{"input_ids": [1, 2], "labels": [-100, 2]}\n')
    said = command("look", path)
    assert said.code == 0
    assert "messages 50.0%, tokens 50.0%; system prompt in 1; tools in 1; ids, no text in 1" in said.out
    assert "2.0 a row, at most 2" in said.out
    assert "1 rows hold ids and no text: only audit checks them" in said.out
    path.write_text('{"input_ids": [1, 2], "labels": [-100, 2]}\n')
    assert "not found" not in command("look", path).out


def test_one_row_no_row_and_no_file(command, tmp_path: Path):
    one = tmp_path / "one.jsonl"
    one.write_text('{"question": "Why?", "answer": "Because it is so."}\n')
    said = command("look", one, "--column", "instruction=question", "--column", "output=answer")
    assert said.code == 0
    assert "1 row, 1 usable" in said.out
    said = command("look", one)
    assert said.code == 2
    assert "keys fit no format" in said.err
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert command("look", empty).code == 2
    assert command("look", tmp_path / "none.jsonl").code == 2
    assert command("look").code == 2


def test_it_loads_no_model_library(pool: Path):
    code = f"import sys; sys.argv = ['tokenclean', 'look', {str(pool)!r}]\nfrom tokenclean.cli.main import main\n"
    code += "try: main()\nexcept SystemExit: pass\nassert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
