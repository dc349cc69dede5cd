"""The documentation's pages as the site shows them, and their code blocks."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
_BLOCK = re.compile(
    r'^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$', re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """A fenced block. ``title``: of a block that is a file, its name; else empty."""

    language: str
    title: str
    text: str


def generator() -> ModuleType:
    """``docs/generate.py``, which makes the generated parts."""
    if "docs_generate" not in sys.modules:
        spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["docs_generate"] = module
        spec.loader.exec_module(module)
    return sys.modules["docs_generate"]


def page(name: str) -> str:
    """A page's Markdown with its generated parts, such as that of ``how-to/trl.md``."""
    return generator().expand((DOCS / name).read_text(encoding="utf-8"))


def blocks(name: str) -> list[Block]:
    """The fenced blocks of a page, in its order."""
    return [Block(found["language"], found["title"] or "", found["text"]) for found in _BLOCK.finditer(page(name))]


def pages() -> list[str]:
    """Every page of the site."""
    return sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
