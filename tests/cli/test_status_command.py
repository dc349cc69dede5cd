"""``tokenclean status``: one screen that a terminal of 80 columns and a pipe show alike."""

from __future__ import annotations


def test_a_finished_run_fits_80_columns_and_says_all_in_few_lines(command, finished_run):
    said = command("status", finished_run)
    assert said.code == 0
    lines = said.out.splitlines()
    stages = len(list(finished_run.glob("stages/*"))) + 1
    assert lines[0].startswith(f"{finished_run}: {stages} valid, ")
    assert lines[0].endswith("no run in progress")
    assert len(lines) == 1 + 1 + 3 + stages + 1  # headline, blank, title and head of the table, stages, blank
    assert max(map(len, lines[1:])) <= 80
    (results,) = (path.name for path in finished_run.glob("results/*"))
    assert f"results/{results}" in lines[-2]


def test_why_a_stage_is_not_valid_stands_on_one_line_however_long(command, run_folder):
    run = run_folder("r" * 100)
    file = next(run.glob("stages/losses-*/losses.parquet"))
    file.write_bytes(b"")
    said = command("status", run)
    assert said.code == 0
    assert f"{file.parent.name}: damaged: losses.parquet: 0 bytes, expected" in said.out
    assert f"\nthe next run that needs a damaged stage moves it to {run}/damaged and recomputes it\n" in said.out


def test_brackets_in_a_path_are_shown_as_they_are(command, run_folder):
    run = run_folder("[bold]:100:")
    (run / "damaged" / "[red]x").mkdir(parents=True)
    said = command("status", run)
    assert said.out.startswith(f"{run}: ")
    assert f"1 set aside in {run}/damaged, which may be deleted: [red]x\n" in said.out


def test_what_is_no_run_folder_is_refused(command, tmp_path):
    for path in (tmp_path, tmp_path / "[none]"):
        said = command("status", path)
        assert (said.code, said.out) == (1, "")
        assert said.err == f"error: {path}: is no run folder; give the recipe's output/name, such as runs/quick\n"
    assert list(tmp_path.iterdir()) == []
