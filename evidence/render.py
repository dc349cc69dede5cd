"""Write the measured parts of README and docs from the files of finished cells, without measuring anything.

A page marks a part with ``<!-- evidence: NAME -->`` and ``<!-- /evidence -->``; what is between them is replaced.

    python -m evidence.render [--results DIR] [--check]
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from evidence.quoted import QUOTED
from evidence.reading import reading
from evidence.results_files import Results, read_quoted, read_results
from evidence.tables import (
    benchmarks_table,
    cost_table,
    main_table,
    pool_table,
    proportions_plot,
    proportions_table,
    references_table,
    rounds_table,
    steps_note,
    training_note,
)
from evidence.words import MODELS
from tokenclean.report.plots.style import FAINT, INK, VARIABLES, Plot

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PAGES = ("README.md", "docs/evidence.md", "docs/when-cleaning-helps.md")
ASSETS = "docs/assets"
_PART = re.compile(r"<!-- evidence: (?P<name>[\w -]+) -->(?P<text>.*?)<!-- /evidence -->", re.DOTALL)

TABLES: dict[str, Callable[[Results], str]] = {
    "pool": pool_table,
    "state": steps_note,
    "main": main_table,
    "training": training_note,
    "rounds": rounds_table,
    "proportions": lambda results: proportions(results),
    "references": references_table,
    "benchmarks": benchmarks_table,
    "cost": cost_table,
    "reading": reading,
    "all": lambda results: everything(results),
}
"""Parts of one scale, which a page asks for as ``main cpu``."""


def render(text: str, results: Path = RESULTS) -> str:
    """A page's text with every part written again. Raises SystemExit for a part of an unknown name."""
    scales, quoted = read_results(results), read_quoted(results)

    def part(found: re.Match[str]) -> str:
        name, _, scale = found["name"].partition(" ")
        if scale in scales and name in TABLES:
            content = TABLES[name](scales[scale])
        elif found["name"] in QUOTED:
            content = QUOTED[found["name"]](quoted)
        else:
            raise SystemExit(f"<!-- evidence: {found['name']} -->: there is no such part; see evidence/render.py")
        # A part on lines of its own is a block to Markdown only between blank lines.
        around = "\n\n" if found["text"].startswith("\n") else ""
        return f"<!-- evidence: {found['name']} -->{around}{content}{around}<!-- /evidence -->"

    return _PART.sub(part, text)


def everything(results: Results) -> str:
    """All parts of a scale below each other; only what is missing before its first cell."""
    if not results.documents:
        return steps_note(results)
    names = [name for name in TABLES if name not in ("all", "pool")]
    return "\n\n".join(f"**{name.capitalize()}**\n\n{TABLES[name](results)}" for name in names)


def parts_of(text: str) -> Iterator[tuple[str, str]]:
    """Name and content of every part of a page."""
    yield from ((found["name"], found["text"]) for found in _PART.finditer(text))


def proportions(results: Results) -> str:
    """The table over k, and a drawing a model."""
    drawings = [
        f"![{plot.title}. {plot.note}](assets/{plot.name}.svg)"
        for model in MODELS
        if (plot := proportions_plot(results, model)) is not None
    ]
    return "\n\n".join([proportions_table(results), *drawings])


def drawing(plot: Plot) -> str:
    """The plot as a file that a page takes in, in the site's colours there and in its own elsewhere."""
    element = plot.inline_svg
    names = {INK: "drawing-word", FAINT: "drawing-soft"}
    for colour, variable in VARIABLES.items():
        mine = names.get(colour)
        element = element.replace(f"var(--{variable})", f"var(--{mine},{colour})" if mine else colour)
    return element.strip() + "\n"


def files_to_write(results: Path = RESULTS) -> dict[Path, str]:
    """Every page and drawing as it should be."""
    pages = {ROOT / name: render((ROOT / name).read_text(encoding="utf-8"), results) for name in PAGES}
    for of_scale in read_results(results).values():
        for model in of_scale.scale.seeds:
            if (plot := proportions_plot(of_scale, model)) is not None:
                pages[ROOT / ASSETS / f"{plot.name}.svg"] = drawing(plot)
                pages[ROOT / ASSETS / f"{plot.name}.csv"] = plot.csv
    return pages


def main() -> None:
    parser = argparse.ArgumentParser(prog="evidence.render", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="files of finished cells")
    parser.add_argument("--check", action="store_true", help="write nothing, and fail where something would change")
    arguments = parser.parse_args()
    changed = []
    for path, text in files_to_write(arguments.results).items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            changed.append(str(path.relative_to(ROOT)))
            if not arguments.check:
                path.write_text(text, encoding="utf-8")
    if arguments.check and changed:
        raise SystemExit(f"not as their results say: {', '.join(changed)}; run python -m evidence.render")
    print("\n".join(f"written: {name}" for name in changed) or "nothing to change")


if __name__ == "__main__":
    main()
