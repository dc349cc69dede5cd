"""LoRA adapters that stand on one base, round upon round, and are never merged.

Round t trains a fresh LoRA on the last model (§4.3.2). The last model is the base with the LoRAs of all earlier
rounds; their sum is one LoRA of the summed rank, so every θ_t is the original base and a single ordinary adapter:
exact, small on disk, and loadable by anyone.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tokenclean.errors import MissingExtraError, ModelError
from tokenclean.recipe import LoraSettings

EARLIER = "earlier_rounds"
ROUND = "round"

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def add_fresh_lora(model: PreTrainedModel, settings: LoraSettings, earlier: Path | None) -> torch.nn.Module:
    """The base with the earlier rounds' adapter (frozen, without dropout) and a fresh LoRA, the only trained part.

    Returns a PeftModel. Raises MissingExtraError without peft, ModelError where a target module does not exist.
    """
    try:
        from peft import LoraConfig, PeftModel, TaskType
    except ImportError as error:
        raise MissingExtraError("peft", "train", "LoRA training") from error

    targets = settings.target_modules
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=settings.rank,
        lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType]  # peft computes alpha / r with floats as well
        lora_dropout=settings.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
    )
    try:
        if earlier is None:
            wrapped = PeftModel(model, config, adapter_name=ROUND)
        else:
            wrapped = PeftModel.from_pretrained(model, str(earlier), adapter_name=EARLIER, is_trainable=False)
            wrapped.add_adapter(ROUND, config)
    except ValueError as error:
        raise ModelError(f"cannot add a LoRA to {type(model).__name__}: {' '.join(str(error).split())}") from error
    wrapped.base_model.set_adapter([ROUND] if earlier is None else [EARLIER, ROUND])
    for name, parameter in wrapped.named_parameters():
        parameter.requires_grad_(f".{ROUND}." in name)
    return wrapped


def save_rounds(model: Any, folder: Path, *, base: str, earlier: Path | None) -> None:
    """Write the sum of the earlier adapter and the round's LoRA as one adapter on ``base``."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = model.peft_config[ROUND]
    scale = math.sqrt(config.lora_alpha / config.r)  # shared evenly by A and B, so neither overflows in low precision
    state = {
        k: v.detach().float().cpu() * scale for k, v in get_peft_model_state_dict(model, adapter_name=ROUND).items()
    }
    rank = config.r
    if earlier is not None:
        before = load_file(earlier / _WEIGHTS)
        rank += json.loads((earlier / _CONFIG).read_text())["r"]
        if before.keys() != state.keys():
            raise ModelError(f"{earlier}: adapts other modules than this round; keep lora.target_modules as they were")
        state = {k: torch.cat([before[k], v], dim=0 if ".lora_A." in k else 1) for k, v in state.items()}
    save_file({k: v.contiguous() for k, v in state.items()}, folder / _WEIGHTS)
    written = config.to_dict()
    written.update(
        base_model_name_or_path=base, r=rank, lora_alpha=rank, lora_dropout=0.0, inference_mode=True, use_rslora=False
    )
    text = json.dumps(written, indent=2, sort_keys=True, default=lambda v: sorted(v) if isinstance(v, set) else str(v))
    (folder / _CONFIG).write_text(text + "\n")
