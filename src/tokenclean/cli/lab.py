"""``tokenclean lab``: which detector finds noise whose place is known, before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer import Argument, Option

from tokenclean.cli.console import note, out, progress, quiet_libraries, say, say_tables
from tokenclean.cli.intake import print_intake
from tokenclean.cli.options import IntakeOptions, SetOption
from tokenclean.cli.settings_options import FromSettings, takes_settings
from tokenclean.errors import RecipeError
from tokenclean.recipe import Recipe, recipe_from
from tokenclean.recipe.for_data import run_name

if TYPE_CHECKING:
    from tokenclean.experiment.laboratory_tables import Findings
    from tokenclean.lab import NoiseSettings


@takes_settings
def lab(
    pool: Annotated[
        str, Argument(metavar="POOL", help="Rows that state their noise, or with --plant any conversations.")
    ],
    model: Annotated[
        str, Option("--model", "-m", help="Base model: Hub id, folder, GGUF file; demo is the demo's model.")
    ],
    plant: Annotated[
        list[str] | None,
        Option(metavar="KIND:RATE", help="Plant noise of this kind into this share of the rows; repeatable."),
    ] = None,
    rows: Annotated[int | None, Option(min=2, help="Use only this many rows, drawn at random.")] = None,
    train: Annotated[
        bool, Option("--train", help="Train with and without the noise too, and compare on held-out rows.")
    ] = False,
    prompt_passes: Annotated[
        bool,
        Option(
            "--prompt-passes/--no-prompt-passes",
            help="Score the answers without their prompts and after four foreign ones too, five further passes, for "
            "mismatch, pmi and t_shirt.",
        ),
    ] = True,
    fill: Annotated[
        Literal["sentence", "clause", "off"],
        Option(help="Measure detectors of single tokens a second time, with each onset carried to the end of this."),
    ] = "sentence",
    page: Annotated[Path | None, Option(metavar="FILE", help="Write the tables as a page.")] = None,
    as_json: Annotated[bool, Option("--json", help="Print one JSON document.")] = False,
    set_: SetOption = None,
    *,
    reference: Annotated[str | None, Option(help="Trained reference model, whose score is a detector too.")] = None,
    output: Annotated[Mapping[str, object], FromSettings(Recipe, "output")],
    intake: IntakeOptions,
) -> None:
    """Measure which detector finds noise whose place is known, before anything is trained.

    Rows state their noise in the key noise, a list of [start, end, kind] in characters of the answer, or in the key
    clean, the answer as it should be; --plant puts noise of its own into any rows. Every detector that needs no
    training is measured at the first token of each span and over the whole span. Losses are kept in the run folder, so
    that a second call computes nothing again.

    Example: tokenclean lab my.jsonl --model HuggingFaceTB/SmolLM2-135M --plant corrupted:0.3 --plant boilerplate:0.3
    """
    kinds = _planted(plant or ())
    recipe = _recipe(
        pool, {"model.base": model, "model.reference": reference, "pool.max_rows": rows}, set_, output, intake
    )

    findings = _findings(recipe, kinds, train=train, prompt_passes=prompt_passes, fill=None if fill == "off" else fill)
    from tokenclean.experiment.laboratory_tables import lab_document, lab_page, lead
    from tokenclean.report.report_page import write_report

    if as_json:
        typer.echo(json.dumps({"data": pool, "model": model, **lab_document(findings)}, indent=2))
    else:
        print_intake(findings.laboratory.context.data.intake)
        say(f"{pool}: {lead(findings)}")
        out.print()
        say_tables(findings.tables.values())
    if page is not None:
        write_report(lab_page(findings, f"Noise in {run_name(pool)}"), page)
        note(f"page: {page}")


def _findings(
    recipe: Recipe,
    kinds: Mapping[str, NoiseSettings],
    *,
    train: bool,
    prompt_passes: bool,
    fill: Literal["sentence", "clause"] | None,
) -> Findings:
    """Everything measured, in the recipe's run folder."""
    from tokenclean.store import Store

    store = Store(recipe.folder, note=note)
    with store.lock():
        from tokenclean.experiment.laboratory import (
            hold_out,
            measure_detectors,
            measure_preferences,
            open_laboratory,
            read_lab_pool,
            train_effects,
            untrained_models,
        )
        from tokenclean.experiment.laboratory_columns import score_columns
        from tokenclean.experiment.laboratory_tables import Findings
        from tokenclean.observer import Observer

        quiet_libraries()
        truth = read_lab_pool(recipe, kinds)
        observer = Observer(note, progress)
        truth, heldout = hold_out(truth, recipe) if train else (truth, None)
        laboratory = open_laboratory(recipe, truth, heldout, observer=observer, store=store)
        scored = score_columns(laboratory, with_prompt_passes=prompt_passes)
        detectors = measure_detectors(scored.columns, laboratory.labels, fill)
        measured, results = train_effects(laboratory) if train else ((), ())
        models = {result.strategy: result.model for result in results}
        preferences = measure_preferences(laboratory, untrained_models(laboratory) | models)
        return Findings(laboratory, scored.passes, detectors, preferences, measured)


def _planted(given: Sequence[str]) -> dict[str, NoiseSettings]:
    """Settings by kind. Raises RecipeError naming every option at fault."""
    from tokenclean.lab import NOISE_KINDS, NoiseSettings

    kinds: dict[str, NoiseSettings] = {}
    problems = []
    for text in given:
        kind, _, rate = text.partition(":")
        try:
            share = float(rate)
        except ValueError:
            share = -1.0
        if kind not in NOISE_KINDS or not 0 < share <= 1 or kind in kinds:
            known = ", ".join(NOISE_KINDS)
            problems.append(f"--plant: expected KIND:RATE, each kind once ({known}) and 0 < rate <= 1, found {text!r}")
        else:
            kinds[kind] = NoiseSettings(row_share=share)
    if problems:
        raise RecipeError(problems, "options")
    return kinds


def _recipe(
    pool: str,
    given: Mapping[str, object],
    overrides: Sequence[str] | None,
    output: Mapping[str, object],
    intake: Mapping[str, object],
) -> Recipe:
    """The recipe of a laboratory: preset ``quick``, one fixed set of strategies for ``--train``."""
    values: dict[str, object] = {
        "preset": "quick",
        "name": f"lab-{run_name(pool)}",
        "pool": {"sources": [{"path": pool}]},
        "cleaning": {"strategy": "noise_mixture", "splits": 2},
        "evaluation": {"controls": ["full_tokens"]},
        **output,
    }
    options = [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    return recipe_from(
        {**values, "model": {"base": str(given["model.base"])}}, (*options, *(overrides or ())), "options", intake
    )
