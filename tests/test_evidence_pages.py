"""``evidence``: pages say what the files of finished cells say, by rule; which cells and parts there are."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # where pytest is not started with `python -m`
arrays = importlib.import_module("evidence.arrays")
cells = importlib.import_module("evidence.cells")
quoted = importlib.import_module("evidence.quoted")
reading = importlib.import_module("evidence.reading")
render = importlib.import_module("evidence.render")
files = importlib.import_module("evidence.results_files")
run = importlib.import_module("evidence.run")
scales = importlib.import_module("evidence.scales")
tables = importlib.import_module("evidence.tables")
words = importlib.import_module("evidence.words")

NUMBER = re.compile(r"(?:[+−]|(?<=[ (])-)?\d+\.\d{3,}")  # programs print a hyphen for a minus


class TestPages:
    @pytest.mark.parametrize("name", render.PAGES)
    def test_rendering_changes_nothing_that_is_committed(self, name: str):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert list(render.parts_of(text))
        assert render.render(text) == text

    def test_drawings_are_there(self):
        """Their bytes depend on matplotlib's version; their data do not."""
        for path, text in render.files_to_write().items():
            assert path.exists(), path
            if path.suffix == ".csv":
                assert path.read_text(encoding="utf-8") == text

    @pytest.mark.parametrize("name", render.PAGES)
    def test_every_number_of_a_part_comes_from_a_file(self, name: str):
        known = list(numbers_in(files.read_quoted(render.RESULTS)))
        for results in files.read_results(render.RESULTS).values():
            known += numbers_of(results)
        for part, text in render.parts_of((ROOT / name).read_text(encoding="utf-8")):
            for found in NUMBER.findall(re.sub(r"\(assets/[^)]*\)|`[^`]*`|torch [^;]*", "", text)):
                digits = len(found.partition(".")[2])
                value = float(found.replace("−", "-"))
                assert any(abs(value - number) <= 0.5001 * 10**-digits for number in known), (part, found)

    def test_no_measured_effect_stands_outside_a_part(self):
        for name in render.PAGES:
            text = render._PART.sub("", (ROOT / name).read_text(encoding="utf-8"))
            assert not re.findall(r"[+−]0\.\d{3,}|\d\.\d{3,} ±", text), name

    def test_an_unknown_part_is_refused(self):
        with pytest.raises(SystemExit, match="no such part"):
            render.render("<!-- evidence: nothing -->x<!-- /evidence -->")

    def test_a_changed_figure_changes_the_page(self, tmp_path):
        document = files.read_quoted(render.RESULTS)
        document["noise"]["cells"][0]["minus_full_tokens"]["oracle"] = [-0.5, -0.6, -0.4]
        document["noise"]["cells"][0]["oracle_minus_random_mask"] = [-0.3, -0.4, -0.2]
        (tmp_path / "quoted.json").write_text(json.dumps(document))
        text = (ROOT / "docs/when-cleaning-helps.md").read_text(encoding="utf-8")
        assert "−0.5000 (−0.6000 to −0.4000) | +0.0106 (+0.0061 to +0.0151) | – | helps |" in render.render(
            text, tmp_path
        )


