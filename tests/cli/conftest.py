"""The command line inside the test's own process, for what is said and written; and a finished run to try it on."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Said:
    """A command's exit code, and what it wrote to standard output and standard error."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """A function that runs the command line with its arguments and gives what it said."""
    from transformers.utils import logging as transformers_logging

    from tokenclean.cli.main import main

    verbosity, handlers = transformers_logging.get_verbosity(), logging.getLogger("tokenclean").handlers

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["tokenclean", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Said(int(ended.value.code or 0), said.out, said.err)

    yield run
    transformers_logging.set_verbosity(verbosity)
    logging.getLogger("tokenclean").handlers = handlers


@pytest.fixture(scope="session")
def finished_run(small_pool: Path, tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small run with the strategies full_tokens and fixed_model, the recipe's own."""
    from tokenclean.cleaning.open_run import open_run
    from tokenclean.experiment.run import run
    from tokenclean.recipe import recipe_from

    values = {
        "name": "small",
        "output": str(tmp_path_factory.mktemp("runs")),
        "pool": {"sources": [{"path": str(small_pool)}], "max_rows": 30, "heldout": {"rows": 5}},
        "model": {"base": str(tiny_model_folder), "device": "cpu"},
        "cleaning": {"strategy": "fixed_model", "splits": 2, "allow_weak_reference": True},
        "training": {"learning_rate": 1e-2, "batch_size": 8, "lora": {"rank": 2}},
        "evaluation": {"controls": ["full_tokens"]},
    }
    recipe = recipe_from(values)
    run(open_run(recipe))
    return recipe.folder


@pytest.fixture
def run_folder(finished_run: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A function that copies the finished run to a folder of that name, which may be changed."""
    return lambda name: Path(shutil.copytree(finished_run, tmp_path / name))
