"""Merging an adapter into its base, and writing the merged model as a plain folder.

W + scale·B·A is always computed in float32; only the finished sum is rounded, once. A short training changes most
weights by less than half the distance between two bf16 numbers, so rounding may undo most of it: ``Merge`` gives the
size of the one relative to the other.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from tokenclean.errors import ModelError
from tokenclean.models.loading.hub_models import read_json
from tokenclean.models.loading.load import ModelSource, load_model, load_tokenizer
from tokenclean.store import atomic_folder, write_json
from tokenclean.tokens.inference_template import end_token_ids, give_template

MergedDtype = Literal["float32", "bfloat16"]

_PROBE_TOKENS = 48
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Merge:
    """The effect of a merge.

    ``tensors``: weights that the adapter changed; 0 for a whole model, which is written unchanged. ``rounding_share``:
    ‖round(W+Δ) − (W+Δ)‖ / ‖Δ‖ over all of them together (Frobenius), 0 in float32. ``is_untied``: the base ties its
    output layer to the embeddings and the adapter changed one of them, so both are written.
    """

    tensors: int = 0
    rounding_share: float = 0.0
    is_untied: bool = False


def write_merged(source: ModelSource, folder: Path, *, dtype: MergedDtype, template: str) -> Merge:
    """Write the plain model of an adapter on its base (or of a whole model) to a new or empty ``folder``.

    The folder holds what transformers and vLLM load: configuration, safetensors in ``dtype``, generation configuration,
    tokenizer, and a chat template that renders as in training under ``template`` (tulu, tokenizer). It appears whole or
    not at all. Memory: the model in float32, and one of its weights twice more.

    Raises RunFolderError for a folder that is not empty or cannot be written, ModelError for a model that cannot be
    merged, TemplateError where the tokenizer does not fit the template.
    """
    with atomic_folder(folder) as place:
        tokenizer = load_tokenizer(source)
        give_template(tokenizer, template)
        model: Any = load_model(source)
        merge = Merge()
        if source.adapter is not None:
            model, merge = merge_adapter(model, source, getattr(torch, dtype))
        model.to(getattr(torch, dtype)).save_pretrained(place)
        tokenizer.save_pretrained(place)
        _stop_at(end_token_ids(tokenizer, template), place / "generation_config.json")
    return merge


def merge_adapter(model: Any, source: ModelSource, dtype: torch.dtype) -> tuple[PreTrainedModel, Merge]:
    """The base of a float32 PEFT model with the adapter merged into it; ``dtype``: that of ``Merge.rounding_share``.

    Raises ModelError for adapters other than LoRA, and where the merged model does not compute what the adapter did.
    """
    _check_mergeable(model, source)
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(0, vocabulary, (1, _PROBE_TOKENS), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"peft\.")  # about layers merged already, and an untied head
        expected = model(input_ids=ids, use_cache=False).logits
        was_tied = _untie_adapted(model)
        try:
            tensors, rounding_share = _merge_layers(model, dtype)
            lm = model.merge_and_unload(safe_merge=True)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            raise ModelError(f"{source.adapter}: cannot be merged: {' '.join(str(error).split())[:200]}") from error
        is_untied = was_tied and not _tie_again(lm)
        found = lm(input_ids=ids, use_cache=False).logits
    difference = float((found - expected).abs().max() / expected.abs().max())
    if not difference < _TOLERANCE:
        raise ModelError(
            f"{source.adapter}: merged, the model's logits differ from the unmerged one's by {difference:.2g} of their "
            "size; this kind of adapter cannot be merged, serve it as an adapter"
        )
    return lm, Merge(tensors, rounding_share, is_untied)


def _check_mergeable(model: Any, source: ModelSource) -> None:
    config = model.peft_config[model.active_adapter]
    if config.peft_type != "LORA":
        raise ModelError(
            f"{source.adapter}: an adapter of type {config.peft_type.value} cannot be merged here; give a LoRA"
        )
    if config.layer_replication:
        raise ModelError(f"{source.adapter}: repeats layers of its base, so it cannot be merged; give a plain LoRA")


def _merge_layers(model: Any, dtype: torch.dtype) -> tuple[int, float]:
    """Merge layer by layer, each in float32; the number of weights, and ``Merge.rounding_share`` for ``dtype``."""
    from peft.tuners.lora import LoraLayer

    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    changed = rounded = 0.0
    for layer in layers:
        before = layer.get_base_layer().weight.detach().clone()
        layer.merge(safe_merge=True)
        after = layer.get_base_layer().weight.detach()
        changed += float((after - before).double().square().sum())
        rounded += float((after.to(dtype).float() - after).double().square().sum())
    return len(layers), math.sqrt(rounded / changed) if changed else 0.0


def _untie_adapted(model: Any) -> bool:
    """Give the output layer a weight of its own where it shares the embeddings' and either of them is adapted.

    Returns whether the base ties the two.
    """
    lm = model.get_base_model()
    if (outer := lm.get_output_embeddings()) is None:
        return False
    embedding, head = _inner(lm.get_input_embeddings()), _inner(outer)
    if head.weight is not embedding.weight:
        return False
    if any(getattr(module, "base_layer", None) in (embedding, head) for module in model.modules()):
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    return True


def _tie_again(lm: Any) -> bool:
    """Tie head and embeddings again if they are equal, and say so in the configuration; returns whether they are."""
    embedding, head = lm.get_input_embeddings(), lm.get_output_embeddings()
    is_tied = torch.equal(head.weight, embedding.weight)
    if is_tied:
        head.weight = embedding.weight
    for config in (lm.config, lm.config.get_text_config()):
        config.tie_word_embeddings = is_tied
    return is_tied


def _inner(module: Any) -> Any:
    """The layer that adapters wrap."""
    while (wrapped := getattr(module, "base_layer", None) or getattr(module, "original_module", None)) is not None:
        module = wrapped
    return module


def _stop_at(ids: list[int], file: Path) -> None:
    """Add ids to those at which the generation configuration stops."""
    config = read_json(file)
    known = config.get("eos_token_id")
    known = known if isinstance(known, list) else [] if known is None else [known]
    union = [*known, *(i for i in ids if i not in known)]
    write_json(file, {**config, "eos_token_id": union[0] if len(union) == 1 else union})
