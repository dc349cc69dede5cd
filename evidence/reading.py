"""What of the paper's claims holds here: sentences by rule, from intervals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from evidence.cells import CURATED, LARGER, TRUSTED
from evidence.results_files import Results
from evidence.words import BETTER, MODELS, TITLES, UNCLEAR, WORSE, interval, judge


@dataclass(frozen=True)
class Side:
    """A measured model: ``k`` None for the paper's, or where nothing is ranked."""

    strategy: str
    k: float | None = None
    reference: str = CURATED


@dataclass(frozen=True)
class Claim:
    """``text``: what is claimed; it holds where the held-out loss of ``one`` is below that of ``other``."""

    text: str
    one: Side
    other: Side


FULL = Side("full_tokens")
FIXED, EVOLVING = Side("fixed_model"), Side("self_evolving")
CLAIMS = (
    Claim("Self-evolving cleaning beats full tokens (§6.2)", EVOLVING, FULL),
    Claim("Fixed-model cleaning beats full tokens (§6.2)", FIXED, FULL),
    Claim("RHO beats full tokens (Table 1)", Side("rho"), FULL),
    Claim("Self-evolving beats fixed-model cleaning (Table 1)", EVOLVING, FIXED),
    Claim("Global ranking beats ranking within each sample: fixed-model against RHO (§6.2)", FIXED, Side("rho")),
    Claim("Tokens chosen by score beat as many at random: fixed-model, random (Table 1)", FIXED, Side("random")),
    Claim("k = 60 % beats k = 100 % for self-evolving cleaning (Figure 2)", EVOLVING, Side("self_evolving", 1.0)),
    Claim("k = 60 % beats k = 100 % for fixed-model cleaning", FIXED, Side("fixed_model", 1.0)),
    Claim("A larger reference helps fixed-model cleaning (Table 3)", Side("fixed_model", reference=LARGER), FIXED),
)
OURS = (
    Claim("noise_mixture beats full tokens", Side("noise_mixture"), FULL),
    Claim("auto beats full tokens", Side("auto"), FULL),
    Claim(
        "Fixed-model cleaning with trusted rows beats full tokens on the same rows",
        Side("fixed_model", reference=TRUSTED),
        Side("full_tokens", reference=TRUSTED),
    ),
)
HOLDS = {
    frozenset({BETTER}): "holds here",
    frozenset({WORSE}): "does not hold here: the opposite does",
    frozenset({UNCLEAR}): "is not shown here",
}
"""By all judgements of a claim; anything else is mixed."""


def reading(results: Results) -> str:
    """A sentence a claim, with every interval behind it."""
    paper = "\n".join(f"- {sentence(results, claim)}" for claim in CLAIMS)
    ours = "\n".join(f"- {sentence(results, claim)}" for claim in OURS)
    scores = "\n".join(f"- {line}" for line in benchmark_sentences(results))
    return "\n\n".join(
        [
            "The paper's claims, by held-out loss (nats a token, 95 % intervals over conversations):",
            paper,
            "On benchmarks (the average's difference from full tokens, in points):",
            scores,
            "Ours:",
            ours,
        ]
    )


def sentence(results: Results, claim: Claim) -> str:
    """Whether the claim holds, by model and seed."""
    found = list(_judged(results, claim))
    if not found:
        return f"{claim.text}: **not measured yet**."
    verdict = HOLDS.get(frozenset(word for word, _ in found), "is mixed here")
    return f"{claim.text}: **{verdict}**. {'; '.join(text for _, text in found)}."


def _judged(results: Results, claim: Claim) -> Iterator[tuple[str, str]]:
    for model, seeds in results.scale.seeds.items():
        for seed in seeds:
            one, other = (
                results.find(model, side.strategy, seed, side.k, side.reference) for side in (claim.one, claim.other)
            )
            if one is None or other is None:
                continue
            difference = results.difference(one, other)
            word = judge(difference.low, difference.high, lower_is_better=True)
            text = interval(difference.difference, difference.low, difference.high)
            yield word, f"{word} with {MODELS[model]}, seed {seed}: {text}"


def benchmark_sentences(results: Results) -> Iterator[str]:
    """One a model and strategy with finished benchmarks."""
    is_empty = True
    for model in results.scale.seeds:
        if (found := results.benchmarks(model)) is None:
            continue
        for strategy in ("self_evolving", "fixed_model", "rho", "random", "noise_mixture", "auto"):
            if strategy not in found.differences:
                continue
            is_empty = False
            average = found.differences[strategy].average
            value, low, high = (100 * number for number in (average.value, average.low, average.high))
            word = judge(low, high, lower_is_better=False) if average.is_real else UNCLEAR
            yield f"{TITLES[strategy]}, {MODELS[model]}: **{word}**, {interval(value, low, high, 2)}."
    if is_empty:
        yield "**not measured yet**."
