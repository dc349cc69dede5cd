"""``tokenclean review``, and its decisions in ``export``, ``view``, ``plan`` and a later run."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from tokenclean.errors import PoolError
from tokenclean.experiment.finished.open_review import open_run_review
from tokenclean.experiment.finished.run_texts import read_texts
from tokenclean.pool import load_pool
from tokenclean.report.viewer.ranked_table import Sample
from tokenclean.review.decisions import PhraseDecision, Signature, SpanDecision, to_line
from tokenclean.review.review_file import append_decisions
from tokenclean.token_table import read_table


def results_of(run: Path) -> Path:
    (results,) = (run / "results").iterdir()
    return results


def decisions_on(run: Path, pool: Path, weight: float, who: str = "Ann") -> list[SpanDecision]:
    """The first characters of the first answer of three training rows."""
    texts = {row.id: row for row in load_pool(pool)}
    found = []
    for number, id in enumerate(read_table(results_of(run) / "fixed_model" / "kept.parquet").ids[:3]):
        message, turn = next((n, turn) for n, turn in enumerate(texts[id].turns) if turn.role == "assistant")
        kind = {0.0: "drop", 1.0: "keep"}.get(weight, "weight")
        signature = Signature(f"{who}{number}{weight}", who, "2026-11-30T10:00:00Z")
        end = min(10, len(turn.content))
        found.append(SpanDecision(signature, kind, id, "", message, 0, end, weight, turn.content[:end]))
    return found


@pytest.fixture
def reviewed(run_folder, small_pool) -> Path:
    """A run with a review: in three rows ten characters are dropped, one of them no longer matches."""
    run = run_folder("reviewed")
    lost = SpanDecision(Signature("z", "Ann", "2026"), "drop", "nobody:0:0", "", 1, 0, 1, 0.0, "x")
    append_decisions(run / "review.jsonl", [*decisions_on(run, small_pool, 0.0), lost])
    return run


def test_export_applies_decisions_only_where_it_is_asked_to(command, reviewed, small_pool, tmp_path):
    from tokenclean.exporting import read_cleaned

    plain = command("export", reviewed, "--to", "hf", "-o", tmp_path / "plain")
    assert "review:" not in plain.out
    said = command("export", reviewed, "--to", "hf", "-o", tmp_path / "out", "--review", reviewed / "review.jsonl")
    assert said.code == 0, said.err
    assert "3 decisions on 3 rows fix" in said.out
    assert "1 decisions fit no text here and are left out:" in said.out
    assert "Ann: drop in row 'nobody:0:0': no row has its id, or its own id alone" in said.out
    changed = re.search(r"review: ([\d,]+) response tokens of (\d) rows have another weight than before", said.out)
    assert changed is not None
    assert int(changed[2]) <= 3
    one, other = (read_cleaned(next((tmp_path / name).rglob("*.parquet"))) for name in ("plain", "out"))
    before, after = (
        dict(zip(data.rows["id"].to_pylist(), data.rows["token_weight"].to_pylist(), strict=True))
        for data in (one, other)
    )
    table = read_table(results_of(reviewed) / "fixed_model" / "kept.parquet")
    differing = 0
    for number, id in enumerate(table.ids):
        old, new = (weights.get(id, [0.0] * len(table["input_ids"][number])) for weights in (before, after))
        differs = np.flatnonzero(np.array(old) != np.array(new))
        differing += len(differs)
        if number >= 3:
            assert not len(differs)
        first = np.flatnonzero(table["is_response"][number])[0]
        assert number >= 3 or new[first] == 0
    assert differing == int(changed[1].replace(",", ""))
    assert "decided by people" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_a_table_has_no_texts_to_decide_on(command, reviewed, tmp_path):
    table = results_of(reviewed) / "fixed_model" / "kept.parquet"
    said = command("export", table, "--to", "hf", "-o", tmp_path / "out", "--review", reviewed / "review.jsonl")
    assert (said.code, "the texts behind it" in said.err) == (2, True)
    said = command("export", reviewed, "--to", "hf", "-o", tmp_path / "out", "--review", tmp_path / "none.jsonl")
    assert (said.code, "none.jsonl: cannot be read" in said.err) == (2, True)


def test_measure_compares_every_strategy_and_every_two_people(command, reviewed, small_pool):
    append_decisions(reviewed / "review.jsonl", by_bob := decisions_on(reviewed, small_pool, 1.0, "Bob"))
    total = sum(decision.end for decision in by_bob)
    said = command("review", reviewed, "--measure")
    assert said.code == 0, said.err
    assert f"at {total} characters a later decision replaced an earlier one" in said.out
    assert re.search(r"fixed_model +\d+ +0 ", said.out)
    assert re.search(r"full_tokens +\d+ +0 ", said.out)
    assert f"Ann and Bob: agree on 0.0% of {total} characters; Cohen's kappa 0.00" in said.out
    (reviewed / "review.jsonl").unlink()
    said = command("review", reviewed, "--measure")
    assert (said.code, "nothing to compare with" in said.err) == (2, True)


def test_a_pool_that_has_changed_loses_only_its_changed_rows(run_folder, small_pool, tmp_path):
    results = results_of(run_folder("moved"))
    ids = read_table(results / "fixed_model" / "kept.parquet").ids
    row = int(ids[0].split(":")[1])
    lines = small_pool.read_text(encoding="utf-8").splitlines()
    pool = tmp_path / "small.jsonl"
    recipe = yaml.safe_load((results / "recipe.yaml").read_text(encoding="utf-8"))
    recipe["pool"]["sources"][0]["path"] = str(pool)
    (results / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    changed = [
        line.replace('"content": "', '"content": "Now: ') if n == row else line for n, line in enumerate(lines, start=1)
    ]
    pool.write_text("\n".join(changed) + "\n", encoding="utf-8")
    notes: list[str] = []
    table = read_table(results / "fixed_model" / "kept.parquet")
    assert len(read_texts(results, table, notes.append).rows) == 24
    assert notes == ["1 of 25 rows are left out: the pool no longer has them, or they give other tokens now"]
    pool.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n')
    with pytest.raises(PoolError, match="none of the run's 25 rows is there"):
        read_texts(results, table, notes.append)


def test_view_writes_a_page_that_takes_decisions(command, reviewed, tmp_path):
    said = command("view", reviewed, "--review", "-o", tmp_path / "page.html")
    assert said.code == 0, said.err
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert 'data-review="file"' in page
    assert "connect-src" not in page
    assert "nobody:0:0" in page  # the decisions so far
    said = command("view", reviewed, reviewed, "--review")
    assert (said.code, "takes one run by itself" in said.err) == (2, True)
    said = command("view", reviewed, "-o", tmp_path / "plain.html")
    assert 'data-review="' not in (tmp_path / "plain.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_later_run_takes_decisions_as_truth(finished_run, small_pool, tmp_path):
    from tokenclean.cleaning.open_run import open_run
    from tokenclean.experiment.finished.finished_run import recipe_of
    from tokenclean.experiment.planning.plan import plan
    from tokenclean.experiment.run import run
    from tokenclean.observer import Observer
    from tokenclean.recipe import recipe_from

    decisions = [*decisions_on(finished_run, small_pool, 0.0)[:2], *decisions_on(finished_run, small_pool, 0.5)[2:]]
    phrase = PhraseDecision(Signature("p", "Ann", "2026"), "the")
    file = tmp_path / "review.jsonl"
    append_decisions(file, [phrase, *decisions])
    values = recipe_of(results_of(finished_run))
    values |= {"output": str(tmp_path / "runs")}
    values["evaluation"]["controls"] = ["full_tokens", "noise_mixture"]
    values["pool"]["review"] = str(file)
    recipe = recipe_from(values)
    assert any(line.startswith(f"review: {file}: 4 decisions") for line in plan(recipe, flop_per_second=1e9).summary)
    notes: list[str] = []
    opened = open_run(recipe, Observer(note=notes.append))
    result = run(opened)
    review = opened.context.data.review
    assert review is not None
    assert any("4 decisions on" in note for note in notes)
    record = json.loads((result.folder / "result.json").read_text(encoding="utf-8"))["review"]
    assert record["decisions"] == 4
    assert record["tokens_dropped"] == int(review.is_dropped.values.sum()) > 0
    for strategy in ("fixed_model", "full_tokens", "noise_mixture"):
        table = read_table(result.folder / strategy / "kept.parquet")
        weights, kept = table["weight"].values, table["is_kept"].values
        decided = review.decided.values
        is_fixed = ~np.isnan(decided)
        np.testing.assert_array_equal(weights[is_fixed], decided[is_fixed])
        np.testing.assert_array_equal(kept[is_fixed], decided[is_fixed] > 0)
        np.testing.assert_array_equal(kept, weights > 0)
    first = set((tmp_path / "runs" / "small" / "stages").iterdir())
    append_decisions(file, decisions_on(finished_run, small_pool, 1.0)[:1])
    again = run(open_run(recipe))
    assert again.folder != result.folder
    assert set((tmp_path / "runs" / "small" / "stages").iterdir()) > first


def test_the_server_answers_and_ends_with_ctrl_c(reviewed, small_pool, tmp_path):
    pytest.importorskip("uvicorn")
    row = load_pool(small_pool)[0]
    critic_file = tmp_path / "critic.jsonl"
    critic_file.write_text(json.dumps({"id": row.id, "named": []}) + "\n", encoding="utf-8")
    words = [sys.executable, "-m", "tokenclean", "review", str(reviewed), "--name", "Ann", "--critic", str(critic_file)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = [process.stdout.readline() for _ in range(3)]
            assert said[0].startswith("25 of 25 conversations; decisions go to ")
            found = re.search(r"http://127\.0\.0\.1:(\d+)/\?token=(\S+)", said[1])
            assert found is not None
            port, token = int(found[1]), found[2]
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", f"/?token={token}")
            page = connection.getresponse().read().decode()
            assert "connect-src" in page
            decision = json.loads(to_line(decisions_on(reviewed, small_pool, 1.0)[0]))
            body = json.dumps({"from": 0, "decisions": [decision]})
            connection.request("POST", "/decisions", body, {"X-Tokenclean-Token": token})
            assert len(json.loads(connection.getresponse().read())["lines"]) == 5
            connection.close()
            os.kill(process.pid, signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert "Traceback" not in errors
    assert process.returncode in (0, 130, -signal.SIGINT)


def test_what_a_critic_named_is_suggested_first(reviewed, small_pool, tmp_path):
    ids = read_table(results_of(reviewed) / "fixed_model" / "kept.parquet").ids
    texts = {row.id: row for row in load_pool(small_pool)}

    def line(id: str, times: int, reason: str) -> str:
        message = next(n for n, turn in enumerate(texts[id].turns) if turn.role == "assistant")
        named = {"message": message, "start": 0, "end": 1, "times": times, "reason": reason}
        return json.dumps({"id": id, "named": [named], "spans": []}) + "\n"

    path = tmp_path / "critic.jsonl"
    path.write_text(line(ids[1], 1, "") + line(ids[2], 2, "not true"), encoding="utf-8")
    opened = open_run_review(reviewed, None, print, path)
    assert [span.reason for span in opened.critic] == ["critic: not true", "critic"]
    rows = {one.reason: one.row for one in opened.suggestions() if one.reason.startswith("critic")}
    assert rows == {"critic: not true": 2, "critic": 1}
    first = opened.suggestions()[0]
    assert (first.row, first.reason) == (2, "critic: not true")
    _, data = opened.page(None, Sample(), who="Ann")
    assert "critic: not true" in str(data["reasons"])
    gone = {"id": "gone:1:0", "named": [{"message": 1, "start": 0, "end": 5, "times": 2, "reason": ""}]}
    path.write_text(json.dumps(gone) + "\n" + line(ids[2], 2, "not true"), encoding="utf-8")
    notes: list[str] = []
    assert len(open_run_review(reviewed, None, notes.append, path).critic) == 1
    assert "1 of 2 rows with a named sentence are not in this run" in notes[-1]
    path.write_text(json.dumps(gone) + "\n", encoding="utf-8")
    with pytest.raises(PoolError, match="none of the 1 rows in which the critic named a sentence is in this run"):
        open_run_review(reviewed, None, print, path)
