"""The cleaning strategies; the only code that knows a loop."""

from collections.abc import Callable

from tokenclean.cleaning import baselines
from tokenclean.cleaning.fixed_model import fixed_model
from tokenclean.cleaning.noise import noise_mixture, repetition
from tokenclean.cleaning.self_evolving import self_evolving
from tokenclean.cleaning.strategy_result import StrategyResult
from tokenclean.cleaning.workshop import Workshop

STRATEGIES: dict[str, Callable[[Workshop], StrategyResult]] = {
    "none": baselines.none,
    "ds2": baselines.ds2,
    "full_tokens": baselines.full_tokens,
    "full_tokens_from_warmup": baselines.full_tokens_from_warmup,
    "random": baselines.random,
    "rho": baselines.rho,
    "fixed_model": fixed_model,
    "self_evolving": self_evolving,
    "noise_mixture": noise_mixture,
    "repetition": repetition,
}

__all__ = ["STRATEGIES", "StrategyResult", "Workshop"]
