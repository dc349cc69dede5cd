"""``tokenclean theory``: the error bounds of full and of cleaned tokens, and when cleaning has the lower one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from tokenclean.cli.console import out
from tokenclean.errors import RecipeError

if TYPE_CHECKING:
    from tokenclean.report.tables import Table
    from tokenclean.theory import CorollaryCheck


def theory(
    tokens: Annotated[float, typer.Option(help="M: response tokens before cleaning; 1e6 is a million.")],
    noise_before: Annotated[float, typer.Option(help="η(D̃): share of them that are not valid targets.")],
    noise_after: Annotated[
        float,
        typer.Option(help="η̂: share of them whose label is wrong after cleaning (noise kept, valid ones dropped)."),
    ],
    kept: Annotated[float, typer.Option(help="r̂: share of them that are kept.")],
    delta: Annotated[float, typer.Option(help="δ: each bound may fail with this probability.")] = 0.05,
    log_class_size: Annotated[
        float | None,
        typer.Option(
            help="log|F|: also print the bounds for a class of that many models; at most b·P·log 2 for P trained "
            "parameters of b bits."
        ),
    ] = None,
) -> None:
    """Check whether cleaning lowers the error bound of learning with full tokens (Theorem 5.1, Corollary 5.1.1).

    Prints both bounds, the margin, the least M and the least kept share, and what the proof leaves out.

    Example: tokenclean theory --tokens 1e6 --noise-before 0.3 --noise-after 0.1 --kept 0.7
    """
    _check(tokens, noise_before, noise_after, kept, delta, log_class_size)
    from tokenclean.theory import CorollaryCheck

    rates = noise_before, noise_after, kept, tokens, delta
    checks = {"Eq. 5 and 6": CorollaryCheck(*rates)}
    if log_class_size is not None:
        checks[f"log|F| = {log_class_size:.4g}"] = CorollaryCheck(*rates, log_class_size)
    out.print(_table(checks).to_rich())
    out.print()
    for sentence in _sentences(checks):
        out.print(sentence, soft_wrap=True)


def _check(tokens: float, before: float, after: float, kept: float, delta: float, log_class_size: float | None) -> None:
    problems = []
    if not 1 <= tokens < math.inf:
        problems.append(f"--tokens: expected a number from 1, found {tokens:g}")
    for name, share in (("--noise-before", before), ("--noise-after", after)):
        if not 0 <= share <= 1:
            problems.append(f"{name}: expected a share from 0 to 1, found {share:g}")
    if not 0 < kept <= 1:
        problems.append(f"--kept: expected a share above 0 and at most 1, found {kept:g}")
    if not 0 < delta < 1:
        problems.append(f"--delta: expected a probability between 0 and 1, found {delta:g}")
    if log_class_size is not None and not 0 <= log_class_size < math.inf:
        problems.append(f"--log-class-size: expected a number from 0, found {log_class_size:g}")
    if problems:
        raise RecipeError(problems, "theory")


def _bounds(check: CorollaryCheck) -> tuple[float, float]:
    """The error bounds of the full and of the kept tokens."""
    from tokenclean.theory import error_bound

    kept_tokens = check.kept_share * check.tokens
    return (
        error_bound(check.eta_full, check.tokens, check.delta, check.log_class_size),
        error_bound(check.eta_cleaned, kept_tokens, check.delta, check.log_class_size),
    )


def _table(checks: Mapping[str, CorollaryCheck]) -> Table:
    """``checks``: heading of each column -> Eq. 6 with its log|F|, that of two models first, then the user's."""
    from tokenclean.report.tables import Table

    columns = [
        (
            *(f"{bound:.4f}" for bound in _bounds(check)),
            f"{check.margin:+z.4f}",
            _tokens_text(check.least_tokens),
            _share_text(check.break_even_kept_share),
        )
        for check in checks.values()
    ]
    first = next(iter(checks.values()))
    names = (
        f"error bound, {first.tokens:,.0f} full tokens",
        f"error bound, {first.kept_share * first.tokens:,.0f} kept tokens",
        "margin, the first minus the second",
        "least M",
        "break-even kept share",
    )
    return Table(
        f"Error bounds at η(D̃) = {first.eta_full:.1%}, η̂ = {first.eta_cleaned:.1%}, r̂ = {first.kept_share:.1%}",
        ("", *checks),
        tuple(zip(names, *columns, strict=True)),
        "least M: the fewest response tokens at which the margin is not below 0, at these rates; break-even: the "
        "smallest kept share at which it is not, at this M and noise",
    )


