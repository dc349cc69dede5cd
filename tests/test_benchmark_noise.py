"""``benchmarks.noise``: which rows a cell has, what is measured, what is not measured again, and the tables."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenclean.lab import NOISE_KINDS
from tokenclean.pool import Conversation, Turn

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # where pytest is not started with `python -m`
noise, sets, measures, tables, search = (
    importlib.import_module(f"benchmarks.{name}")
    for name in ("noise", "noise_sets", "noise_measures", "noise_tables", "search")
)

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ("training.lora.rank=2", "training.minimum_steps=2", "evaluation.sample_tokens=4")
TOWNS = ("Rome", "Oslo", "Lima", "Kyiv", "Bonn", "Riga", "Cork", "Bern")


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def natural(name: str, number: int, *, is_noisy: bool, **more: object) -> dict[str, object]:
    town = TOWNS[number % len(TOWNS)]
    return {
        "id": f"{name}-{number}",
        "split": "pool",
        "prompt": f"Where does number {number} live?",
        "response": f"Number {number} lives in {'Mars' if is_noisy else town}.",
        "noise": [[len(f"Number {number} lives in "), len(f"Number {number} lives in Mars"), "value"]] * is_noisy,
        "clean": f"Number {number} lives in {town}.",
        "row_noisy": is_noisy,
        **more,
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up rows of every set, with the keys of the real ones."""
    folder = tmp_path_factory.mktemp("noise-data")
    noisy = [number % 2 == 0 for number in range(40)]
    rows = [natural("ru", n, is_noisy=is_noisy) for n, is_noisy in enumerate(noisy)]
    write(folder / "noise/ru_en.jsonl", [{**row, "split": "test" if n < 20 else "train"} for n, row in enumerate(rows)])
    write(folder / "noise/summedits.jsonl", [{**row, "prompt": f"Text {n // 4}"} for n, row in enumerate(rows)])
    write(folder / "noise/coachlm.jsonl", [{**row, "overlap": 0.9 if n < 30 else 0.1} for n, row in enumerate(rows)])
    unknown = [{**row, "clean": None} for row in rows]
    unlocated = {**natural("h", 99, is_noisy=False), "row_noisy": True, "clean": None}
    write(folder / "noise/halueval_general.jsonl", [*unknown, unlocated])
    slots = "name[{}], area[riverside], eatType[pub]"
    described = [
        {
            **row,
            "split": "heldout" if n < 20 else "pool",
            "prompt": f"Describe this place.\n\n{slots.format(f'The {TOWNS[n % 8]} {n // 2}')}",
            "prompt_clean": f"Describe this place.\n\n{slots.format(f'The {TOWNS[n % 8]} {n // 2} (as said)')}",
        }
        for n, row in enumerate(unknown)
    ]
    write(folder / "noise/e2e.jsonl", described)
    asked = [
        {
            "instruction": f"Question {n}: is {n} even?\\nOptions:\\n- yes\\n- no\\n",
            "input": "",
            "output": f"{n} by 2 leaves {n % 2}.\nThe answer is {('yes', 'no')[n % 2]}.",
        }
        for n in range(40)
    ]
    write(folder / "sft/flan_cot.jsonl", [*asked, {"instruction": "No options.", "input": "", "output": "So no."}])
    plain = [
        {"instruction": f"Name town {n}.", "input": "", "output": f"It is {TOWNS[n % 8]} {n}, a town by the sea."}
        for n in range(44)
    ]
    write(folder / "sft/alpaca.jsonl", [*plain, {"instruction": "Say nothing.", "input": "", "output": ""}])
    (folder / "noise/halueval_alpaca_rows.csv").write_text("id,alpaca_row\nhalueval-0,0\nhalueval-1,1\n")
    (folder / "noise/coachlm_alpaca_rows.csv").write_text("id,alpaca_row\ncoachlm-0,1\ncoachlm-1,2\n")
    return folder


def cell_of(name: str, **more: object) -> Any:
    return sets.Cell(name, **{"rows": 16, "heldout": 6, "texts": 3, **more})


