"""Models on benchmarks: scores an item, and what their differences tell."""
