"""The report's section on the runs themselves, recipe, machine and time; and how blocks of a run are named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import yaml

from tokenclean.experiment.finished.finished_run import FinishedRun
from tokenclean.recipe import STRATEGIES
from tokenclean.report.report_page import Block, Folded, TableBlock, slug
from tokenclean.report.tables import Table
from tokenclean.store import MANIFEST, STAGES, read_manifest


def labelled(run: FinishedRun, text: str) -> str:
    """A strategy, title or sentence of a run, with the run's name in front where there are several runs."""
    return text if run.number is None else f"{run.name}: {text}"


def block_name(kind: str, run: FinishedRun, *parts: str) -> str:
    """The name of a plot or table, for files and links; among several runs with the run's number, which is unique."""
    of_run = [] if run.number is None else [str(run.number), run.name]
    return slug("-".join([kind, *of_run, *parts]))


def table_blocks(kind: str, tables: Sequence[Table], run: FinishedRun) -> list[Block]:
    """The tables of a run, numbered."""
    return [
        TableBlock(block_name(kind, run, str(number)), replace(table, title=labelled(run, table.title)))
        for number, table in enumerate(tables, start=1)
    ]


def what_was_run(runs: Sequence[FinishedRun]) -> list[Block]:
    """Recipe, machine and time; for several runs the keys in which the recipes differ; every recipe as a whole."""
    blocks: list[Block] = [_beside("runs", "Recipe, machine and time", "", runs, [_facts(run) for run in runs])]
    if len(runs) > 1:
        recipes = [dict(_flattened(run.recipe)) for run in runs]
        differing = [
            {key: value for key, value in recipe.items() if any(other.get(key) != value for other in recipes)}
            for recipe in recipes
        ]
        blocks.append(
            _beside("differing-keys", "Keys in which the recipes differ", "key", runs, differing)
            if any(differing)
            else "The runs have the same recipe."
        )
    for run in runs:
        recipe = yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True)
        blocks.append(Folded(f"The whole recipe{f' of {run.name}' if len(runs) > 1 else ''}", recipe))
    return blocks


def _beside(
    name: str, title: str, heading: str, runs: Sequence[FinishedRun], facts: Sequence[Mapping[str, str]]
) -> TableBlock:
    """A line a fact, a column a run."""
    keys = list(dict.fromkeys(key for found in facts for key in found))
    rows = tuple((key, *(found.get(key, "–") for found in facts)) for key in keys)
    columns = (heading, *(run.name for run in runs))
    return TableBlock(name, Table(title, columns, rows, text_columns=tuple(range(len(columns)))))


def _facts(run: FinishedRun) -> dict[str, str]:
    recipe = run.recipe
    cleaning, training = recipe.get("cleaning", {}), recipe.get("training", {})
    place = run.results or run.comparison or run.sweep
    manifest = {} if place is None else read_manifest(place)
    packages, platform = manifest.get("packages", {}), manifest.get("platform")
    seconds = stage_seconds(run)
    facts = {
        "finished": manifest.get("finished", ""),
        "stages took": f"{sum(map(sum, seconds.values())) / 60:.1f} minutes" if seconds else "",
        "base": str(recipe.get("model", {}).get("base", "")),
        "reference": str(recipe.get("model", {}).get("reference") or ""),
        "strategy": str(cleaning.get("strategy", "")),
        "measured": ", ".join(model["name"].strip() for model in run.measured),
        "kept proportion k": f"{cleaning['proportion']}" if _ranks(cleaning) else "",
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


def _ranks(cleaning: Mapping[str, object]) -> bool:
    record = STRATEGIES.get(str(cleaning.get("strategy")))
    return "proportion" in cleaning and (record is None or record.ranks)


def _flattened(values: object, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(values, Mapping) and values:
        return [pair for key, value in values.items() for pair in _flattened(value, f"{prefix}{key}.")]
    return [(prefix.removesuffix("."), yaml.safe_dump(values, default_flow_style=True).strip().removesuffix("\n..."))]


def stage_seconds(run: FinishedRun) -> dict[str, list[float]]:
    """Kind of stage, trainings by name -> seconds of each stage that the results used and that still exists."""
    if run.results is None:
        return {}
    stages = run.results.parent.parent / STAGES
    seconds: dict[str, list[float]] = {}
    used = run.result.get("stages", {})
    for name in [*used.get("made", []), *used.get("reused", [])]:
        if (stages / name / MANIFEST).is_file():
            manifest = read_manifest(stages / name)
            what = manifest["results"].get("what", "")
            kind = f"training {what}" if manifest["stage"] == "training" else manifest["stage"]
            seconds.setdefault(kind, []).append(manifest["seconds"])
    return seconds


def times(run: FinishedRun) -> list[Block]:
    """Where the time went, by kind of stage; nothing where the stages no longer exist."""
    rows = tuple(
        (kind, str(len(found)), f"{sum(found) / 60:.1f}")
        for kind, found in sorted(stage_seconds(run).items(), key=lambda pair: -sum(pair[1]))
    )
    if not rows:
        return []
    title = f"Where the time went{'' if run.number is None else f', {run.name}'}"
    note = "All stages that these results are based on, of this run or earlier ones; losses: passes of a model over a "
    note += "split."
    return [TableBlock(block_name("times", run), Table(title, ("stage", "stages", "minutes"), rows, note))]
