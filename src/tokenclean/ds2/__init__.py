"""DS²: sample-level curation of a pool from noisy LLM ratings (Pang et al., arXiv 2410.10877; §6.1 of the paper).

Ratings become classes, a score transition matrix says how raters err, neighbours in an embedding reveal single errors,
and the best-rated, then the rarest conversations are selected.
"""