class TestRows:
    @pytest.mark.parametrize("name", [*sets.FILES, "answers", "corrupted"])
    def test_training_and_heldout_rows_share_no_prompt_and_seeds_draw_others(self, data: Path, name: str):
        share = None if name in sets.FILES else 0.5
        training, heldout = sets.read_rows(cell_of(name, rows=10, share=share), data)
        assert (len(training), len(heldout)) == (10, 6)
        prompts = {row.turns[0].content for row in training.pool}
        assert not prompts & {row.turns[0].content for row in heldout.pool}
        assert all(row is not None for row in heldout.clean)
        other, same = sets.read_rows(cell_of(name, rows=10, share=share, seed=1), data)
        assert same.pool.conversations == heldout.pool.conversations
        assert {row.id for row in other.pool} != {row.id for row in training.pool}

    def test_a_share_of_rows_with_noise(self, data: Path):
        training, heldout = sets.read_rows(cell_of("ru_en", rows=10, share=0.7), data)
        assert len({span.row for span in training.spans}) == 7
        assert len({span.row for span in heldout.spans}) == 3  # half
        planted, _ = sets.read_rows(cell_of("corrupted", rows=10, share=0.7), data)
        assert len({span.row for span in planted.spans}) == 7

    def test_what_each_set_leaves_out(self, data: Path):
        halueval, heldout = sets.read_rows(cell_of("halueval", rows=None), data)
        assert len(halueval) == 34  # 40 located or clean ones less 6
        assert not heldout.spans
        coachlm, _ = sets.read_rows(cell_of("coachlm", rows=None), data)
        assert len(coachlm) == 24
        planted, _ = sets.read_rows(cell_of("corrupted", rows=None, share=0.5), data)
        assert len(planted) == 44 - 3 - 6  # three share a prompt with another set
        short, _ = sets.read_rows(cell_of("corrupted", rows=None, share=0.5, heldout=2, characters=45), data)
        assert len(short) == 7 - 2  # those of one digit

    def test_corrected_rows_of_e2e_have_the_data_that_the_text_states(self, data: Path):
        training, heldout = sets.read_rows(cell_of("e2e", rows=16), data)
        assert all("(as said)" in row.turns[0].content for row in training.clean)
        assert all("(as said)" not in row.turns[0].content for row in training.pool)
        assert len({row.turns[0].content for row in heldout.pool}) == 6

    def test_too_few_rows_are_named(self, data: Path):
        with pytest.raises(SystemExit, match=r"ru_en-19-n0\.9-s0: too few rows: there are 10 of 17 and 10 of 2"):
            sets.read_rows(cell_of("ru_en", rows=19, share=0.9), data)


class TestQuestions:
    @staticmethod
    def row(prompt: str, answer: str) -> Conversation:
        return Conversation("a", "a", (Turn("user", prompt), Turn("assistant", answer)))

    @pytest.mark.parametrize(
        ("options", "answer", "choices"),
        [
            ("\\n- yes\\n- no", "no", ("yes", "no")),
            ("\n(A) 1\n(B) 2", "(B)", ("(A)", "(B)")),
            ('\\n- Sentence A: "x"\\n- Sentence B: "y"', "Sentence B", ("Sentence A", "Sentence B")),
        ],
    )
    def test_options_and_the_answer_that_names_one(self, options: str, answer: str, choices: tuple[str, ...]):
        question = sets.find_question(
            self.row(f"Which?\\nOptions:{options}", f"The answer is clear. The answer is {answer}.")
        )
        assert question == sets.Question("The answer is clear. The answer is ", choices, 1, ".")

    @pytest.mark.parametrize(
        ("prompt", "answer"),
        [
            ("Which?", "The answer is no."),
            ("Options:\n- yes\n- no", "The answer is perhaps."),
            ("Options:\n- no", "The answer is no."),
            ("Options:\n- no\n- no\n- yes", "The answer is no."),
            ("Options:\n- yes\n- no", "No."),
        ],
    )
    def test_other_rows_are_no_questions(self, prompt: str, answer: str):
        assert sets.find_question(self.row(prompt, answer)) is None

    def test_spoilt_answers_name_another_option_and_spans_mark_it(self, data: Path):
        training, heldout = sets.read_rows(cell_of("answers", rows=20, share=0.5), data)
        assert not heldout.spans
        assert len(training.spans) == 10
        for span in training.spans:
            content = training.pool[span.row].turns[1].content
            assert {content[span.start : span.end], span.original} == {"yes", "no"}
            clean = training.clean[span.row].turns[1].content
            assert (
                content
                == clean[: span.start] + content[span.start : span.end] + clean[span.start + len(span.original) :]
            )


