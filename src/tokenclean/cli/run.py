"""``tokenclean run``: clean a pool, fine-tune, and say whether it helped."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from itertools import chain, count
from typing import TYPE_CHECKING, Annotated

from tokenclean.cli.console import note, quiet_libraries, say, say_tables
from tokenclean.cli.distributed import executing
from tokenclean.cli.options import EXECUTOR_PANEL
from tokenclean.cli.recipe_options import RecipeRequest, takes_recipe
from tokenclean.cli.settings_options import FromSettings
from tokenclean.observer import Observer
from tokenclean.recipe import ExecutorSettings, Recipe, short_yaml

if TYPE_CHECKING:
    from tokenclean.experiment.run import RunResult


@takes_recipe
def run(
    request: RecipeRequest,
    executor: Annotated[Mapping[str, object], FromSettings(ExecutorSettings, panel=EXECUTOR_PANEL)],
) -> None:
    """Clean your data, fine-tune on it, and say whether that was better than training on all of it.

    Finished stages stay in the run folder (output/name): the same command given again computes nothing twice, and
    another strategy shares tokens, base losses and warm-up. Started by torchrun or accelerate launch, the processes
    share every pass and every training; with --on ray the actors of a Ray cluster share all but the trainings.

    Examples: tokenclean run my.jsonl --model HuggingFaceTB/SmolLM2-135M

    tokenclean run recipes/quick.yaml --set training.epochs=2
    """
    started = time.monotonic()
    recipe, preset = request.with_section("executor", executor).recipe()

    from tokenclean.store import Store

    with executing(recipe.executor, note) as chosen:
        processes = chosen.processes
        store = Store(recipe.folder, note=note if processes.is_first else _say_nothing)
        # The lock first, so that a second run is refused before torch is loaded and a large pool read.
        with store.lock() if processes.is_first else nullcontext():
            processes.barrier()
            if preset is not None and processes.is_first:
                keep_recipe(recipe, preset)
            from tokenclean.cleaning.open_run import open_run
            from tokenclean.cli.run_progress import RunProgress
            from tokenclean.experiment.planning.work import planned_work
            from tokenclean.experiment.run import run as run_experiment

            quiet_libraries()
            with RunProgress() as shown:
                observer = shown.observer if processes.is_first else Observer(_say_nothing)
                opened = open_run(recipe, observer, store, chosen)
                if processes.is_first:
                    shown.plan(planned_work(opened))
                result = run_experiment(opened)
    if processes.is_first:
        print_result(result, recipe, time.monotonic() - started)


def keep_recipe(recipe: Recipe, preset: str) -> None:
    """Write the recipe that was made for data files into the run folder, beside those of other commands and those that
    somebody has changed, and say so."""
    text = short_yaml(recipe, preset, commented=True)
    made = text.encode()
    names = chain(["recipe.yaml"], (f"recipe-{number}.yaml" for number in count(2)))
    path = next(path for path in map(recipe.folder.joinpath, names) if not path.exists() or path.read_bytes() == made)
    path.write_bytes(made)
    for line in short_yaml(recipe, preset, commented=False).splitlines():
        note(f"  {line}")
    note(f"this recipe, with comments: {path} (change it and run it: tokenclean run {path})")


def _say_nothing(text: str) -> None:
    """For all but the first of several processes, which prints it already."""


def print_result(result: RunResult, recipe: Recipe, seconds: float, see: str = "") -> None:
    """Print whether cleaning helped, one table, and where everything is. ``see``: pages, where they are written."""
    if result.verdict is not None:
        say(str(result.verdict), "bold")
        say("")
    say_tables([result.table])
    folder, strategy = result.folder, result.own.strategy
    stages = f"{result.stages_made} stages made, {result.stages_reused} reused"
    say(f"results  {folder} ({stages}, {seconds / 60:.1f} minutes)")
    if result.own.kept is not None:
        say(f"model    {folder / strategy / 'model'} (tokenclean merge {recipe.folder} makes it a plain one)")
        share = next((m.kept_share for m in result.measured if m.name == strategy), None)
        if share != 1 or result.own.weights is not None:
            say(f"data     {folder / strategy / 'cleaned.parquet'} (tokenclean export {recipe.folder} --to trl)")
    say(f"pages    {see or f'tokenclean report {recipe.folder}; tokenclean view {recipe.folder}'}")
