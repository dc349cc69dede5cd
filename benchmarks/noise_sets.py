"""The rows of ``benchmarks.noise``: sets whose noise is known, which cells there are, and how rows are drawn."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tokenclean.evaluation.corrupted_answers import corrupt_answers
from tokenclean.lab import NOISE_KINDS, NoiseSettings, NoiseSpan, plant
from tokenclean.lab.truth import TruthPool, clean_versions, read_truth, truth_of_planted
from tokenclean.pool import Conversation, Pool, load_sources
from tokenclean.recipe import source_from

FILES = {
    name: f"noise/{file}.jsonl"
    for name, file in {
        "ru_en": "ru_en",
        "summedits": "summedits",
        "coachlm": "coachlm",
        "halueval": "halueval_general",
        "e2e": "e2e",
    }.items()
}
"""Sets with noise that nobody planted -> their file below the data folder."""
ANSWERS = "answers"
CLEAN_POOL, QUESTIONS = "sft/alpaca.jsonl", "sft/flan_cot.jsonl"
SHARED_ROWS = ("noise/halueval_alpaca_rows.csv", "noise/coachlm_alpaca_rows.csv")
PLANTED_ROWS = 10_000
CURVE_KINDS = ("corrupted", "swapped", "paraphrased")
FIRST_MEASURE = {"e2e": "slot errors", "halueval": "loss", ANSWERS: "accuracy"}
"""The measure that counts for a set; for all others it is ``preference``."""

_HELDOUT_SHARE = {"halueval": 0.0, "e2e": 0.0}  # of rows with noise; elsewhere half
_LEAST_OVERLAP = 0.6  # below it a span of coachlm is the whole answer
_CHOICE = re.compile(r"^\s*(?:- *(?P<text>.+?)|\((?P<letter>[A-H])\) *.+?)\s*$")
_ANSWER = re.compile(r"answer(?: is)?:?\s+(?!.*answer)(?P<answer>.+?)\.?\s*$", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Cell:
    """One training set. ``rows``: None for all there are. ``share``: of rows with noise, None for the set's own.
    ``heldout``: held-out rows. ``texts``: how many of them are answered, where texts are measured. ``characters``: of
    a row at most; None for no bound."""

    set: str
    rows: int | None
    share: float | None = None
    epochs: int = 1
    seed: int = 0
    heldout: int = 200
    texts: int = 100
    characters: int | None = None

    @property
    def name(self) -> str:
        """For files and ``--cells``."""
        parts = [self.set, "all" if self.rows is None else str(self.rows)]
        parts += [f"n{self.share}"] if self.share is not None else []
        parts += [f"e{self.epochs}"] if self.epochs > 1 else []
        return "-".join([*parts, f"s{self.seed}", *(["quick"] if self.characters else [])])


def all_cells() -> list[Cell]:
    """Every cell of the registered experiment, those of few rows first; ``small_cells`` are apart."""
    cells = []
    for name in (*FILES, ANSWERS, *CURVE_KINDS):
        base = Cell(name, 500, None if name in FILES else 0.3)
        sizes = (500,) if name == "coachlm" else (500, 2000)
        cells += [replace(base, rows=rows, seed=seed) for rows in sizes for seed in (0, 1)]
        cells += [replace(base, rows=None), replace(base, epochs=3)]
        if name in ("ru_en", "halueval"):
            cells.append(replace(base, share=0.7))
        if name not in FILES:
            cells += [replace(base, share=share) for share in (0.1, 0.6)]
    cells += [Cell(kind, 500, 0.3) for kind in NOISE_KINDS if kind not in CURVE_KINDS]
    return sorted(cells, key=lambda cell: (cell.rows or 10**9) * cell.epochs)


def quick_cells() -> list[Cell]:
    """Three small cells that show that the benchmark works."""
    small = Cell("halueval", 100, 0.7, heldout=60, texts=16, characters=500)
    return [small, replace(small, set="ru_en"), replace(small, set="corrupted", share=0.6)]


def small_cells() -> list[Cell]:
    """Rows of at most 500 characters: the quick cells, the other planted kinds, and the quick cells with four times the
    rows. None is registered, so they show what to expect and decide nothing."""
    quick = quick_cells()
    kinds = [replace(quick[-1], set=kind) for kind in NOISE_KINDS if kind != quick[-1].set]
    return [*quick, *kinds, *(replace(cell, rows=400) for cell in quick)]


def read_rows(cell: Cell, data: Path) -> tuple[TruthPool, TruthPool]:
    """Training rows and held-out rows, which share no prompt. Raises SystemExit where there are too few."""
    if cell.set in FILES:
        training, candidates = _natural_rows(cell.set, data)
        candidates = _short(candidates, cell)
        noisy = _has_noise(candidates)
        heldout = candidates.take(_draw(noisy, cell.heldout, _HELDOUT_SHARE.get(cell.set, 0.5), 0, cell))
        training = _short(training.take(_of_other_prompts(training.pool, heldout.pool)), cell)
        return training.take(_draw(_has_noise(training), cell.rows, cell.share, cell.seed, cell)), heldout
    clean, spoil = _clean_rows(cell.set, data)
    clean = clean.take(_short_rows(clean, cell))
    no_noise = np.zeros(len(clean), dtype=bool)
    drawn = _draw(no_noise, cell.heldout, None, 0, cell)
    heldout, clean = clean.take(drawn), clean.take(np.setdiff1d(np.arange(len(clean)), drawn))
    clean = clean.take(_of_other_prompts(clean, heldout))
    rows = _draw(np.zeros(len(clean), dtype=bool), cell.rows, None, cell.seed, cell)
    share = 0.0 if cell.set == ANSWERS else 0.5
    return spoil(clean.take(rows), cell.share or 0.0, cell.seed), spoil(heldout, share, 0)


def trusted_rows(cell: Cell, data: Path, training: TruthPool, heldout: TruthPool, count: int) -> Pool:
    """``count`` clean rows of the cell's set, drawn with its seed, that share no prompt with its rows.

    Raises SystemExit where there are too few."""
    if cell.set in FILES:
        known, _ = _natural_rows(cell.set, data)
        known = known.take(np.flatnonzero(np.array([row is not None for row in known.clean])))
        clean = replace(known.pool, conversations=clean_versions(known))
    else:
        clean, _ = _clean_rows(cell.set, data)
    clean = clean.take(_short_rows(clean, cell))
    for used in (training, heldout):
        clean = clean.take(_of_other_prompts(clean, used.pool))
    return clean.take(_draw(np.zeros(len(clean), dtype=bool), count, None, cell.seed, cell))


Spoil = Callable[[Pool, float, int], TruthPool]
"""Plants noise into a share of clean rows, by a seed."""


def _natural_rows(name: str, data: Path) -> tuple[TruthPool, TruthPool]:
    """Rows to draw training rows from, and rows to draw held-out ones from; they may be the same."""
    file = data / FILES[name]
    truth = read_truth([source_from({"path": str(file)})])
    records = {row["id"]: row for row in map(json.loads, file.read_text(encoding="utf-8").splitlines())}
    of_rows = [records[row.original_id] for row in truth.pool]

    def where(chosen: Sequence[bool]) -> np.ndarray:
        return np.flatnonzero(np.array(chosen, dtype=bool))

    match name:
        case "ru_en":
            return tuple(truth.take(where([row["split"] == split for row in of_rows])) for split in ("train", "test"))
        case "summedits":
            documents = sorted({row["prompt"] for row in of_rows})
            order = np.random.default_rng(0).permutation(len(documents))
            heldout = {documents[place] for place in order[: len(documents) // 5]}
            is_heldout = np.array([row["prompt"] in heldout for row in of_rows])
            return truth.take(where(~is_heldout)), truth.take(where(is_heldout))
        case "coachlm":
            rows = truth.take(where([row["overlap"] >= _LEAST_OVERLAP for row in of_rows]))
            return rows, rows
        case "halueval":
            rows = truth.take(where([not row["row_noisy"] or bool(row["noise"]) for row in of_rows]))
            return rows, rows
        case _:
            rows = zip(truth.pool, of_rows, strict=True)
            clean = tuple(_with_prompt(row, record["prompt_clean"]) for row, record in rows)
            truth = replace(truth, clean=clean)
            first = {row["prompt"]: place for place, row in reversed(list(enumerate(of_rows))) if not row["row_noisy"]}
            is_first = [first.get(row["prompt"]) == place for place, row in enumerate(of_rows)]
            training = where([row["split"] == "pool" for row in of_rows])
            heldout = where([row["split"] == "heldout" and one for row, one in zip(of_rows, is_first, strict=True)])
            return truth.take(training), truth.take(heldout)


def _clean_rows(name: str, data: Path) -> tuple[Pool, Spoil]:
    """Clean rows, and what spoils a share of them."""
    if name == ANSWERS:
        pool = load_sources([source_from({"path": str(data / QUESTIONS)})])
        return pool.take([place for place, row in enumerate(pool) if find_question(row) is not None]), spoil_answers
    pool = load_sources([source_from({"path": str(data / CLEAN_POOL)})])
    shared = set()
    for file in SHARED_ROWS:
        with (data / file).open(encoding="utf-8", newline="") as lines:
            shared |= {int(row["alpaca_row"]) for row in csv.DictReader(lines)}
    rows = [place for place, row in enumerate(pool) if row.line - 1 not in shared]
    drawn = np.random.default_rng(0).permutation(rows)[:PLANTED_ROWS]

    def spoil(clean: Pool, share: float, seed: int) -> TruthPool:
        return truth_of_planted(clean, plant(clean, {name: NoiseSettings(row_share=share)}, seed=seed))

    # Alpaca's rows without an answer are no part of a cell, however few rows it has.
    return replace(pool.take(np.sort(drawn)), rejected=()), spoil


@dataclass(frozen=True)
class Question:
    """A multiple-choice question in an answer that reasons: the reasoning ``before`` the chosen option, the options,
    the number of the right one, and what comes ``after`` it."""

    before: str
    choices: tuple[str, ...]
    answer: int
    after: str


def find_question(row: Conversation) -> Question | None:
    """The question of a Flan-CoT row whose last words name one of its options; None for another row."""
    prompt, response = row.turns[0].content.replace("\\n", "\n"), row.turns[-1].content
    _, options, listed = prompt.rpartition("Options:")
    found = _ANSWER.search(response)
    matches = [match for line in listed.splitlines() if (match := _CHOICE.match(line))]
    choices = tuple(f"({m['letter']})" if m["letter"] else _short_name(m["text"]) for m in matches)
    if not options or found is None or len(set(choices)) < max(2, len(choices)) or found["answer"] not in choices:
        return None
    start, end = found.span("answer")
    return Question(response[:start], choices, choices.index(found["answer"]), response[end:])


def spoil_answers(clean: Pool, share: float, seed: int) -> TruthPool:
    """Rows of which a share names another option; the span is that option."""
    questions = [question for row in clean if (question := find_question(row)) is not None]
    right = np.array([question.answer for question in questions])
    wrong = corrupt_answers(right, np.array([len(q.choices) for q in questions]), rate=share, seed=seed)
    rows, spans = [], []
    for number, (row, question, answer) in enumerate(zip(clean, questions, wrong, strict=True)):
        rows.append(with_answer(row, question, int(answer)))
        if answer != question.answer:
            start, named = len(question.before), question.choices[answer]
            original = question.choices[question.answer]
            spans.append(NoiseSpan(number, len(row.turns) - 1, start, start + len(named), ANSWERS, original))
    return TruthPool(Pool(tuple(rows)), tuple(spans), clean.conversations)


def with_answer(row: Conversation, question: Question, answer: int) -> Conversation:
    """The row with the option of this number as its answer."""
    content = f"{question.before}{question.choices[answer]}{question.after}"
    return replace(row, turns=(*row.turns[:-1], replace(row.turns[-1], content=content)))


def _short_name(choice: str) -> str:
    """``Sentence A`` of ``Sentence A: "…"``, by which answers call it."""
    return choice.partition(":")[0] if choice.startswith("Sentence ") else choice


def _with_prompt(row: Conversation, prompt: str) -> Conversation:
    return replace(row, turns=(replace(row.turns[0], content=prompt), *row.turns[1:]))


def _has_noise(truth: TruthPool) -> np.ndarray:
    found = np.zeros(len(truth), dtype=bool)
    found[[span.row for span in truth.spans]] = True
    return found


def _short(truth: TruthPool, cell: Cell) -> TruthPool:
    return truth.take(_short_rows(truth.pool, cell))


def _short_rows(pool: Pool, cell: Cell) -> list[int]:
    most = cell.characters or np.inf
    return [place for place, row in enumerate(pool) if sum(len(turn.content) for turn in row.turns) <= most]


def _of_other_prompts(pool: Pool, heldout: Pool) -> list[int]:
    prompts = {row.turns[0].content for row in heldout}
    return [place for place, row in enumerate(pool) if row.turns[0].content not in prompts]


def _draw(noisy: np.ndarray, count: int | None, share: float | None, seed: int, cell: Cell) -> np.ndarray:
    """``count`` row numbers, ascending, ``share`` of them with noise; None for all, and for as many as it comes."""
    order = np.random.default_rng(seed).permutation(len(noisy))
    if share is None:
        parts = [(order, len(noisy) if count is None else count)]
    else:
        wanted = round(share * (count or 0))
        parts = [(order[noisy[order]], wanted), (order[~noisy[order]], (count or 0) - wanted)]
    if any(len(rows) < some for rows, some in parts):
        has = " and ".join(f"{len(rows):,} of {some:,}" for rows, some in parts)
        raise SystemExit(f"{cell.name}: too few rows: there are {has} that are wanted; leave this cell out (--cells)")
    return np.sort(np.concatenate([rows[:some] for rows, some in parts]))