def test_cells_are_those_registered():
    cells = {cell.name: cell for cell in sets.all_cells()}
    assert len(cells) == len(sets.all_cells()) == 68
    assert {cell.seed for cell in cells.values() if cell.set == "ru_en" and cell.rows == 2000} == {0, 1}
    assert "coachlm-2000-s0" not in cells
    assert {cell.share for cell in cells.values() if cell.set == "swapped"} == {0.1, 0.3, 0.6}
    assert [cell.name for cell in noise.chosen_cells(None)] == [cell.name for cell in sets.quick_cells()]
    assert {cell.set for cell in noise.chosen_cells("e2e-*")} == {"e2e"}
    small = {cell.name: cell for cell in sets.small_cells()}
    assert len(small) == len(sets.small_cells()) == 14
    assert not small.keys() & cells.keys()
    assert {cell.set for cell in small.values() if cell.rows == 100} == {"halueval", "ru_en", *NOISE_KINDS}
    assert noise.chosen_cells("swapped-100-*") == [small["swapped-100-n0.6-s0-quick"]]
    with pytest.raises(SystemExit, match="no cell is called 'e3e'"):
        noise.chosen_cells("e3e")


class TestCell:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "share", "further"),
        [("ru_en", 0.7, "chrF"), ("e2e", 0.5, "slot errors"), ("answers", 0.5, "accuracy"), ("halueval", 0.5, None)],
    )
    def test_measures_of_each_set(self, data, tiny_model_folder, tmp_path, name, share, further):
        cell = cell_of(name, rows=10, share=share)
        found = measures.measure_cell(cell, data, tmp_path, str(tiny_model_folder), SMALL, note=lambda text: None)
        lines = {(line["measure"], line["condition"]): line for line in found["effects"]}
        conditions = ["base", "full_tokens", "oracle", "random_mask"] + ["corrected"] * (name != "halueval")
        expected = {"loss"} | ({"preference"} if name == "ru_en" else set()) | ({further} if further else set())
        assert set(lines) == {(measure, condition) for measure in expected for condition in conditions}
        oracle, full = lines["loss", "oracle"], lines["loss", "full_tokens"]
        against = oracle["against"]["full_tokens"]
        assert against["difference"] == pytest.approx(oracle["value"] - full["value"], abs=1e-6)
        assert against["low"] <= against["difference"] <= against["high"]
        assert set(full["against"]) == {"random_mask"}
        mask = found["masks"]["oracle"]
        assert mask["eta_cleaned"] == 0
        assert mask["eta_full"] == pytest.approx(found["noise_rate"])
        assert found["masks"]["random_mask"]["kept_share"] == pytest.approx(mask["kept_share"])
        assert found["masks"]["full_tokens"]["eq6_margin"] == 0
        assert "corrected" not in found["masks"]
        assert json.loads(json.dumps(found))["cell"] == noise.document_of(cell)

    def test_the_right_option_wins_where_its_tokens_are_likelier(self, data, tiny_model_folder, tmp_path, monkeypatch):
        """With losses that fall with the token's id, every model answers alike, and as by hand."""
        from tokenclean.cleaning.passes import ModelPasses

        def losses(self, model, tokens, what):
            return tokens.input_ids.with_values(-tokens.input_ids.values.astype(np.float32))

        cell = cell_of("answers", rows=10, share=0.5)
        measures.measure_cell(cell, data, tmp_path, str(tiny_model_folder), SMALL, note=lambda text: None)
        monkeypatch.setattr(ModelPasses, "losses", losses)
        monkeypatch.setattr(measures, "_measures", lambda cell: [measures._accuracies])
        found = measures.measure_cell(cell, data, tmp_path, str(tiny_model_folder), SMALL, note=lambda text: None)
        _, heldout = sets.read_rows(cell, data)
        from tokenclean.models.loading.load import load_tokenizer

        tokenizer = load_tokenizer(str(tiny_model_folder))
        sums = {choice: sum(tokenizer(f" {choice}")["input_ids"]) for choice in ("yes", "no")}
        likelier = max(sums, key=sums.__getitem__)
        share = np.mean(
            [sets.find_question(row).choices.index(likelier) == sets.find_question(row).answer for row in heldout.pool]
        )
        assert [line["value"] for line in found["effects"]] == pytest.approx([share] * len(found["effects"]))
        assert found["effects"]


def test_a_finished_cell_is_not_run_again_and_another_model_is_refused(data, tmp_path, monkeypatch):
    cells = [cell_of("halueval", rows=10), cell_of("ru_en", rows=10)]
    calls = []

    def measured(function, cell, *arguments):
        calls.append((function, cell.name, *arguments))
        return {"cell": noise.document_of(cell), "effects": []}

    monkeypatch.setattr(noise.machine, "in_fresh_process", measured)
    first = noise.finish_cells(cells[:1], data, tmp_path, "m", ())
    both = noise.finish_cells(cells, data, tmp_path, "m", ())
    assert both[:1] == first
    assert [call[:2] for call in calls] == [(noise.measure_cell, cell.name) for cell in cells]
    assert calls[0][2:] == (data, tmp_path / "runs", "m", ())
    for model, cell in (("other", cells[0]), ("m", replace(cells[0], heldout=7))):
        with pytest.raises(SystemExit, match="give another --output"):
            noise.finish_cells([cell], data, tmp_path, model, ())
    assert len(calls) == 2