def numbers_in(value: Any):
    """Every number of a JSON value, those below 1 also in percent, and half of each interval's width."""
    if isinstance(value, dict):
        for part in value.values():
            yield from numbers_in(part)
    elif isinstance(value, list):
        if len(value) == 3 and all(isinstance(part, float) for part in value):
            yield (value[2] - value[1]) / 2
        for part in value:
            yield from numbers_in(part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from (float(value), 100 * float(value))


def numbers_of(results: Any) -> list[float]:
    """Every number that tables and sentences of a scale may show."""
    found = [number for document in results.documents.values() for number in numbers_in(document)]
    measured = [cell for cell in results.cells if "heldout" in results.documents.get(cell.name, {})]
    for one in measured:
        for other in measured:
            if one != other and (one.model, one.seed) == (other.model, other.seed):
                for source in (None, *scales.SOURCES):
                    found += numbers_in(vars(results.difference(one, other, source)))
                if one.reference == other.reference and (change := results.preference_change(one, other)):
                    found += numbers_in(vars(change))
    return found


class TestArrays:
    @given(st.lists(st.floats(width=32, allow_nan=False)), st.lists(st.integers(-(2**31), 2**31 - 1)))
    def test_an_array_comes_back(self, floats, integers):
        for values in (np.array(floats, np.float32), np.array(integers, np.int32)):
            back = arrays.unpack(arrays.pack(values))
            assert back.dtype == values.dtype
            np.testing.assert_array_equal(back, values)

    def test_answers_of_a_benchmark_take_a_few_kilobytes(self):
        answers = np.random.default_rng(0).random(14_042) < 0.25
        assert len(arrays.pack(answers.astype(np.float32))) < 4_096


class TestCells:
    @pytest.mark.parametrize("scale", scales.SCALES.values(), ids=scales.SCALES)
    def test_names_are_different_and_the_main_table_comes_first(self, scale: Any):
        found = cells.all_cells(scale)
        assert len({cell.name for cell in found}) == len(found)
        main = {cell.strategy for cell in found if cell.table == "main" and cell.model == "smollm2"}
        assert main == set(cells.MAIN)
        first = [cell.table for cell in found[: len(found) // 4]]
        assert set(first) <= {"main", "benchmarks", "steps"}
        assert {task for group in cells.TASKS.values() for task in group} == {
            *("mmlu", "truthfulqa", "xquad", "hellaswag", "arc_challenge", "boolq", "logiqa", "arc_easy")
        }

    def test_what_each_scale_takes(self):
        assert sum(scales.CPU.rows.values()) == 600
        assert sum(scales.GPU.rows.values()) == 50_000
        assert scales.GPU.heldout["gpteacher_roleplay"] == 400
        for scale in (scales.CPU, scales.GPU):
            shares = {name: rows / sum(scale.rows.values()) for name, rows in scale.rows.items()}
            assert shares == pytest.approx({n: r / 50_000 for n, r in scales.GPU.rows.items()}, abs=0.002)
            assert scale.best_rated * 5 == sum(scale.rows.values())
        proportions = {cell.proportion for cell in cells.all_cells(scales.CPU) if cell.table == "proportions"}
        assert proportions == {0.3, 0.5, 0.7, 0.85, 1.0}
        assert not [cell for cell in cells.all_cells(scales.GPU) if cell.step]

    def test_steps_come_before_what_finds_them(self):
        names = [cell.name for cell in cells.all_cells(scales.CPU)]
        assert names.index("smollm2-rho-k0.6-s42-passes") < names.index("smollm2-rho-k0.6-s42-train")
        assert names.index("smollm2-self_evolving-k0.3-s42-train") + 1 == names.index("smollm2-self_evolving-k0.3-s42")

    def test_patterns(self):
        setup = importlib.import_module("evidence.setup")
        found = setup.chosen(cells.all_cells(scales.CPU), "smollm2-none-s42,gemma-*-s42")
        assert found[0].name == "smollm2-none-s42"
        assert {cell.model for cell in found[1:]} == {"gemma"}
        with pytest.raises(SystemExit, match="no cell is called 'nothing'"):
            setup.chosen(found, "smollm2-none-s42,nothing")


@given(st.lists(st.floats(1, 600), min_size=1, max_size=30))
def test_parts_keep_the_order_and_the_bound(seconds):
    of_scale = cells.all_cells(scales.GPU)[: len(seconds)]
    times = dict(zip((cell.name for cell in of_scale), seconds, strict=True))
    found = list(run.parts(of_scale, times, ["--scale", "gpu"]))
    names = [command.split("--cells ")[1].strip("'").split(",") for command, _ in found]
    assert [name for part in names for name in part] == [cell.name for cell in of_scale]
    for part, (command, taken) in zip(names, found, strict=True):
        assert command.startswith("python -m evidence.run --scale gpu --cells ")
        assert taken == pytest.approx(sum(times[name] for name in part))
        assert taken <= run.PART_SECONDS or len(part) == 1


def heldout_document(cell: Any, losses: np.ndarray, tokens: np.ndarray, rows: np.ndarray | None = None) -> dict:
    rows = np.arange(len(losses)) if rows is None else rows
    packed = {"rows": rows.astype(np.int32), "losses": losses.astype(np.float32), "tokens": tokens.astype(np.int32)}
    return {
        "cell": cell.document,
        "heldout": {name: arrays.pack(values) for name, values in packed.items()},
        "margins": arrays.pack(np.array([losses.mean(), 1.0, np.nan], np.float32)),
        "kept_share": 0.6,
        "rounds": [],
        "references": [],
        "stages": [{"kind": "training", "name": "a", "seconds": 2.5, "peak_bytes": 2**30}],
        "machine": {
            "processor": "P",
            "cores": 2,
            "gpu": None,
            "torch": "2",
            "date": "2026-11-30T10:00+00:00",
            "load": [1, 4, 1],
        },
    }


@pytest.fixture
def measured(tmp_path: Path) -> Any:
    """Full tokens, a clearly worse fixed-model, an indifferent RHO, an ``auto`` that reports on every other row."""
    folder = tmp_path / "cpu"
    folder.mkdir()
    heldout = dict.fromkeys(scales.SOURCES, 4)
    (folder / "pool.json").write_text(json.dumps({"heldout": heldout}))
    random = np.random.default_rng(0)
    tokens = random.integers(1, 9, 20)
    tokens[3] = 0
    losses = random.random(20) * tokens
    some = np.arange(0, 20, 2)
    every = {
        "full_tokens": heldout_document(cells.Cell("smollm2", "full_tokens", 42), losses, tokens),
        "fixed_model": heldout_document(cells.Cell("smollm2", "fixed_model", 42), losses + 0.25 * tokens, tokens),
        "rho": heldout_document(cells.Cell("smollm2", "rho", 42), losses + np.resize([0.5, -0.5], 20) * tokens, tokens),
        "auto": heldout_document(
            cells.Cell("smollm2", "auto", 42),
            losses[some][::-1] - 0.25 * tokens[some][::-1],
            tokens[some][::-1],
            some[::-1],
        ),
    }
    for document in every.values():
        (folder / f"{document['cell']['name']}.json").write_text(json.dumps(document))
    return files.read_results(tmp_path)["cpu"]


class TestFigures:
    def test_a_difference_is_that_of_the_tokens(self, measured):
        one, full = (measured.find("smollm2", name, 42) for name in ("fixed_model", "full_tokens"))
        found = measured.difference(one, full)
        assert (found.difference, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25), abs=1e-6)
        assert found.rows == 19  # one has no token

    def test_a_difference_by_hand(self, measured):
        one, full = (measured.find("smollm2", name, 42) for name in ("rho", "full_tokens"))
        losses, others = (arrays.unpack(measured.documents[cell.name]["heldout"]["losses"]) for cell in (one, full))
        tokens = arrays.unpack(measured.documents[full.name]["heldout"]["tokens"])
        of_dolly = slice(12, 16)
        found = measured.difference(one, full, "dolly")
        by_hand = (losses[of_dolly] - others[of_dolly]).sum() / tokens[of_dolly].sum()
        assert found.difference == pytest.approx(by_hand, abs=1e-5)
        assert found.rows == 4

    def test_auto_is_compared_on_its_own_rows(self, measured):
        auto, full = (measured.find("smollm2", name, 42) for name in ("auto", "full_tokens"))
        found = measured.difference(auto, full)
        assert found.rows == 10
        assert found.difference == pytest.approx(-0.25, abs=1e-6)

    def test_sentences_follow_the_intervals(self, measured):
        text = reading.reading(measured)
        assert (
            "Fixed-model cleaning beats full tokens (§6.2): **does not hold here: the opposite does**. worse with"
            in text
        )
        assert "RHO beats full tokens (Table 1): **is not shown here**. no clear difference with" in text
        assert "auto beats full tokens: **holds here**. better with SmolLM2-135M-Instruct, seed 42: −0.2500 (" in text
        assert "Self-evolving cleaning beats full tokens (§6.2): **not measured yet**." in text

    def test_tables_name_what_is_missing(self, measured):
        text = tables.main_table(measured)
        assert "| SmolLM2-135M-Instruct | 42 | fixed-model | 60% | +0.2500 (" in text
        assert "**Not measured yet:** 22 of 26 cells: `smollm2-none-s42`" in text
        assert "`python -m evidence.run --data DIR --scale cpu`; P, 2 cores; torch 2; 2026-11-30." in text
        cost = tables.cost_table(measured)
        assert "| SmolLM2-135M-Instruct | training: a | 4 | 10 | 1.00 |" in cost
        assert "WARNING: in 4 of 4 cells other work ran beside (load averages up to 4.0)" in cost
        assert "k" not in tables.swept(measured, "smollm2", "fixed_model")
        assert list(tables.swept(measured, "smollm2", "fixed_model")) == [0.6]

    @pytest.mark.parametrize(
        ("low", "high", "lower", "word"),
        [
            (0.1, 0.2, True, words.WORSE),
            (0.1, 0.2, False, words.BETTER),
            (-0.2, -0.1, True, words.BETTER),
            (-0.2, -0.1, False, words.WORSE),
            (-0.1, 0.1, True, words.UNCLEAR),
            (0.0, 0.1, True, words.UNCLEAR),
        ],
    )
    def test_words(self, low, high, lower, word):
        assert words.judge(low, high, lower_is_better=lower) == word


def test_quoted_parts_are_all_used():
    used = {name for page in render.PAGES for name, _ in render.parts_of((ROOT / page).read_text(encoding="utf-8"))}
    assert set(quoted.QUOTED) <= used
