"""``tokenclean lab`` as a user gives it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli import refused, tokenclean

QUESTION = "What is the capital of this country, and why?"


def row(town: str, number: int, **truth: object) -> dict[str, object]:
    return {"prompt": QUESTION, "response": f"It is {town}, number {number}.", **truth}


ROWS = [row("Lyon", n, noise=[[6, 10]], clean=f"It is Paris, number {n}.") for n in range(12)]
ROWS += [row("Rome", n, noise=[]) for n in range(12)]


def write(folder: Path, *rows: dict[str, object]) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.mark.slow
def test_rows_that_state_their_noise(tmp_path: Path, tiny_model_folder: Path, other_model_folder: Path) -> None:
    file = write(tmp_path, *ROWS, {"prompt": QUESTION, "response": "x", "noise": [[5, 9]]})
    command = ("lab", file, "--model", tiny_model_folder, "--reference", other_model_folder, "--output", tmp_path)
    printed = tokenclean(*command, "--page", tmp_path / "lab.html")
    assert printed.returncode == 0, printed.stderr
    for text in (
        "24 rows, 12 with noise",
        "fixed_model",
        "Preference for clean answers",
        "1 of 25 rows set aside",
        "expected [start, end, kind]",
    ):
        assert text in printed.stdout
    [listed] = (tmp_path / "lab-rows" / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(listed)["line"] == 25
    assert "rho" in (tmp_path / "lab.html").read_text(encoding="utf-8")

    again = tokenclean(*command, "--json")
    assert again.returncode == 0, again.stderr
    assert "score " not in again.stderr  # all losses are found
    found = json.loads(again.stdout)
    assert (found["rows"], found["rows_with_noise"], found["rows_set_aside"]) == (24, 12, 1)
    assert found["noise_rate"] == pytest.approx(found["noise_tokens"] / found["response_tokens"])
    assert set(found["detectors"]) >= {"base_loss", "noise_mixture", "repetition", "fixed_model", "rho", "t_shirt"}
    assert "mismatch" not in found["detectors"]  # all rows have the same prompt
    assert "24 of 24 rows not judged" in again.stderr
    assert "conflict + fill" in found["detectors"]
    assert [one["rows"] for one in found["passes"]] == [24, 48, 24]
    assert 0 <= found["detectors"]["base_loss"]["onset"]["auroc"] <= 1
    assert found["detectors"]["base_loss"]["precision"] is None
    assert found["preference"]["base"]["preference"]["margin"]["items"] == 12
    assert found["heldout_loss"] == []


@pytest.mark.slow
def test_planted_noise_and_training(tmp_path: Path, small_pool: Path, tiny_model_folder: Path) -> None:
    kinds = ("--plant", "numbers:0.5", "--plant", "boilerplate:0.5")
    settings = ("pool.heldout.rows=8", "training.minimum_steps=2", "training.lora.rank=2")
    options = [part for setting in settings for part in ("--set", setting)]
    said = tokenclean(
        *("lab", small_pool, "--model", tiny_model_folder, *kinds, "--rows", 40, "--train", "--json"),
        *("--no-prompt-passes", "--fill", "off"),
        *("--output", tmp_path, *options),
    )
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout)
    assert found["rows"] == 32
    assert set(found["spans"]) == {"numbers", "boilerplate"}
    assert [one["what"] for one in found["passes"]] == ["rows"]
    assert not any("fill" in name or name in ("mismatch", "pmi") for name in found["detectors"])
    names = {"base", "full_tokens", "noise_mixture", "oracle", "random_mask", "corrected"}
    assert {line["name"] for line in found["heldout_loss"]} == names
    assert set(found["preference"]) == names
    assert found["preference"]["oracle"]["change"]["items"] > 1
    assert found["preference"]["full_tokens"]["change"] is None
    kept = {line["name"]: line["kept_share"] for line in found["heldout_loss"]}
    assert kept["oracle"] == pytest.approx(kept["random_mask"])
    assert kept["oracle"] == pytest.approx(1 - found["noise_rate"])
    assert kept["corrected"] is None  # other tokens than the pool's


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--plant", "corupted:0.3"), ("expected KIND:RATE", "corrupted, numbers", "'corupted:0.3'")),
        (("--plant", "corrupted"), ("found 'corrupted'",)),
        (("--plant", "corrupted:2", "--plant", "loops:x"), ("2 problems", "'corrupted:2'", "'loops:x'")),
        (("--plant", "loops:0.1", "--plant", "loops:0.2"), ("each kind once", "'loops:0.2'")),
        (("--set", "seeds=1"), ("did you mean",)),
        (("--fill", "paragraph"), ("'sentence', 'clause', 'off'",)),
    ],
)
def test_wrong_options(tmp_path: Path, options: tuple[str, ...], words: tuple[str, ...]) -> None:
    file = write(tmp_path, *ROWS)
    refused(tokenclean("lab", file, "--model", "m", "--output", tmp_path, *options), 2, *words)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"prompt": "a", "response": "b"}], ("no row states where its noise is", "--plant")),
        (ROWS[12:], ("no response token is noise (no span in 12 rows)",)),
        (None, ("none.jsonl",)),
    ],
    ids=["no truth", "no noise", "no file"],
)
def test_rows_without_truth_and_without_noise(command, tmp_path: Path, tiny_model_folder: Path, rows, words) -> None:
    file = tmp_path / "none.jsonl" if rows is None else write(tmp_path, *rows)
    said = command("lab", file, "--model", tiny_model_folder, "--output", tmp_path)
    assert said.code == 2
    assert all(word in " ".join(said.err.split()) for word in words), said.err
