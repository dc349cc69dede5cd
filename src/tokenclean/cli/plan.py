"""``tokenclean plan``: what a run will do and cost."""

from __future__ import annotations

from tokenclean.cli.console import out, quiet_libraries
from tokenclean.cli.run import RecipeArgument, SetOption
from tokenclean.recipe import load_recipe


def plan(recipe: RecipeArgument, set_: SetOption = None) -> None:
    """Print counts, tokens, optimizer steps of every round, FLOPs, memory and time of a run; loads no weights.

    Example: tokenclean plan recipes/quick.yaml --set pool.sources.0.path=my.jsonl
    """
    loaded = load_recipe(recipe, list(set_ or []))

    from tokenclean.experiment.plan import plan as make_plan

    quiet_libraries()
    planned = make_plan(loaded)
    for line in planned.summary:
        out.print(line, soft_wrap=True)
    out.print()
    out.print(planned.table.to_rich())
    for step in planned.steps:
        if step.optimizer_steps and step.rate_steps < 10:
            out.print(
                f"note: {step.name} takes {step.rate_steps} steps with a learning rate above 0; a reference needs at "
                "least 10: set training.minimum_steps=10 or a smaller training.batch_size",
                style="yellow",
                soft_wrap=True,
            )
