"""``tokenclean run``: a whole experiment from a recipe."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from tokenclean.cli.console import note, out, progress, quiet_libraries
from tokenclean.cli.distributed import sharing
from tokenclean.cli.intake import IntakeOptions, takes_intake
from tokenclean.recipe import load_recipe

if TYPE_CHECKING:
    from tokenclean.experiment.run import RunResult

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, or a preset by name: paper, quick, demo.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="Override a recipe key, such as training.epochs=2; repeatable."
    ),
]


@takes_intake
def run(
    recipe: RecipeArgument,
    set_: SetOption = None,
    allow_weak_reference: Annotated[
        bool, typer.Option("--allow-weak-reference", help="Go on when a reference is not better than the base.")
    ] = False,
    *,
    intake: IntakeOptions,
) -> None:
    """Clean a pool with a recipe's strategy, fine-tune, and print the table that says whether it helped.

    Finished stages stay in the run folder (output/name): the same command again does nothing twice, and another
    strategy shares tokens, base losses and warm-up. Started by torchrun or accelerate launch, the processes share every
    pass and every training.

    Example: tokenclean run recipes/quick.yaml --set pool.sources.0.path=my.jsonl --set training.epochs=2
    """
    overrides = list(set_ or [])
    if allow_weak_reference:
        overrides.append("cleaning.allow_weak_reference=true")
    loaded = load_recipe(recipe, overrides, intake)

    from tokenclean.processes import Processes
    from tokenclean.store import Store

    processes = Processes.from_environment()
    with sharing(processes):
        store = Store(loaded.folder, note=note if processes.is_first else _say_nothing)
        # The lock first, so that a second run is refused before torch is loaded and a large pool read.
        with store.lock() if processes.is_first else nullcontext():
            processes.barrier()
            from tokenclean.cleaning.open_run import open_run
            from tokenclean.experiment.run import run as run_experiment
            from tokenclean.observer import Observer

            quiet_libraries()
            observer = Observer(note, progress) if processes.is_first else Observer(_say_nothing)
            result = run_experiment(open_run(loaded, observer, store, processes))
    if processes.is_first:
        print_result(result)
        out.print(f"see it: tokenclean view {loaded.folder}; tokenclean report {loaded.folder}", soft_wrap=True)


def _say_nothing(text: str) -> None:
    """What the first of several processes says already."""


def print_result(result: RunResult) -> None:
    """Tables, then where everything lies."""
    for table in result.tables:
        out.print(table.to_rich())
        out.print()
    lines = [f"results: {result.folder} ({result.stages_made} stages made, {result.stages_reused} reused)"]
    for outcome in result.results:
        if outcome.kept is not None:
            lines.append(f"  {outcome.strategy}: model/, kept.parquet, cleaned.parquet")
    for line in lines:
        out.print(line, soft_wrap=True)
