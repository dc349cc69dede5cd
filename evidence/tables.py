"""The tables of docs/evidence.md, each from the files of finished cells."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from evidence.cells import CURATED, LARGER, SCORED, SWEPT, TRUSTED, Cell
from evidence.results_files import Results, command_of, machines_of
from evidence.scales import MAIN_PROPORTION, SOURCES
from evidence.words import MODELS, TITLES, interval, table
from tokenclean.evaluation.comparison import Difference
from tokenclean.evaluation.tasks import benchmark_named
from tokenclean.report.plots.style import FAINT, WIDE, Plot, bars_of, draw, legend_below, series_style
from tokenclean.scoring import PairedDifference

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_SPLIT = re.compile(r"^D\d+$")
"""A split of the pool in the name of a pass."""


def shown(difference: PairedDifference | None) -> str:
    """A difference with its interval; a dash for none."""
    return "–" if difference is None else interval(difference.difference, difference.low, difference.high)


def provenance(results: Results, cells: Sequence[Cell]) -> str:
    """Command, machines and days below a table, and which of its cells are missing."""
    done = [cell for cell in cells if results.is_done(cell)]
    missing = [f"`{cell.name}`" for cell in cells if not results.is_done(cell)]
    lines = []
    if done:
        machines = machines_of([results.documents[cell.name] for cell in done])
        lines.append(f"`{command_of(results.scale)}`; {machines}.")
    if missing:
        lines.append(f"**Not measured yet:** {len(missing)} of {len(cells)} cells: {', '.join(missing)}.")
    return "\n".join(lines)


def pool_table(results: Results) -> str:
    """Sources, their proportions, held-out rows."""
    rows, held = results.scale.rows, results.scale.heldout
    total = sum(rows.values())
    lines = [[f"`{name}`", f"{rows[name]:,}", f"{rows[name] / total:.1%}", f"{held[name]:,}"] for name in SOURCES]
    lines.append(["all", f"{total:,}", "100.0%", f"{sum(held.values()):,}"])
    return table(["source", "conversations", "share", "held out"], lines)


def main_table(results: Results) -> str:
    """Every main cell minus full tokens, overall and by source."""
    cells = results.of_table("main")
    rows = []
    for cell in cells:
        if not results.is_done(cell):
            continue
        document, control = results.documents[cell.name], results.full_tokens(cell)
        has_control = control is not None and control != cell
        preference = results.preference_change(cell, control) if control and has_control else None
        share = document["kept_share"]
        rows.append(
            [
                MODELS[cell.model],
                str(cell.seed),
                TITLES[cell.strategy],
                "–" if share is None else f"{share:.0%}",
                shown(results.difference(cell, control) if control and has_control else None),
                *(shown(results.difference(cell, control, s) if control and has_control else None) for s in SOURCES),
                "–" if preference is None else interval(preference.mean, preference.low, preference.high),
            ]
        )
    header = ["model", "seed", "trained on", "kept", "all sources", *SOURCES, "preference"]
    return f"{table(header, rows, 3)}\n\n{provenance(results, cells)}" if rows else provenance(results, cells)


def swept(results: Results, model: str, strategy: str) -> dict[float, PairedDifference]:
    """Held-out loss minus full tokens by the proportion kept, ascending, where it is measured."""
    seed = results.scale.seeds[model][0]
    proportions = sorted({MAIN_PROPORTION, *results.scale.proportions[model]})
    cells = {k: results.find(model, strategy, seed, k) for k in proportions}
    return {
        k: results.difference(cell, control)
        for k, cell in cells.items()
        if cell is not None and (control := results.full_tokens(cell)) is not None
    }


def proportions_table(results: Results) -> str:
    """Held-out loss minus full tokens over k."""
    cells = results.of_table("proportions")
    rows = [
        [MODELS[model], TITLES[strategy], f"{k:.0%}", shown(difference)]
        for model in results.scale.seeds
        for strategy in SWEPT
        for k, difference in swept(results, model, strategy).items()
    ]
    below = provenance(results, cells)
    return f"{table(['model', 'trained on', 'k', 'minus full tokens'], rows, 2)}\n\n{below}" if rows else below


def proportions_plot(results: Results, model: str) -> Plot | None:
    """The curves of one model; None before there are two points on one."""
    curves = {strategy: swept(results, model, strategy) for strategy in SWEPT}
    if max(map(len, curves.values())) < 2:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axhline(0, color=FAINT, linewidth=0.8)
        for number, (strategy, curve) in enumerate(curves.items()):
            values = [(d.difference, d.low, d.high) for d in curve.values()]
            axes.errorbar(
                [100 * k for k in curve],
                [value for value, _, _ in values],
                yerr=bars_of(values),
                label=TITLES[strategy],
                capsize=3,
                **series_style(number),
            )
        axes.set_xlabel("k: response tokens kept (%)")
        axes.set_ylabel("minus full tokens (nats)")
        legend_below(figure)

    best = {strategy: min(curve, key=lambda k: curve[k].difference) for strategy, curve in curves.items() if curve}
    found = ", ".join(f"{TITLES[strategy]} at {k:.0%}" for strategy, k in best.items())
    note = "Held-out loss minus full tokens, nats a response token; below 0 is better. Bars: 95 % intervals."
    rows = [(s, k, d.difference, d.low, d.high) for s, curve in curves.items() for k, d in curve.items()]
    name = f"evidence-{results.scale.name}-{model}-proportions"
    title = f"{MODELS[model]}: the lowest loss is that of {found}"
    return draw(name, title, note, ("strategy", "k", "difference", "low", "high"), rows, paint, size=(WIDE, 3.0))


def references_table(results: Results) -> str:
    """The same strategies under other references, and what each reference is worth itself."""
    cells = results.of_table("references")
    rows = []
    for model, seeds in results.scale.seeds.items():
        for strategy in SCORED:
            for reference in (CURATED, TRUSTED, LARGER):
                cell = results.find(model, strategy, seeds[0], reference=reference)
                if cell is None or (control := results.full_tokens(cell)) is None:
                    continue
                checks = results.documents[cell.name]["references"]
                own = checks[0]["against_base"] if checks else None
                rows.append(
                    [
                        MODELS[model],
                        TITLES[strategy],
                        reference,
                        "–" if own is None else interval(own["difference"], own["low"], own["high"]),
                        shown(results.difference(cell, control)),
                    ]
                )
    header = ["model", "trained on", "reference", "reference minus base", "minus full tokens"]
    below = provenance(results, cells)
    return f"{table(header, rows, 3)}\n\n{below}" if rows else below


def rounds_table(results: Results) -> str:
    """Self-evolving cleaning's models, round by round, against its warm-up."""
    cells = [cell for cell in results.of_table("main") if cell.strategy == "self_evolving"]
    rows = []
    for cell in filter(results.is_done, cells):
        for one in results.documents[cell.name]["rounds"]:
            against = one["against_first"]
            text = "–" if against is None else interval(against["difference"], against["low"], against["high"])
            rows.append([MODELS[cell.model], str(cell.seed), one["name"], f"{one['loss']:.4f}", text])
    below = provenance(results, cells)
    header = ["model", "seed", "round", "loss", "minus the first"]
    return f"{table(header, rows, 3)}\n\n{below}" if rows else below


