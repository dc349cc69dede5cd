"""The reference models: the warm-up on D̃_0, or one that the recipe names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tokenclean.cleaning.model import Model
from tokenclean.models.loading.load import check_two_models, load_tokenizer, resolve_source
from tokenclean.models.loading.tokenizer_identity import check_same_tokenizer, sample_texts
from tokenclean.recipe import ServedModel
from tokenclean.training.step_plan import SchedulePart

if TYPE_CHECKING:
    from tokenclean.cleaning.context import RunContext


def warm_up(context: RunContext, name: str, part: SchedulePart | None = None) -> Model:
    """The base fine-tuned on D̃_0 with full tokens. ``part``: see ``TrainingJob``."""
    full = context.tokens.is_response.map_values(lambda labels: labels.astype(np.float32))
    return context.train(name, context.base, full, context.data.splits[0], part=part)


def given_reference(context: RunContext) -> Model | None:
    """``model.reference``, checked to share the base's tokenizer and to be another model; None where the recipe names
    none. Raises TokenizerMismatchError and ModelError where it is not.

    A served reference is checked when its server is first asked (``scoring.served``)."""
    name = context.recipe.model.reference
    if name is None:
        return None
    if isinstance(name, ServedModel):
        context.note(
            f"reference {name}: its losses are computed by the server, in the server's precision, the base's here in "
            "float32; scores subtract the two, and the records name both"
        )
        return context.passes.model("reference", name)
    source = resolve_source(name, trusted=context.recipe.model.trust_remote_code)
    texts = sample_texts(context.data.pool, context.data.tokenizer, context.recipe.tokens.template)
    for note in check_same_tokenizer(context.data.tokenizer, load_tokenizer(source), texts):
        context.note(f"reference {source}: {note} (allowed: text is rendered with the base's)")
    model = context.passes.model("reference", source)
    check_two_models(context.base.key, model.key)
    return model
