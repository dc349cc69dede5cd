"""The walk-through: a run, twenty conversations reviewed by the keyboard, the exports, five steps in TRL.

What was dropped is masked in the trainer's batches, token for token, and what was kept is trained.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from fed_rows import UNTRAINED, rows_fed, rows_of_batch
from page_blocks import blocks
from page_shell import PageShell
from test_how_to import AXOLOTL, check_keys, results_of, succeeded

from tokenclean.pool import Conversation, load_pool
from tokenclean.review.decisions import SpanDecision
from tokenclean.review.review_file import read_review
from tokenclean.token_table import read_table

pytestmark = pytest.mark.slow

PAGE = "how-to/review-walkthrough.md"
CONVERSATIONS = 20


def test_what_twenty_reviewed_conversations_drop_is_masked_in_trl(
    page_shell: PageShell, browser: Any, tiny_model_folder: Path
):
    pytest.importorskip("trl")
    pytest.importorskip("uvicorn")
    folder = page_shell.folder
    run, exports, train = (block.text for block in blocks(PAGE) if block.language == "bash")
    (review,) = (block.text for block in blocks(PAGE) if block.text.startswith("tokenclean review"))
    page_shell.write_files(PAGE)
    succeeded(page_shell.run(run))
    with served(page_shell, review) as link:
        reviewed = review_by_keyboard(browser, link, CONVERSATIONS)
    file = read_review(folder / "runs" / "my" / "review.jsonl")
    decisions = [decision for decision in file.decisions if isinstance(decision, SpanDecision)]
    assert len(decisions) == len(file.decisions) >= CONVERSATIONS
    assert {decision.id for decision in decisions} == set(reviewed)
    assert {decision.kind for decision in decisions} == {"keep", "drop"}

    rows = reviewed_rows(folder, decisions, tiny_model_folder)
    assert sum(row.labels != row.labels_before for row in rows) >= CONVERSATIONS / 2
    for wanted in (0.0, 1.0):
        labels = {
            label != UNTRAINED for row in rows for label, w in zip(row.labels, row.decided, strict=True) if w == wanted
        }
        assert labels == {wanted == 1.0}
    trained = {(row.ids, row.labels) for row in rows if set(row.labels) != {UNTRAINED}}

    printed = succeeded(page_shell.run(exports))
    assert f"{len(decisions)} decisions on {CONVERSATIONS} rows fix" in printed
    for trainer in ("trl", "axolotl"):
        exported = pq.read_table(folder / f"for-{trainer}" / "train.parquet").to_pylist()
        assert rows_fed((row["input_ids"], row["labels"]) for row in exported) == dict.fromkeys(trained, 1), trainer
    config = yaml.safe_load((folder / "for-axolotl" / "train.yaml").read_text(encoding="utf-8"))
    check_keys(config, AXOLOTL)
    assert config["sequence_len"] >= max(len(ids) for ids, _ in trained)

    succeeded(page_shell.run(train))
    batches = [json.loads(line) for line in (folder / "batches.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(batches) == 5
    assert rows_fed(row for batch in batches for row in rows_of_batch(batch)).keys() == trained


@contextmanager
def served(shell: PageShell, command: str) -> Iterator[str]:
    """The page's command that serves the review; gives the link that it prints."""
    process = subprocess.Popen(
        shell.command(command),
        cwd=shell.folder,
        env=shell.variables,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            assert process.stdout is not None
            printed = [process.stdout.readline() for _ in range(2)]
            found = re.search(r"http://\S+", printed[1])
            assert found is not None, printed
            yield found[0]
        finally:
            os.killpg(process.pid, signal.SIGTERM)


def review_by_keyboard(browser: Any, link: str, conversations: int) -> list[str]:
    """Drop one suggested span, keep the next, and drop every third with a token more, until every suggestion of the
    first conversations is decided; their ids."""
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.goto(link)
    page.wait_for_selector("html[data-ready]", state="attached")
    page.wait_for_timeout(300)  # the decisions so far are asked for
    reviewed: list[str] = []
    for keys in cycle(("d", "a", "ed")):
        name = page.inner_text("#heading")
        if name not in reviewed:
            if len(reviewed) == conversations:
                break
            reviewed.append(name)
        before = page.inner_text("#review-progress")
        for key in keys:
            page.keyboard.press(key)
        wait_until_changed(page, "#review-progress", before)
    page.close()
    return reviewed


def wait_until_changed(page: Any, selector: str, before: str) -> None:
    """Playwright's own waiting evaluates a string in the page, which the page's policy forbids."""
    for _ in range(200):
        if page.inner_text(selector) != before:
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"still: {before}; {page.inner_text('#review-said')}")


@dataclass(frozen=True)
class ReviewedRow:
    """A row of the run: what its strategy labels, what people decided (a weight, or NaN), and what that makes."""

    ids: tuple[int, ...]
    labels_before: tuple[int, ...]
    decided: tuple[float, ...]
    labels: tuple[int, ...]


def reviewed_rows(folder: Path, decisions: Sequence[SpanDecision], model: Path) -> list[ReviewedRow]:
    """Every row of the run, its decisions placed by the characters of its tokens in the decoded row."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    table = read_table(results_of(folder / "runs" / "my") / "fixed_model" / "kept.parquet")
    conversations = {row.id: row for row in load_pool(folder / "my.jsonl")}
    rows = []
    for number, name in enumerate(table.ids):
        ids, kept = table["input_ids"][number], table["is_kept"][number]
        text = tokenizer.decode(ids)
        encoded = tokenizer(text, return_offsets_mapping=True)
        assert encoded["input_ids"] == ids.tolist()
        own = [decision for decision in decisions if decision.id == name]
        weights = weights_of_characters(text, conversations[name], own)
        decided = np.array([lowest(weights[start:end]) for start, end in encoded["offset_mapping"]])
        before = np.where(kept, ids, UNTRAINED)
        labels = np.where(np.isnan(decided), before, np.where(decided == 1, ids, UNTRAINED))
        rows.append(ReviewedRow(*(tuple(values.tolist()) for values in (ids, before, decided, labels))))
    return rows


def weights_of_characters(text: str, conversation: Conversation, decisions: Sequence[SpanDecision]) -> np.ndarray:
    """What is decided on each character of a row's text, a later decision in place of an earlier one; else NaN."""
    weights = np.full(len(text), np.nan)
    starts, behind = [], 0
    for turn in conversation.turns:
        starts.append(text.index(turn.content, behind))
        behind = starts[-1] + len(turn.content)
    for decision in decisions:
        start = starts[decision.message]
        weights[start + decision.start : start + decision.end] = decision.weight
    return weights


def lowest(weights: np.ndarray) -> float:
    decided = weights[~np.isnan(weights)]
    return float(decided.min()) if len(decided) else float("nan")
