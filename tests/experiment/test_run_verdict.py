"""The sentence at the end of a run: which way, by how much, and what next."""

from __future__ import annotations

from typing import Any

import pytest

from tokenclean.experiment.verdict import verdict_of


def interval(low: float, high: float) -> dict[str, float]:
    return {"difference": (low + high) / 2, "low": low, "high": high}


def model(name: str, *, base: Any = None, full: Any = None, kept: float | None = 0.6) -> Any:
    return {"name": name, "kept_share": kept, "loss": 2.0, "against_base": base, "against_full": full}


def verdict(*models: Any, strategy: str = "fixed_model") -> str:
    return str(verdict_of(models, strategy, heldout_rows=60, folder="runs/my"))


BETTER, WORSE, UNCLEAR = interval(-0.03, -0.01), interval(0.01, 0.03), interval(-0.01, 0.02)


@pytest.mark.parametrize(
    ("full", "kept", "starts", "advice"),
    [
        (BETTER, 0.6, "Cleaning helped: fixed_model is better than full tokens by 0.0200 nats", "--to trl"),
        (BETTER, 1.0, "Cleaning helped: fixed_model", "merge runs/my."),
        (WORSE, 0.6, "Cleaning hurt: fixed_model is worse than full tokens by 0.0200 nats", "cleaning.proportion"),
        (WORSE, 1.0, "Cleaning hurt:", "train on full tokens"),
        (UNCLEAR, 0.6, "Cleaning made no difference that shows:", "hold out more rows"),
        (UNCLEAR, 1.0, "Cleaning changed nothing that shows:", "finds little noise"),
    ],
)
def test_against_full_tokens(full, kept, starts, advice):
    text = verdict(model("base"), model("full_tokens"), model("fixed_model", base=BETTER, full=full, kept=kept))
    assert text.startswith(starts)
    assert f"95 % interval {full['low']:+.4f} to {full['high']:+.4f}; 60 held-out conversations" in text
    assert advice in text.partition(" Next: ")[2]
    assert ("proportion" in text) == (full is WORSE and kept < 1)


def change(low: float, high: float) -> dict[str, float]:
    return {"mean": (low + high) / 2, "low": low, "high": high, "items": 40}


PREFERS, PREFERS_NOT, NO_CHANGE = change(0.1, 0.3), change(-0.3, -0.1), change(-0.1, 0.2)


@pytest.mark.parametrize(
    ("full", "of_pairs", "starts", "says", "advice"),
    [
        (UNCLEAR, PREFERS, "Cleaning helped: ", "more than full tokens (+0.2000", "use its model"),
        (UNCLEAR, PREFERS_NOT, "Cleaning hurt: ", "less than full tokens (-0.2000", "train on full tokens"),
        (UNCLEAR, NO_CHANGE, "Cleaning made no difference", "as much as full tokens as far as", "hold out more rows"),
        (BETTER, NO_CHANGE, "Cleaning helped: ", "as much as full tokens as far as", "use its model"),
        (BETTER, PREFERS, "Cleaning helped: ", "more than full tokens", "use its model"),
        (WORSE, PREFERS, "The measures disagree: ", "more than full tokens", "the measure that"),
        (BETTER, PREFERS_NOT, "The measures disagree: ", "less than full tokens", "the measure that"),
        (WORSE, PREFERS_NOT, "Cleaning hurt: ", "less than full tokens", "train on full tokens"),
    ],
)
def test_with_pairs_the_preference_counts_too(full, of_pairs, starts, says, advice):
    text = verdict({**model("fixed_model", base=BETTER, full=full), "preference_against_full": of_pairs})
    assert text.startswith(starts)
    assert f"It prefers clean answers {says}" in text
    assert f"95 % interval {of_pairs['low']:+.4f} to {of_pairs['high']:+.4f}; 40 pairs)." in text
    assert advice in text.partition(" Next: ")[2]


def test_without_full_tokens_the_base_is_the_control_and_the_missing_one_is_named():
    text = verdict(model("base"), model("fixed_model", base=BETTER))
    assert text.startswith("fixed_model is better than the base by 0.0200 nats a token")
    assert "full tokens were not trained beside it" in text
    assert "evaluation.controls=[full_tokens]" in text
    assert "lower training.learning_rate" in verdict(model("base"), model("fixed_model", base=WORSE))
    assert "noise_mixture" in verdict(model("base"), model("full_tokens", base=BETTER), strategy="full_tokens")


def test_a_strategy_that_trains_nothing_has_none():
    assert verdict_of([model("base")], "none", heldout_rows=60, folder="runs/my") is None
    assert verdict_of([], None, heldout_rows=60, folder="runs/my") is None


def chosen(name: str) -> Any:
    return {"chosen": name, "sentence": f"auto chose {name}: it was so."}


def test_what_a_run_chose_comes_first():
    full = {**model("auto", base=BETTER, full=interval(0, 0), kept=1.0)}
    found = verdict_of([full], "auto", heldout_rows=60, folder="runs/my", choice=chosen("full_tokens"))
    assert str(found).startswith("auto chose full_tokens: it was so. Next: use its model: tokenclean merge runs/my")
    better = verdict_of(
        [model("auto", base=BETTER, full=BETTER)],
        "auto",
        heldout_rows=60,
        folder="runs/my",
        choice=chosen("repetition"),
    )
    assert str(better).startswith("auto chose repetition: it was so. Cleaning helped: auto is better than full tokens")
    worse = verdict_of(
        [model("auto", base=BETTER, full=WORSE)], "auto", heldout_rows=60, folder="runs/my", choice=chosen("repetition")
    )
    assert "Cleaning hurt" in worse.sentence
    assert "the rows it chose by call it better" in worse.advice
