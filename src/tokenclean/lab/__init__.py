"""Noise with known truth: planted into any pool, or stated by the rows; and what detectors make of it."""

from tokenclean.lab.detectors import DETECTORS
from tokenclean.lab.edits import NoiseSettings
from tokenclean.lab.noise_kinds import NOISE_KINDS
from tokenclean.lab.plant import NoiseSpan, PlantedPool, plant

__all__ = ["DETECTORS", "NOISE_KINDS", "NoiseSettings", "NoiseSpan", "PlantedPool", "plant"]
