"""Versions of the stages: raise one when the code of a stage changes its result, so that older ones are recomputed."""

STAGE_VERSIONS = {
    "tokens": 3,
    "losses": 2,
    "training": 4,
    "one_step": 1,
    "embeddings": 1,
    "neighbours": 1,
    "curation": 1,
    "evaluation": 1,
    "samples": 1,
    "comparison": 3,
    "sweep": 2,
    "results": 2,
}
