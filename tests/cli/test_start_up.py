"""Commands that compute nothing load neither torch nor transformers, which take seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys
from tokenclean.cli.main import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
loaded = {"torch", "transformers", "scipy", "peft"} & set(sys.modules)
assert not loaded, loaded
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["status", "RUN"],
        ["view", "RUN", "-o", "PAGE"],
        ["view", "RUN", "--terminal"],
        ["report", "RUN", "-o", "PAGE"],
        ["export", "RUN", "--to", "trl", "-o", "FOLDER"],
        ["prune", "RUN", "--dry-run"],
        ["init", "POOL", "-o", "RECIPE"],
        ["init", "POOL", "--model", "MODEL", "-o", "RECIPE"],
    ],
    ids=" ".join,
)
def test_no_model_library_is_loaded(
    arguments, finished_run: Path, small_pool: Path, tiny_model_folder: Path, tmp_path: Path
):
    places = {
        "MODEL": tiny_model_folder,
        "RUN": finished_run,
        "POOL": small_pool,
        "PAGE": tmp_path / "page.html",
        "FOLDER": tmp_path / "out",
        "RECIPE": tmp_path / "my.yaml",
    }
    words = [str(places.get(word, word)) for word in arguments]
    done = subprocess.run([sys.executable, "-c", CODE, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