def line(measure: str, condition: str, value: float, **against: tuple[float, float, float]) -> dict[str, Any]:
    keys = ("difference", "low", "high")
    differences = {name: dict(zip(keys, numbers, strict=True)) for name, numbers in against.items()}
    return {"measure": measure, "condition": condition, "value": value, "items": 60, "against": differences}


def document(cell: Any, *effects: dict[str, Any]) -> dict[str, Any]:
    mask = {"eta_full": 0.2, "eta_cleaned": 0.0, "kept_share": 0.8, "eq6_margin": 0.19, "eq6_holds": True}
    return {
        "cell": noise.document_of(cell),
        "rows": 100,
        "response_tokens": 5000,
        "noise_rate": 0.2,
        "steps": {"full_tokens": 10},
        "masks": {"oracle": mask, "random_mask": {**mask, "eta_cleaned": 0.32, "eq6_margin": -0.13}},
        "effects": list(effects),
    }


GOOD, BAD, NEITHER = (0.2, 0.1, 0.3), (-0.2, -0.3, -0.1), (0.0, -0.1, 0.1)


class TestTables:
    @pytest.mark.parametrize(
        ("name", "full", "random", "verdict"),
        [
            ("ru_en", GOOD, GOOD, "helps"),
            ("ru_en", GOOD, NEITHER, "unclear"),
            ("ru_en", BAD, GOOD, "hurts"),
            ("ru_en", NEITHER, GOOD, "unclear"),
            ("halueval", GOOD, GOOD, "hurts"),  # its first measure is a loss
            ("halueval", BAD, BAD, "helps"),
            ("e2e", BAD, BAD, "helps"),
            ("answers", GOOD, GOOD, "helps"),
        ],
    )
    def test_what_counts(self, name, full, random, verdict):
        measure = {"halueval": "loss", "e2e": "slot errors", "answers": "accuracy"}.get(name, "preference")
        found = document(sets.Cell(name, 100), line(measure, "oracle", 1.0, full_tokens=full, random_mask=random))
        assert tables.verdict(found) == verdict

    def test_tables_and_curve(self, tmp_path):
        cells = [
            document(
                cell,
                line("loss", "base", 3.0),
                line("loss", "oracle", 2.0, full_tokens=effect, random_mask=effect),
                line("loss", "full_tokens", 2.2, random_mask=NEITHER),
            )
            for cell, effect in ((sets.Cell("halueval", 100), BAD), (sets.Cell("halueval", 500, epochs=3), NEITHER))
        ]
        text = tables.effect_table(cells, markdown=True)
        assert "| halueval-100-s0 | loss (60) | oracle A | 2.0000 | -0.2000 (-0.3000 to -0.1000) |" in text
        assert "| halueval-100-s0 | loss (60) | base | 3.0000 | – | – |" in text
        curve = tables.curve_table(cells, markdown=True).splitlines()
        assert "| helps | 0.0% | 32.0% | +0.1900 | -0.1300 |" in curve[2]
        assert curve[2].startswith("| halueval-100-s0 | 5,000 | 20.0% | 10 | loss | -0.2000")
        assert "unclear" in curve[3]
        [plot] = tables.curve_plots(cells)
        assert plot.title == "By loss, training without the true noise is better in 1 of 2 cells, worse in 0"
        assert plot.csv.splitlines()[2] == "halueval-500-e3-s0,100,0.2,3,0.0,-0.1,0.1"
        without = document(sets.Cell("ru_en", 100), line("loss", "oracle", 2.0, full_tokens=BAD, random_mask=BAD))
        assert "unclear" in tables.curve_table([without], markdown=False)


