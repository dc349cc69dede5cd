"""When cleaned tokens beat full tokens: Theorem 5.1 and Corollary 5.1.1 (section 5.1, appendix 9).

M is the number of response tokens; prompt tokens have label 0 before and after cleaning and are not counted. Of the
response tokens, η(D̃) = P(Ỹ ≠ Y) have a wrong label before cleaning, η̂ = P(Ŷ ≠ Y) after it, and r̂ = P(Ŷ = 1) are kept.
L_D(θ) = P(θ(X_prev) ≠ X_next | Y = 1) is the 0-1 error on valid targets, L_D̃(θ) that on the tokens trained on, and θ̂
the model trained.

What the proof assumes:

1. The tokens (X_prev, X_next, Y) are independent draws from one distribution. Those of one answer are not.
2. Training minimises the 0-1 loss on its tokens over a class F of models.
3. Some model of F predicts every token trained on, L_D̃(θ_D̃) = 0: the tokens before one determine it. Where they do
   not, min over F of L_D̃ adds to every bound.
4. For cleaned tokens: whether a token is kept depends on that token alone, by a rule fixed before the draw, so that the
   kept ones are independent draws again, r̂M of them. A ranking of the whole pool, or a reference model trained on it,
   breaks this.

What it leaves out:

5. Hoeffding's inequality needs a model fixed before the draw, and θ̂ is chosen by the tokens drawn. The bound lacks a
   term for the size of F: ``error_bound`` takes it; ``learn_lookup_tables`` shows a class where Eq. 5 fails.
6. The proof's last paragraph says that P(Ŷ ≠ Y) bounds L_D - L_D̃ for any labels. It does so for full tokens only,
   since L_D averages over the valid tokens and L_D̃ over the kept ones: ``data_quality`` has the term that holds.
7. Eq. 6 compares two upper bounds. The lower bound need not belong to the lower error.
"""

from tokenclean.theory.bounds import LOG_TWO_MODELS, CorollaryCheck, data_quality, error_bound, possible_noise
from tokenclean.theory.lookup_counterexample import learn_lookup_tables

__all__ = ["LOG_TWO_MODELS", "CorollaryCheck", "data_quality", "error_bound", "learn_lookup_tables", "possible_noise"]