def benchmarks_table(results: Results) -> str:
    """Scores, and differences from full tokens."""
    parts = []
    for model in results.scale.seeds:
        if (found := results.benchmarks(model)) is None:
            continue
        titles = [benchmark_named(task).title for task in found.tasks]
        rows = [
            [
                TITLES[name],
                *(f"{100 * found.scores[name][task].value:.1f}" for task in found.tasks),
                f"{100 * found.averages[name].value:.2f}",
                "–" if name == found.control else _points(found.differences[name].average),
            ]
            for name in found.strategies
        ]
        header = ["trained on", *titles, "average", "minus full tokens"]
        parts.append(f"{MODELS[model]}, score × 100:\n\n{table(header, rows)}")
    return "\n\n".join([*parts, provenance(results, results.of_table("benchmarks"))])


def _points(difference: Difference) -> str:
    return interval(100 * difference.value, 100 * difference.low, 100 * difference.high, 2)


def cost_table(results: Results) -> str:
    """Time and peak memory of each kind of stage, and of a whole run beside the naive way."""
    kinds: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for cell in results.cells:
        for stage in results.documents.get(cell.name, {}).get("stages", []):
            name = _SPLIT.sub("the pool", stage["name"].partition(" under ")[0])
            kind = (MODELS[cell.model], f"{stage['kind']}: {name}")
            kinds.setdefault(kind, []).append((stage["seconds"], stage["peak_bytes"]))
    rows = [
        [*kind, str(len(taken)), f"{sum(s for s, _ in taken):,.0f}", f"{max(b for _, b in taken) / 2**30:.2f}"]
        for kind, taken in sorted(kinds.items())
    ]
    cells = results.of_table("cost")
    parts = [table(["model", "stage", "times", "seconds", "peak GiB"], rows, 2)] if rows else []
    machines = [document["machine"] for document in results.documents.values() if document.get("stages")]
    if busy := [max(machine["load"]) for machine in machines if max(machine["load"]) > machine["cores"] + 1]:
        parts.append(
            f"WARNING: in {len(busy)} of {len(machines)} cells other work ran beside (load averages up to "
            f"{max(busy):.1f}), so their seconds are no evidence of speed."
        )
    for cell in filter(results.is_done, cells):
        document = results.documents[cell.name]
        lines = [
            [
                title,
                f"{document[way]['seconds']:,.0f}",
                *(f"{seconds:,.0f}" for seconds in document[way]["inside"].values()),
                f"{document[way]['peak_bytes'] / 2**30:.2f}",
                f"{document[way]['loss']:.4f}",
            ]
            for way, title in (("naive", "the naive way"), ("ours", "tokenclean run"))
        ]
        header = ["", "seconds", "in passes", "in trainings", "peak GiB", "held-out loss"]
        ratio = document["naive"]["seconds"] / document["ours"]["seconds"]
        busy = "".join(f" WARNING: {warning}." for warning in document["warnings"])
        text = f"A self-evolving run of {document['rows']} rows: {ratio:.2f} times as fast as the naive way.{busy}"
        parts.append(f"{text}\n\n{table(header, lines)}")
    return "\n\n".join([*parts, provenance(results, cells)])


def steps_note(results: Results) -> str:
    """How many cells are finished, by table."""
    names = dict.fromkeys(cell.table for cell in results.cells)
    counts = [
        f"{sum(map(results.is_done, results.of_table(name)))} of {len(results.of_table(name))} ({name})"
        for name in names
    ]
    total = sum(map(results.is_done, results.cells))
    return f"Finished: {total} of {len(results.cells)} cells: {', '.join(counts)}."


def training_note(results: Results) -> str:
    """What training on full tokens is worth at all, against the base."""
    texts = []
    for cell in results.of_table("main"):
        control = results.full_tokens(cell)
        if cell.strategy == "none" and results.is_done(cell) and control is not None:
            difference = results.difference(control, cell)
            texts.append(f"{shown(difference)} nats with {MODELS[cell.model]}")
    return (
        f"Training on full tokens changes the base's held-out loss by {', '.join(texts) or 'what is not measured yet'}."
    )
