"""``tokenclean plan``: what a run will do and cost."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from tokenclean.cli.console import note, out, quiet_libraries, say
from tokenclean.cli.recipe_options import RecipeRequest, takes_recipe


@takes_recipe
def plan(
    request: RecipeRequest,
    on: Annotated[
        str, Option("--on", metavar="GPUS", help="Time and GPU hours on other hardware too: 8xL40S,1xH100.")
    ] = "",
) -> None:
    """Print counts, tokens, optimizer steps of every round, FLOPs, memory and time of a run; loads no weights.

    Example: tokenclean plan my.jsonl --model meta-llama/Llama-3.2-3B --on 8xL40S,1xH100
    """
    recipe, _ = request.recipe()
    note("reading the tokenizer and the pool, then measuring this machine's speed")

    from tokenclean.experiment.planning.hardware import parse_all
    from tokenclean.experiment.planning.plan import plan as make_plan

    quiet_libraries()
    planned = make_plan(recipe, on=parse_all(on) if on else ())
    for line in planned.summary:
        say(line)
    for table in (planned.table, planned.elsewhere):
        if table is not None:
            out.print()
            out.print(table.to_rich())
    for step in planned.steps:
        if step.optimizer_steps and step.rate_steps < 10 and not step.is_one_step:
            say(
                f"note: {step.name} takes {step.rate_steps} steps with a learning rate above 0; a reference needs at "
                "least 10: set training.minimum_steps=10 or a smaller training.batch_size",
                "yellow",
            )
