"""A base and an adapter on it in one pass, so that rounding cancels in the difference of their losses.

Under ``safe`` products round their inputs, on a CPU to bf16, on a GPU to TF32. The error of a loss is as large as many
scores, and differs between two models that are computed apart. In a pair every layer gets the base's rows and then the
adapter's; the adapter's product is the base's plus that of the difference of their inputs, which is small. In the CPU
kernels the base's losses are those of an uncompiled pass of its own, bit for bit, and a pair takes less than two such
passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch

from tokenclean.models.model_parts import body_of
from tokenclean.models.precision import patched_forward

if TYPE_CHECKING:
    from peft.tuners.lora import Linear


def can_pair(model: torch.nn.Module) -> bool:
    """Whether ``model`` differs from its base by plain LoRAs on linear layers of its body alone."""
    from peft import PeftModel
    from peft.tuners.lora import Linear
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    if not isinstance(model, PeftModel):
        return False
    adapted = [m for m in model.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    if any(getattr(config, "bias", "none") != "none" for config in model.peft_config.values()):  # the base's own biases
        return False
    in_body = set(body_of(model).modules())
    return bool(adapted) and all(type(m) is Linear and m in in_body and _is_plain(m) for m in adapted)


def _is_plain(layer: Linear) -> bool:
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    is_changed = any(name in layer.lora_variant or layer.lora_bias[name] for name in active)
    return type(layer.base_layer) is torch.nn.Linear and not (layer.disable_adapters or layer.merged or is_changed)


@contextmanager
def paired_loras(body: torch.nn.Module) -> Iterator[None]:
    """Within the block each LoRA layer of ``body`` adds its LoRAs to the second half of its rows alone.

    To be entered together with ``precision_policy(…, in_pairs=True)``, which computes the layers below.
    """
    from peft.tuners.lora import Linear

    layers = [m for m in body.modules() if type(m) is Linear]
    with patched_forward(layers, [_paired_forward(layer) for layer in layers]):
        yield


def _paired_forward(layer: Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    names = [name for name in layer.active_adapters if name in layer.lora_A]

    def forward(x: torch.Tensor) -> torch.Tensor:
        output = cast(torch.Tensor, layer.base_layer(x))
        half = x.shape[-2] // 2
        own = x[..., half:, :]
        for name in names:
            output[..., half:, :].add_(layer.lora_B[name](layer.lora_A[name](own)), alpha=layer.scaling[name])
        return output

    return forward
