"""A shell for a page's commands: names on the page replaced, recipes made small, no network."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from page_blocks import ROOT, blocks

SMALL = (
    *("pool.max_rows=40", "pool.heldout.rows=8", "model.device=cpu", "cleaning.splits=2"),
    *("cleaning.allow_weak_reference=true", "training.batch_size=8", "training.minimum_steps=2"),
    "training.lora.rank=2",
)
"""What is added to the commands that take a recipe, so that they take seconds."""


@dataclass(frozen=True)
class PageShell:
    """A shell in a test's folder, for a page's files and commands. ``names``: what replaces names on the page."""

    folder: Path
    names: Mapping[str, str]
    variables: Mapping[str, str]

    def filled(self, text: str) -> str:
        for name, place in self.names.items():
            text = text.replace(name, place)
        return text

    def write_files(self, page: str) -> None:
        """The page's blocks that are files."""
        for block in blocks(page):
            if block.language in ("yaml", "python") and block.title:
                (self.folder / block.title).write_text(self.filled(block.text), encoding="utf-8")

    def command(self, *texts: str) -> list[str]:
        """Bash, given these blocks."""
        return ["bash", "-c", "\n".join(["set -euo pipefail", *map(self.filled, texts)])]

    def run(self, *texts: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*texts), cwd=self.folder, env=self.variables, capture_output=True, text=True, check=False
        )


def environment(folder: Path) -> dict[str, str]:
    """The environment of a page's commands: this Python, this source tree, no Hub, caches in the test's folder."""
    programs = folder / "bin"
    programs.mkdir()
    source = ROOT / "src"
    small = " ".join(f"--set {override}" for override in SMALL)
    for name, call, taking in (
        ("tokenclean", "-m tokenclean", "run|plan|curate"),
        ("torchrun", "-m torch.distributed.run", "*"),
        ("python", "", "-"),
    ):
        lines = (
            "#!/bin/sh",
            f'case "$1" in {taking}) set -- "$@" {small} ;; esac',
            # A page may set PYTHONPATH to a folder of its own.
            f'PYTHONPATH="${{PYTHONPATH:-}}:{source}" exec {sys.executable} {call} "$@"',
        )
        (programs / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    return {
        **{name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
        "PATH": f"{programs}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
    }