def _sentences(checks: Mapping[str, CorollaryCheck]) -> list[str]:
    """Whether the condition holds, under which class; whether the rates are possible; what the proof leaves out."""
    from tokenclean.theory import data_quality, possible_noise

    first = next(iter(checks.values()))
    sentences = [
        _verdict("Eq. 6" if check is first else f"Eq. 6 with {heading}", check) for heading, check in checks.items()
    ]
    if max(bound for check in checks.values() for bound in _bounds(check)) >= 1:
        sentences.append("An error bound of 1 or more says nothing: no error is larger than 1.")
    quality = data_quality(first.eta_full, first.eta_cleaned, first.kept_share)
    if math.isnan(quality):
        lowest, highest = possible_noise(first.eta_full, first.kept_share)
        sentences.append(
            f"No labels have these three rates: with {1 - first.eta_full:.1%} valid and {first.kept_share:.1%} kept "
            f"tokens, η̂ lies between {lowest:.1%} and {highest:.1%}."
        )
    left_out = (
        "What the proof leaves out: it applies Hoeffding's inequality to the trained model as if the tokens had not "
        "chosen it, so Eq. 5 lacks the size of the model class (--log-class-size adds it); look-up tables on contexts "
        "they have not seen break it (tokenclean.theory.learn_lookup_tables)."
    )
    if not math.isnan(quality):
        left_out += (
            f" For cleaned labels it counts η̂ where the distance of the kept from the valid tokens counts, "
            f"{quality:.1%} here; with that the margin of Eq. 6 is {replace(first, eta_cleaned=quality).margin:+z.4f}."
        )
    return [*sentences, f"{left_out} And a lower bound is not yet a lower error."]


def _verdict(name: str, check: CorollaryCheck) -> str:
    from tokenclean.theory import possible_noise

    gain, by = check.left, check.margin
    price = gain - by
    removes = f"cleaning removes {gain:.4f} of noise" if gain >= 0 else f"cleaning adds {-gain:.4f} of noise"
    if by >= 0:
        return (
            f"{name} holds: {removes} and pays {price:.4f} for fewer tokens, so the error bound falls by {by:.4f} "
            f"(with probability at least {max(0.0, 1 - 2 * check.delta):.0%})."
        )
    rises = (
        f"{name} does not hold: {removes} and pays {price:.4f} for fewer tokens, so the error bound rises by {-by:.4f}."
    )
    if math.isinf(check.least_tokens):
        return f"{rises} No number of tokens changes that."
    share = check.break_even_kept_share
    # The limits are symmetric: given η̂ in place of the kept share, they are those of the kept share.
    is_reached = share <= possible_noise(check.eta_full, check.eta_cleaned)[1]
    beyond = "" if is_reached else " (which no labels with this noise reach)"
    return (
        f"{rises} It would hold from M = {_tokens_text(check.least_tokens)} on, or, with this noise, from a kept share "
        f"of {_share_text(share)} on{beyond}."
    )


def _tokens_text(tokens: float) -> str:
    return "none" if math.isinf(tokens) else f"{max(1, math.ceil(tokens)):,}"


def _share_text(share: float) -> str:
    if math.isinf(share):
        return "none"
    return f"{share:.1%}" if share >= 0.001 else f"{100 * share:.2g}%"
