"""DS²: sample-level curation of a pool from noisy LLM ratings (Pang et al., arXiv 2410.10877; §6.1 of the paper).

Ratings become classes, a score transition matrix tells how raters err, neighbours in an embedding find single errors,
and the best-rated, then the rarest conversations are selected.
"""

from tokenclean.ds2.diversity import long_tail_scores, select_best
from tokenclean.ds2.label_correction import Curation, Detection, correct_labels, detect_errors
from tokenclean.ds2.neighbours import Neighbours, nearest_neighbours
from tokenclean.ds2.rating_classes import CLASSES, classes_of
from tokenclean.ds2.ratings import Ratings, load_ratings, read_ratings, write_ratings
from tokenclean.ds2.transition_matrix import Consensus, Transition, count_consensus, estimate_transition, second_opinion

__all__ = [
    "CLASSES",
    "Consensus",
    "Curation",
    "Detection",
    "Neighbours",
    "Ratings",
    "Transition",
    "classes_of",
    "correct_labels",
    "count_consensus",
    "detect_errors",
    "estimate_transition",
    "load_ratings",
    "long_tail_scores",
    "nearest_neighbours",
    "read_ratings",
    "second_opinion",
    "select_best",
    "write_ratings",
]