class TestSearch:
    def test_what_is_recovered(self):
        """Items of 4 conversations; a loss, so gains are below 0."""
        full = np.array([4.0, 3.0, 2.0, 5.0])
        items = {"full_tokens": full, "oracle": full - [2, 1, 2, 1], "half": full - [1, 0.5, 1, 0.5], "worse": full + 1}
        for measure, sign in (("loss", 1), ("preference", -1)):
            signed = {name: sign * values for name, values in items.items()}
            assert measures._recovered(measure, signed, "oracle") == {"share": 1.0, "low": 1.0, "high": 1.0}
            assert measures._recovered(measure, signed, "half") == {"share": 0.5, "low": 0.5, "high": 0.5}
            assert measures._recovered(measure, signed, "full_tokens")["share"] == 0.0
            worse = measures._recovered(measure, signed, "worse")
            assert worse["share"] == pytest.approx(-4 / 6)
            assert -1 <= worse["low"] < worse["share"] < worse["high"] <= -0.5

    def test_where_the_oracle_does_not_gain_there_is_nothing_to_recover(self):
        full = np.array([4.0, 3.0, 2.0, 5.0])
        nothing = {"share": None, "low": None, "high": None}
        for oracle in (full + np.array([2, -2, 1, -1]), full + 1, full):
            items = {"full_tokens": full, "oracle": oracle, "half": full - 0.5}
            assert measures._recovered("loss", items, "half") == nothing
        assert measures._recovered("loss", {**items, "oracle": full - 1}, "half")["share"] == 0.5

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["corrupted", "ru_en"])
    def test_each_mask_is_trained_beside_the_oracles(self, data, tiny_model_folder, tmp_path, monkeypatch, name):
        monkeypatch.setattr(search, "TRUSTED", 8)
        cell = cell_of(name, rows=10, share=0.5)
        methods = ("fixed_model_by_row", "repetition", "ent")
        overrides = (*SMALL, "cleaning.repetition.minimum_rows=100", "cleaning.proportion=0.5")
        found = search.search_cell(cell, data, tmp_path, str(tiny_model_folder), overrides, methods)
        training, heldout = sets.read_rows(cell, data)
        trusted = [json.loads(line) for line in (tmp_path / f"trusted-{cell.name}.jsonl").read_text().splitlines()]
        prompts = {row["messages"][0]["content"] for row in trusted}
        assert len(trusted) == 8
        assert not prompts & {row.turns[0].content for row in (*training.pool, *heldout.pool)}
        assert {"fixed_model_by_row", "ent"} <= set(found["masks"])
        assert "repetition" not in found["masks"]  # it flags nothing
        assert found["masks"]["ent"]["kept_share"] == pytest.approx(0.5, abs=0.01)
        assert all(0 <= mask["eta_cleaned"] <= 1 for mask in found["masks"].values())
        document = json.loads(json.dumps({**found, "methods": methods}))
        table = search.share_table([document], markdown=True)
        assert len(table.splitlines()) == 2 + 2 + ("oracle B" in table) + len(methods)
        assert "| repetition | nothing | 0.0% | preference | as full tokens | – |" in table

    def test_the_share_of_the_noise_that_a_mask_drops(self):
        """Of 100 tokens 20 are noise; 10 of these and 5 clean ones are dropped."""
        assert search.noise_masked({"eta_full": 0.2, "kept_share": 0.85, "eta_cleaned": 0.15}) == pytest.approx(0.5)

    def test_an_unknown_method_is_named(self, data, tiny_model_folder, tmp_path, monkeypatch):
        monkeypatch.setattr(search, "TRUSTED", 8)
        cell = cell_of("corrupted", rows=10, share=0.5)
        with pytest.raises(SystemExit, match=r"--methods: magic: expected some of .*noise_mixture"):
            search.search_cell(cell, data, tmp_path, str(tiny_model_folder), SMALL, ("magic",))


@pytest.mark.slow
def test_the_command(data, tiny_model_folder, tmp_path, monkeypatch, capsys):
    for name in ("quick_cells", "small_cells"):
        monkeypatch.setattr(noise, name, lambda: [cell_of("corrupted", rows=10, share=0.5)])
    options = ("--data", str(data), "--model", str(tiny_model_folder), "--output", str(tmp_path / "out"))
    settings = [part for setting in SMALL for part in ("--set", setting)]
    for more in (("--markdown", "--json", str(tmp_path / "all.json"), "--plot", str(tmp_path / "plots")), ("--list",)):
        monkeypatch.setattr(sys, "argv", ["noise", *options, *settings, *more])
        noise.main()
    printed = capsys.readouterr().out
    assert "| corrupted-10-n0.5-s0 | preference (" in printed
    assert "corrupted-10-n0.5-s0  finished" in printed
    assert {path.name for path in (tmp_path / "plots").iterdir()} >= {"noise-loss.svg", "noise-preference.csv"}
    [found] = json.loads((tmp_path / "all.json").read_text())["cells"]
    assert found["rows"] == 10
