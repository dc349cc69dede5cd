"""Estimate of the peak memory of a run's passes, before any weight is loaded.

Weights, optimizer and one pack's activations are counted tensor by tensor; what a training pass keeps for its backward
pass is found by running the model's own code on the meta device. A CPU also loses memory to fragmentation of its heap,
which no tensor shows: that was measured, with glibc, and is taken as proportional to what is kept.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.graph import saved_tensors_hooks

from tokenclean.models.attention.segments import segments
from tokenclean.models.device import cpu_multiplies_bf16
from tokenclean.models.frozen_linear import BLOCK
from tokenclean.models.head import CHUNK_POSITIONS
from tokenclean.models.kernels.cpu import has_bf16_kernels, missing_kernels
from tokenclean.models.model_parts import body_of, lm_of
from tokenclean.recipe import Recipe, TrainingSettings
from tokenclean.training.adapters import add_fresh_lora
from tokenclean.training.train_step import prepare_layers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_BF16_MATMUL_BYTES = 380 << 20
"""Kept by torch's bf16 products on a CPU (oneDNN's): code and scratch memory for every shape met."""

_FLOAT = 4

_KEPT_NUMBERS = 34
"""Numbers per token, layer and hidden unit that a Llama's plain code kept for the backward pass."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PassMemory:
    """Bytes that a pass holds at its peak, without those of the process itself.

    ``weights``: the model's, in every form that is held. ``state``: what is trained, with gradients and Adam's two
    moments. ``pack``: the tensors of one pack.
    """

    weights: int
    state: int
    pack: int

    @property
    def total(self) -> int:
        return self.weights + self.state + self.pack


@dataclass(frozen=True)
class ModelShape:
    """Numbers of parameters: ``linear``, in the linear layers below the head, and ``total``, tied ones counted once.

    ``vocabulary``, ``hidden``: shape of the head. ``layer_features``: outputs per token of one decoder layer's linear
    layers.
    """

    linear: int
    total: int
    vocabulary: int
    hidden: int
    layer_features: int


def scoring_memory(shape: ModelShape, recipe: Recipe, device_type: str, tokens: int) -> PassMemory:
    """Memory of a pass that scores packs of ``tokens`` tokens."""
    precision, on_cpu = recipe.scoring.precision, device_type == "cpu"
    uses_kernels = on_cpu and missing_kernels() is None
    copies = 0
    if uses_kernels:
        width = 2 if precision != "exact" and has_bf16_kernels() else _FLOAT
        copies = width * (shape.linear + shape.vocabulary * shape.hidden)
    elif precision == "fast":
        copies = 2 * shape.linear
    logits = 0 if uses_kernels else 2 * CHUNK_POSITIONS * shape.vocabulary
    pack = _FLOAT * (tokens * (4 * shape.hidden + shape.layer_features) + logits)
    return PassMemory(_FLOAT * shape.total + copies, 0, pack)


def training_memory(config: PreTrainedConfig, settings: TrainingSettings, device_type: str, tokens: int) -> PassMemory:
    """Memory of a training in packs of ``tokens`` tokens.

    For a model whose code does not run on the meta device an estimate is used, and the log says so. Raises
    MissingExtraError and ModelError as ``add_fresh_lora``, which the training would raise too.
    """
    model = model_without_content(config)
    shape = model_shape(model)
    is_lora = settings.method == "lora"
    if is_lora:
        model = add_fresh_lora(model, settings.lora, None)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    held = _held_per_frozen_weight(settings, device_type) if is_lora else _FLOAT
    weights = _FLOAT * (shape.total - shape.linear) + int(held * shape.linear)
    layers = config.get_text_config().num_hidden_layers
    try:
        # Every form of a frozen layer keeps the same, and 4-bit weights cannot be made on the meta device.
        kept = _kept_for_backward(model, settings.model_copy(update={"quantization": "none"}), tokens)
    except (NotImplementedError, TypeError, RuntimeError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        logger.warning(
            "what %s keeps for its backward pass is estimated from its width, since it does not run on the meta device "
            "(%s); its actual peak memory may be very different",
            type(lm_of(model)).__name__,
            reason,
        )
        kept = _FLOAT * _KEPT_NUMBERS * layers * shape.hidden * tokens
    of_a_layer = kept // layers
    if settings.activation_checkpointing:
        kept = _FLOAT * layers * tokens * shape.hidden + of_a_layer
    # The head's logits with one tensor of their size; the gradients of one layer, about as large as what it keeps.
    passing = _FLOAT * 2 * CHUNK_POSITIONS * shape.vocabulary + of_a_layer
    heap = 0
    if device_type == "cpu":
        # Both were measured as one: where the heap is large, the matmul's memory fits into its holes.
        by_matmul = _BF16_MATMUL_BYTES if settings.precision != "exact" and cpu_multiplies_bf16() else 0
        heap = max(kept * 3 // 4, 5 * of_a_layer, by_matmul)
    # Where weights are replaced, the old and the new ones are in memory together for a moment.
    loaded = _FLOAT * (shape.total + trained) + (int(held * shape.linear) if held != _FLOAT else 0)
    state = 4 * _FLOAT * trained - (0 if is_lora else _FLOAT * trained)
    return PassMemory(weights, state, max(kept + passing + heap, loaded - weights - state))


def process_bytes() -> int:
    """Resident memory of this process with the imports of a training; 0 where the system does not report it."""
    with suppress(ImportError):
        import peft  # noqa: F401  # and with it accelerate

    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def model_without_content(config: PreTrainedConfig) -> Any:
    """The transformers causal LM of a configuration on the meta device, where weights take no memory."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return model


def model_shape(model: Any) -> ModelShape:
    """The shape of a ``model_without_content``."""
    head, body = model.get_output_embeddings(), body_of(model)
    layers = [m for m in body.modules() if isinstance(m, torch.nn.Linear)]
    count = model.config.get_text_config().num_hidden_layers
    return ModelShape(
        linear=sum(layer.weight.numel() for layer in layers),
        total=sum(p.numel() for p in model.parameters()),
        vocabulary=head.weight.shape[0],
        hidden=head.weight.shape[1],
        layer_features=sum(layer.out_features for layer in layers) // count,
    )


def _held_per_frozen_weight(settings: TrainingSettings, device_type: str) -> float:
    """Bytes of a frozen weight as ``prepare_layers`` holds it: packed twice for our CPU kernels."""
    if settings.quantization == "nf4":
        return 0.5 + _FLOAT / BLOCK
    kernels = device_type == "cpu" and missing_kernels() is None
    if settings.precision == "mixed":
        return 4 if kernels and has_bf16_kernels() else 2
    if settings.precision in ("exact", "safe") and settings.sharding == "none" and kernels:
        return 4 if settings.precision == "safe" and has_bf16_kernels() else 8
    return _FLOAT


def _kept_for_backward(model: torch.nn.Module, settings: TrainingSettings, tokens: int) -> int:
    """Bytes that one pack's forward pass keeps, without weights; a storage counts once."""
    prepare_layers(model, settings)
    body, weights = body_of(model), {_storage(t) for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if _storage(tensor) not in weights:
            kept[_storage(tensor)] = tensor
        return tensor

    ids = torch.zeros(1, tokens, dtype=torch.int64, device="meta")
    model.train()
    with saved_tensors_hooks(keep, lambda tensor: tensor), segments(lm_of(model), [tokens]):
        body(input_ids=ids, position_ids=torch.zeros_like(ids), use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
