"""What a base in 4 bits would do to scores and to the kept set: why scoring never uses one.

Losses under ``exact`` of the base and of a reference (a LoRA on it), with the base as it is and with its linear layers
in NF4. Beside them, with nothing scored in NF4, references that were trained otherwise: on the base in NF4
(``training.quantization: nf4``), and with another seed. ``docs/benchmarks.md`` says how to read the table.

    python -m benchmarks.quantised [--pool FILE] [--model FOLDER] [--reference ADAPTER] [--rows N] [--device cpu|cuda]
                                   [--json FILE] [--markdown] [--allow-busy]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from benchmarks import machine
from benchmarks.scoring_figures import LEAST_SPREAD_NATS, PROPORTION, errors_of, with_score_errors
from benchmarks.scoring_ways import (
    SEED,
    Model,
    Way,
    add_real_model_options,
    described,
    reference_model,
    rows_to_score,
    trained_reference,
)
from tokenclean import Ragged, TokenizedPool, load_pool
from tokenclean.cli.console import quiet_libraries
from tokenclean.models.frozen_linear import Nf4Linear, replace_frozen
from tokenclean.models.loading.convert import smollm2_folder
from tokenclean.models.loading.load import ModelSource, resolve_source
from tokenclean.models.model_parts import body_of

BASE, REFERENCE, NF4 = "base", "reference", " in NF4"
TRAINED_ON_NF4, ANOTHER_SEED = "reference trained on NF4", "reference of another seed"
# What is scored otherwise -> whose losses are then the base's, and whose the reference's.
VARIANTS = {
    "base and reference in NF4": (BASE + NF4, REFERENCE + NF4),
    "base alone in NF4": (BASE + NF4, REFERENCE),
    "reference alone in NF4": (BASE, REFERENCE + NF4),
    TRAINED_ON_NF4: (BASE, TRAINED_ON_NF4),
    ANOTHER_SEED: (BASE, ANOTHER_SEED),
}


def measure(base: Model, references: Mapping[str, ModelSource], tokens: TokenizedPool) -> dict[str, np.ndarray]:
    """Losses of the base and of REFERENCE as they are and in NF4, of the other references as they are; flat."""
    losses = dict(zip((BASE, BASE + NF4), in_both_forms(base, tokens), strict=True))
    for name, source in references.items():
        model = Model(source, None, base.device)
        if name == REFERENCE:
            losses[name], losses[name + NF4] = in_both_forms(model, tokens)
        else:
            losses[name] = exact_losses(model.load(), tokens)
    return losses


def in_both_forms(model: Model, tokens: TokenizedPool) -> tuple[np.ndarray, np.ndarray]:
    """Losses of the model as it is, and with the linear layers of its base in NF4."""
    loaded = model.load().requires_grad_(False)
    as_it_is = exact_losses(loaded, tokens)
    if not replace_frozen(body_of(loaded), Nf4Linear):
        raise SystemExit(f"{model} has no plain linear layer to hold in NF4; give another --model")
    return as_it_is, exact_losses(loaded, tokens)


def exact_losses(model: torch.nn.Module, tokens: TokenizedPool) -> np.ndarray:
    score, _ = Way("exact", "exact").ready(model, int(tokens.input_ids.lengths.max()))
    return score(tokens)


def figures_of(losses: Mapping[str, np.ndarray], is_response: Ragged) -> dict[str, dict[str, Any]]:
    """Of each variant that was scored: ``base``, the errors of the base's losses, of the score and of the kept set, and
    ``reference``, those of the reference's losses; all from what the base as it is gives."""
    exact, found = (losses[BASE], losses[REFERENCE]), {}
    for name, (base, reference) in VARIANTS.items():
        if reference in losses:
            scored = losses[base], losses[reference]
            of_base, of_reference = (errors_of(a, b, is_response) for a, b in zip(scored, exact, strict=True))
            of_base = with_score_errors(of_base, scored, exact, is_response)
            found[name] = {"base": asdict(of_base), "reference": asdict(of_reference)}
    return found


def shown(variants: Mapping[str, Mapping[str, Any]], *, markdown: bool) -> str:
    def both(mean: float, largest: float) -> str:
        return f"{mean:.1e} / {largest:.1e}" if largest else "–"

    header = ["scored otherwise", "base loss error mean / max", "reference loss error mean / max"]
    header += ["score error mean / max", "Jaccard"]
    rows = [
        [
            name,
            *(both(errors["loss_mean"], errors["loss_max"]) for errors in (found["base"], found["reference"])),
            both(found["base"]["score_mean"], found["base"]["score_max"]),
            f"{found['base']['jaccard']:.4f}",
        ]
        for name, found in variants.items()
    ]
    return machine.table(header, rows, markdown=markdown)


def references_of(base: Model, named: str | None, others: TokenizedPool | None) -> dict[str, ModelSource]:
    """REFERENCE, and where it is not given by its name the ones that are trained otherwise."""
    found = reference_model(base, named, others)
    if found is None:
        raise SystemExit(
            "there is no reference; give --reference ADAPTER, or fewer --rows, so that some are left to train it"
        )
    if named is not None:
        return {REFERENCE: found}
    assert base.source is not None
    assert others is not None
    otherwise = {TRAINED_ON_NF4: {"quantization": "nf4"}, ANOTHER_SEED: {"seed": SEED + 1}}
    trained = {name: trained_reference(base.source, others, base.device, **how) for name, how in otherwise.items()}
    return {REFERENCE: found} | {name: ModelSource(found.base, str(folder)) for name, folder in trained.items()}


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.quantised", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--reference", default=None, help="adapter or model (default: trained here)")
    parser.add_argument("--rows", type=int, default=200)
    add_real_model_options(parser)
    machine.add_options(parser)
    return parser


def main() -> None:
    arguments = options().parse_args()
    if arguments.rows < 1:
        raise SystemExit("--rows must be at least 1")
    quiet_libraries()
    busy = machine.refuse_if_busy(allow=arguments.allow_busy)
    where = machine.describe(arguments.device)
    base = Model(resolve_source(arguments.model or str(smollm2_folder())), None, arguments.device)
    tokens, others = rows_to_score(load_pool(arguments.pool), arguments.rows, base, None)
    references = references_of(base, arguments.reference, others)
    losses = measure(base, references, tokens)
    spread = float(np.nanstd(losses[BASE] - losses[REFERENCE]))
    setting = described(tokens, base, references[REFERENCE], len(tokens.input_ids.values))
    variants = figures_of(losses, tokens.is_response)
    means = {name: float(np.nanmean(values)) for name, values in losses.items()}
    figures = {"setting": setting, "score_spread_nats": spread, "mean_loss_nats": means, "variants": variants}
    warnings = [busy] if busy else []
    if spread < LEAST_SPREAD_NATS:
        warnings.append(f"no evidence: the scores' standard deviation is {spread:.1e} nats; name another --reference")
    facts = (
        "{model}; reference {reference}; {rows} rows, {tokens:,} tokens, {response_tokens:,} response, longest "
        "{longest_row:,}".format(**setting)
    )
    told = ", ".join(f"{name} {mean:.4f}" for name, mean in means.items())
    by_chance = PROPORTION / (2 - PROPORTION)
    chance = f"{PROPORTION:.0%} are kept: two such sets drawn at random have a Jaccard of {by_chance:.2f}"
    text = f"{facts}\n\nmean loss, nats: {told}; the score's standard deviation is {spread:.2e}; {chance}\n\n"
    text += shown(variants, markdown=arguments.markdown)
    machine.report("quantised", where, warnings, figures, text, arguments)


if __name__ == "__main__":
    main()
