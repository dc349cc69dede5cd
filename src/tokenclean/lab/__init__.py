"""Noise with known truth, planted into any pool."""

from tokenclean.lab.noise_kinds import NOISE_KINDS, NoiseSettings
from tokenclean.lab.plant import NoiseSpan, PlantedPool, plant

__all__ = ["NOISE_KINDS", "NoiseSettings", "NoiseSpan", "PlantedPool", "plant"]
