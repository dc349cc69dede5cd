"""A report's words on the runs themselves: recipe, machine, time; and how it names what it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml

from tokenclean.experiment.finished.finished_run import FinishedRun
from tokenclean.report.report_page import Block, Folded, TableBlock, Text, slug
from tokenclean.report.tables import Table
from tokenclean.store import MANIFEST, STAGES, read_manifest


def prefix_of(run: FinishedRun, runs: Sequence[FinishedRun]) -> str:
    """What stands before a strategy, a title or a sentence of a run: its name where there are several runs."""
    return f"{run.name}: " if len(runs) > 1 else ""


def name_of(kind: str, run: FinishedRun, runs: Sequence[FinishedRun], *parts: str) -> str:
    """Of a plot or table: for files and links. Of several runs each has its number too, whatever its name."""
    of_run = [str(runs.index(run) + 1), run.name] if len(runs) > 1 else []
    return slug("-".join([kind, *of_run, *parts]))


def table_blocks(kind: str, tables: Sequence[Table], run: FinishedRun, runs: Sequence[FinishedRun]) -> list[Block]:
    """The tables of a run, numbered, with its name in their titles where there are several runs."""
    return [
        TableBlock(name_of(kind, run, runs, str(number)), replace(table, title=prefix_of(run, runs) + table.title))
        for number, table in enumerate(tables, start=1)
    ]


def what_was_run(runs: Sequence[FinishedRun]) -> list[Block]:
    """Recipe, machine and time; of several runs the keys in which the recipes differ; every recipe as a whole."""
    facts = [_facts(run) for run in runs]
    names = list(dict.fromkeys(name for found in facts for name in found))
    rows = tuple((name, *(found.get(name, "–") for found in facts)) for name in names)
    columns = ("", *(run.name for run in runs))
    texts = tuple(range(len(columns)))
    blocks: list[Block] = [TableBlock("runs", Table("Recipe, machine and time", columns, rows, text_columns=texts))]
    if len(runs) > 1:
        blocks += _differing_keys(runs)
    for run in runs:
        recipe = yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True)
        blocks.append(Folded(f"The whole recipe{f' of {run.name}' if len(runs) > 1 else ''}", recipe))
    return blocks


def _facts(run: FinishedRun) -> dict[str, str]:
    recipe, result = run.recipe, run.result
    cleaning, training = recipe.get("cleaning", {}), recipe.get("training", {})
    place = run.results or run.comparison or run.sweep
    manifest = {} if place is None else read_manifest(place)
    packages, platform = manifest.get("packages", {}), manifest.get("platform")
    facts = {
        "finished": manifest.get("finished", ""),
        "stages took": f"{sum(map(sum, stage_seconds(run).values())) / 60:.1f} minutes" if stage_seconds(run) else "",
        "base": str(recipe.get("model", {}).get("base", "")),
        "reference": str(recipe.get("model", {}).get("reference") or ""),
        "strategy": str(cleaning.get("strategy", "")),
        "measured": ", ".join(m["name"].strip() for m in result.get("measured", [])),
        "kept proportion k": f"{cleaning['proportion']:g}" if "proportion" in cleaning else "",
        "level": str(cleaning.get("level", "")),
        "seed": str(recipe.get("seed", "")),
        "learning rate": f"{training['learning_rate']:g}" if "learning_rate" in training else "",
        "batch": str(training.get("batch_size", "")),
        "epochs": str(training.get("epochs", "")),
        "precision of scores": str(recipe.get("scoring", {}).get("precision", "")),
        "precision of training": str(training.get("precision", "")),
        "machine": f"{platform['system']} {platform['machine']}, {platform['processors']} processors"
        if platform
        else "",
        "software": ", ".join(f"{name} {version}" for name, version in packages.items()),
    }
    return {name: value for name, value in facts.items() if value}


def _differing_keys(runs: Sequence[FinishedRun]) -> list[Block]:
    flat = [dict(_flattened(run.recipe)) for run in runs]
    keys = list(dict.fromkeys(key for recipe in flat for key in recipe))
    differing = [key for key in keys if len({recipe.get(key) for recipe in flat}) > 1]
    rows = tuple((key, *(recipe.get(key, "–") for recipe in flat)) for key in differing)
    if not rows:
        return [Text("The runs have the same recipe.")]
    columns = ("key", *(run.name for run in runs))
    table = Table("Keys in which the recipes differ", columns, rows, text_columns=tuple(range(len(columns))))
    return [TableBlock("differing-keys", table)]


def _flattened(values: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(values, Mapping) and values:
        return [pair for key, value in values.items() for pair in _flattened(value, f"{prefix}{key}.")]
    return [(prefix.removesuffix("."), yaml.safe_dump(values, default_flow_style=True).strip().removesuffix("\n..."))]


def stage_seconds(run: FinishedRun) -> dict[str, list[float]]:
    """Kind of stage, trainings by name -> seconds of each that the results used and that is still there."""
    if run.results is None:
        return {}
    stages = run.results.parent.parent / STAGES
    seconds: dict[str, list[float]] = {}
    for name in [*run.result["stages"]["made"], *run.result["stages"]["reused"]]:
        if (stages / name / MANIFEST).is_file():
            manifest = read_manifest(stages / name)
            what = manifest["results"].get("what", "")
            kind = f"training {what}" if manifest["stage"] == "training" else manifest["stage"]
            seconds.setdefault(kind, []).append(manifest["seconds"])
    return seconds


def times(run: FinishedRun, runs: Sequence[FinishedRun]) -> list[Block]:
    """Where the time went, by kind of stage; nothing where the stages are gone."""
    rows = tuple(
        (kind, str(len(found)), f"{sum(found) / 60:.1f}")
        for kind, found in sorted(stage_seconds(run).items(), key=lambda pair: -sum(pair[1]))
    )
    if not rows:
        return []
    title = f"Where the time went{f', {run.name}' if len(runs) > 1 else ''}"
    note = "Of every stage that these results rest on, whenever it was made; losses: passes of a model over a split."
    return [TableBlock(name_of("times", run, runs), Table(title, ("stage", "stages", "minutes"), rows, note))]
