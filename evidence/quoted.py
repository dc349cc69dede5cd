"""Parts of README and of docs/when-cleaning-helps.md that no scale of ``evidence.run`` measures: transcribed figures,
and those of the cells of ``benchmarks.search``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from evidence.searched import search_reading, search_table
from evidence.words import BETTER, WORSE, half_width, interval, judge, signed, table
from tokenclean.experiment.verdict import verdict_of

Document = dict[str, Any]

_CLEANING = {BETTER: "helps", WORSE: "hurts"}
_HALUEVAL, _TRANSLATION, _WORDS = range(3)


def noise_table(quoted: Document) -> str:
    """The three quick cells of ``benchmarks.noise``: a perfect mask, a random one, corrected rows."""
    rows = []
    for cell in quoted["noise"]["cells"]:
        minus = cell["minus_full_tokens"]
        rows.append(
            [
                cell["set"],
                f"{100 * cell['noise_rate']:.1f} %",
                f"{cell['measure']}, nats",
                *(_or_dash(minus[name]) for name in ("oracle", "random_mask", "corrected")),
                _verdict(cell),
            ]
        )
    header = ["noise", "share of tokens", "measure", *(f"{name} minus full tokens" for name in _WAYS), "cleaning"]
    return table(header, rows, 1, (2, 6))


_WAYS = ("perfect mask", "random mask", "corrected rows")


def _or_dash(values: Sequence[float] | None) -> str:
    return "–" if values is None else interval(values[0], values[1], values[2])


def _verdict(cell: Document) -> str:
    """As ``benchmarks.noise_tables.verdict``: it helps where the perfect mask is better than full tokens and than the
    random mask, hurts where it is worse than full tokens, else it is unclear."""
    lower = cell["lower_is_better"]
    full, random = (
        judge(low, high, lower_is_better=lower)
        for _, low, high in (cell["minus_full_tokens"]["oracle"], cell["oracle_minus_random_mask"])
    )
    if full == BETTER and random == BETTER:
        return _CLEANING[BETTER]
    return _CLEANING[WORSE] if full == WORSE else "unclear"


def noise_against_random(quoted: Document) -> str:
    """HaluEval's perfect mask minus a random one."""
    value, low, high = quoted["noise"]["cells"][_HALUEVAL]["oracle_minus_random_mask"]
    return f"{signed(value)}, {signed(low)} to {signed(high)}"


def noise_loss(quoted: Document) -> str:
    """What the mask of the translations costs in held-out loss."""
    return half_width(*quoted["noise"]["cells"][_TRANSLATION]["loss_of_oracle_minus_full_tokens"])


def noise_margins(quoted: Document) -> str:
    """Eq. 6's margins of the perfect mask."""
    return ", ".join(signed(cell["eq6_margin_of_oracle"], 2) for cell in quoted["noise"]["cells"])


def demo(quoted: Document) -> str:
    """What ``make demo`` prints: the verdict and the table, as an indented block."""
    found = quoted["demo"]
    rows = {row["name"]: row for row in found["rows"]}
    keys = ("difference", "low", "high")
    own = dict(zip(keys, rows["fixed_model"]["interval"], strict=True))
    model = {
        "name": "fixed_model",
        "kept_share": rows["fixed_model"]["kept"],
        "against_base": None,
        "against_full": own,
    }
    measured: Any = [model]
    said = verdict_of(measured, "fixed_model", heldout_rows=found["heldout_rows"], folder="runs/demo")
    lines = _wrapped(str(said), 110)
    lines += ["", " trained on    kept r̂  wrong η̂  AUROC    loss   minus full tokens"]
    for row in found["rows"]:
        cells = (_share(row.get("kept")), _share(row.get("wrong")), f"{row['auroc']:.2f}" if "auroc" in row else "–")
        minus = row.get("minus_full_tokens")
        text = "–" if minus is None else f"{signed(minus[0])} ± {minus[1]:.4f}"
        kept, wrong, auroc = cells
        lines.append(f" {row['name']:<12}{kept:>8}{wrong:>9}{auroc:>7}{row['loss']:>8.4f}{text:>19}")
    return "\n".join(f"    {line}".rstrip() for line in lines)


def cut_to_60_percent(quoted: Document) -> str:
    """What the paper's k costs at our size."""
    found = quoted["earlier"]["cut_to_60_percent"]
    return (
        f"{found['difference']:.2f} nats a token on {found['rows']} rows of Alpaca (fixed-model "
        f"{found['fixed_model']:.3f}, full tokens {found['full_tokens']:.3f}; {found['date']})"
    )


def mixture_gains(quoted: Document) -> str:
    """What ``noise_mixture`` gained with planted noise, seed by seed."""
    gains = quoted["earlier"]["noise_mixture_gains"]
    return " and ".join(f"{gain:.3f} ± {half:.3f}" for gain, half in gains) + " nats"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    sentence, _, advice = text.partition(" Next: ")
    return [*textwrap.wrap(sentence, width), *textwrap.wrap(f"Next: {advice}", width)]


QUOTED: dict[str, Callable[[Document], str]] = {
    "noise-table": noise_table,
    "noise-against-random": noise_against_random,
    "noise-loss": noise_loss,
    "noise-margins": noise_margins,
    "search": search_table,
    "search-reading": search_reading,
    "demo": demo,
    "cut-to-60-percent": cut_to_60_percent,
    "mixture-gains": mixture_gains,
}
"""The parts by the names that pages use."""
