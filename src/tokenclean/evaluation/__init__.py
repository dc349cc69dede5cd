"""Models on benchmarks: a score for every item, and whether the differences between models are real."""
